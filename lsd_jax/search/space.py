"""The architectures that are searched: all combinations of a few sizes, as columns of numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    def __getattr__(self, name: str) -> Any:
        """A field of the base's model, for what takes a `ModelConfig`."""
        return getattr(self.base.model, name)

    def __len__(self) -> int:
        return len(self.dim)

    @property
    def tokens(self) -> np.ndarray:
        return (self.base.model.height // self.patch) * (self.base.model.width // self.patch)

    @property
    def parameters(self) -> np.ndarray:
        return np.broadcast_to(parameters(self), self.dim.shape)

    def where(self, mask: np.ndarray) -> Candidates:
        """Those that a mask or a list of numbers chooses."""
        columns = ("dim", "layers", "heads", "head_dim", "mlp", "patch", "passes")
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def model(self, i: int) -> ModelConfig:
        """One of them, as a config has it."""
        return replace(
            self.base.model, dim=int(self.dim[i]), layers=int(self.layers[i]),
            heads=int(self.heads[i]), head_width=int(self.head_dim[i]), mlp=int(self.mlp[i]),
            patch=int(self.patch[i]),
        )  # fmt: skip

    def config(self, i: int, name: str) -> Config:
        """One of them, ready to be trained and streamed."""
        stream = replace(self.base.stream, passes=int(self.passes[i]))
        return replace(self.base, name=name, model=self.model(i), stream=stream)


def enumerate_all(base: Config) -> Candidates:
    """Every architecture of the space that has the pictures, the history and the precision of
    `base`."""
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
    whole = (heads == np.floor(heads)) & (heads >= 1)
    found = Candidates(base, dim, layers, heads.astype(int), head_dim, mlp, patch, passes)
    return found.where(whole)
