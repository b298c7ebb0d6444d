"""The architectures that are searched: all combinations of a few sizes, as columns of numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from lsd_jax.config import Config, ModelConfig
from lsd_jax.hw.memory import parameters

DIMS = tuple(range(128, 2049, 64))
LAYERS = tuple(range(1, 25))
HEAD_DIMS = (64, 128, 256)
WIDTHS = (0.5, 1.0)  # of all heads together, over that of the residual stream
RATIOS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
PATCHES = (4, 8, 16, 32)
PASSES = (1, 2)
MOST_HEADS = max(DIMS) // min(HEAD_DIMS)


@dataclass(frozen=True)
class Candidates:
    """Architectures as arrays of one length. What they share is that of `base`."""

    base: Config
    dim: np.ndarray
    layers: np.ndarray
    heads: np.ndarray
    head_dim: np.ndarray
    mlp: np.ndarray
    patch: np.ndarray
    passes: np.ndarray
    per_kv: np.ndarray  # query heads to each head of keys and values

    def __getattr__(self, name: str) -> Any:
        """A field of the base's model, for what takes a `ModelConfig`."""
        return getattr(self.base.model, name)

    def __len__(self) -> int:
        return len(self.dim)

    @property
    def tokens(self) -> np.ndarray:
        return (self.base.model.height // self.patch) * (self.base.model.width // self.patch)

    @property
    def key_heads(self) -> np.ndarray:
        return self.heads // self.per_kv

    @property
    def parameters(self) -> np.ndarray:
        return np.broadcast_to(parameters(self), self.dim.shape)

    def where(self, mask: np.ndarray) -> Candidates:
        """Those that a mask or a list of numbers chooses."""
        columns = tuple(field.name for field in fields(self) if field.name != "base")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def model(self, i: int) -> ModelConfig:
        """One of them, as a config has it."""
        return replace(
            self.base.model, dim=int(self.dim[i]), layers=int(self.layers[i]),
            heads=int(self.heads[i]), head_width=int(self.head_dim[i]), mlp=int(self.mlp[i]),
            patch=int(self.patch[i]), kv_heads=int(self.key_heads[i]) if self.per_kv[i] > 1 else 0,
        )  # fmt: skip

    def config(self, i: int, name: str) -> Config:
        """One of them, ready to be trained and streamed."""
        stream = replace(self.base.stream, passes=int(self.passes[i]))
        return replace(self.base, name=name, model=self.model(i), stream=stream)


def enumerate_all(base: Config) -> Candidates:
    """Every architecture of the space that has the pictures, the history, the precision and, to a
    head of keys and values, the query heads of `base`."""
    model = base.model
    patches = [
        p for p in PATCHES
        if model.height % p == 0 and model.width % p == 0 and p % model.detail_patch == 0
        and not (model.memory and (model.height // p % 2 or model.width // p % 2))
    ]  # fmt: skip
    axes = np.meshgrid(
        DIMS, LAYERS, HEAD_DIMS, WIDTHS, RATIOS, patches, PASSES, indexing="ij", copy=False
    )
    dim, layers, head_dim, width, ratio, patch, passes = (axis.ravel() for axis in axes)
    heads = dim * width / head_dim
    mlp = (dim * ratio).astype(int)
    whole = (heads % model.per_kv == 0) & (heads >= 1)
    per_kv = np.full(len(dim), model.per_kv)
    found = Candidates(base, dim, layers, heads.astype(int), head_dim, mlp, patch, passes, per_kv)
    return found.where(whole)
