"""The architectures that are searched: all combinations of a few sizes, as columns of numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, NamedTuple

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
PER_KV = (1, 2, 4)  # query heads to each head of keys and values
MOST_HEADS = max(DIMS) // min(HEAD_DIMS)
WINDOWS = (1, 2, 3, 4, 6)  # as far as the grid has seen
SINKS = (0, 1, 2)
MEMORY = (0, 1, 2)
SEARCHED = (
    "model.dim", "model.layers", "model.heads", "model.kv_heads", "model.head_width", "model.mlp",
    "model.patch", "model.window", "model.sinks", "model.memory", "stream.passes",
    "stream.weight_dtype",
)  # fmt: skip
"""The fields that a search chooses, but for those that it is told to keep."""


class History(NamedTuple):
    """What a stream remembers of its frames: slots of each kind."""

    window: int
    sinks: int
    memory: int


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
    window: np.ndarray
    sinks: np.ndarray
    memory: np.ndarray

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
    def keys(self) -> np.ndarray:
        """Of a session's buffer."""
        remembered = (self.window + self.sinks) * self.tokens + self.memory * (self.tokens // 4)
        return self.base.model.pinned + remembered

    @property
    def parameters(self) -> np.ndarray:
        return np.broadcast_to(parameters(self), self.dim.shape)

    def where(self, mask: np.ndarray) -> Candidates:
        """Those that a mask or a list of numbers chooses."""
        return replace(self, **{name: getattr(self, name)[mask] for name in COLUMNS})

    def model(self, i: int) -> ModelConfig:
        """One of them, as a config has it."""
        sizes = {name: int(getattr(self, name)[i]) for name in COLUMNS if name in FIELDS}
        kv_heads = int(self.key_heads[i]) if self.per_kv[i] > 1 else 0
        return replace(
            self.base.model, head_width=int(self.head_dim[i]), kv_heads=kv_heads, **sizes
        )

    def config(self, i: int, name: str) -> Config:
        """One of them, ready to be trained and streamed."""
        stream = replace(self.base.stream, passes=int(self.passes[i]))
        return replace(self.base, name=name, model=self.model(i), stream=stream)


COLUMNS = tuple(field.name for field in fields(Candidates) if field.name != "base")
FIELDS = {field.name for field in fields(ModelConfig)}


def histories(base: Config, keep: Collection[str] = ()) -> list[History]:
    """All histories with at least as much memory as the base has, which is a feature that no error
    of a frame shows; of fields that are to be kept the base's value alone."""
    model = base.model
    memory = {model.memory, *(m for m in MEMORY if m >= model.memory)}
    axes = {"window": WINDOWS, "sinks": SINKS, "memory": sorted(memory)}
    kept = {name: (getattr(model, name),) for name in axes if f"model.{name}" in keep}
    return [History(*slots) for slots in product(*(axes | kept).values())]


def enumerate_all(
    base: Config, keep: Collection[str] = (), remembering: Iterable[History] | None = None
) -> Candidates:
    """Every architecture of the space that has the pictures and the precision of `base`.

    Args:
        keep: which of the fields `SEARCHED` every one has as `base` has them. So many heads of
            keys may be shared by any number of others that are searched.
        remembering: the histories; by default that of `base`.
    """
    model = base.model

    def axis(name: str, sizes: tuple) -> tuple:
        return (getattr(model, name),) if f"model.{name}" in keep else sizes

    patches = [
        p for p in axis("patch", PATCHES)
        if model.height % p == 0 and model.width % p == 0 and p % model.detail_patch == 0
    ]  # fmt: skip
    own = History(model.window, model.sinks, model.memory)
    slots = np.array(list(remembering or [own]))
    heads_of, keys_of = "model.heads" in keep, "model.kv_heads" in keep
    axes = np.meshgrid(
        axis("dim", DIMS), axis("layers", LAYERS),
        (model.head_dim,) if "model.head_width" in keep else HEAD_DIMS,
        (1.0,) if heads_of else WIDTHS, (1.0,) if "model.mlp" in keep else RATIOS, patches,
        (base.stream.passes,) if "stream.passes" in keep else PASSES,
        (1,) if keys_of else PER_KV, np.arange(len(slots)), indexing="ij", copy=False,
    )  # fmt: skip
    dim, layers, head_dim, width, ratio, patch, passes, per_kv, which = map(np.ravel, axes)
    heads = np.full(len(dim), model.heads) if heads_of else dim * width / head_dim
    mlp = np.full(len(dim), model.mlp) if "model.mlp" in keep else (dim * ratio).astype(int)
    key_heads = heads / per_kv
    if keys_of and model.kv_heads:
        key_heads = np.full(len(dim), model.kv_heads)
    per_kv = heads / key_heads
    whole = (key_heads % 1 == 0) & (per_kv % 1 == 0)
    window, sinks, memory = slots[which].T
    pooled = (model.height // patch % 2 == 0) & (model.width // patch % 2 == 0)
    found = Candidates(
        base,
        dim,
        layers,
        heads.astype(int),
        head_dim,
        mlp,
        patch,
        passes,
        per_kv.astype(int),
        window,
        sinks,
        memory,
    )
    return found.where(whole & (pooled | (memory == 0)))
