"""Removing layers, heads and MLP channels: a smaller model, with nothing masked when it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsd_jax.config import ModelConfig
from lsd_jax.model import abstract_model
from lsd_jax.prune.score import Scores

PRUNED = ("layers", "heads", "mlp")


def cut(
    config: ModelConfig, params: dict, scores: Scores, keep: dict[str, int]
) -> tuple[ModelConfig, dict]:
    """The model with only the most important `keep["layers"]` layers and, in each of them, the
    most important `keep["heads"]` heads and `keep["mlp"]` channels; what is not named stays. Heads
    that share keys and values go together.

    Which axis of which weight that touches, the names of their axes say. Raises ValueError as
    `check` does.
    """
    check(config, keep)
    counts = {name: getattr(config, name) for name in PRUNED} | keep
    counts["heads"] //= config.per_kv
    kept = {name: _best(getattr(scores, name), count) for name, count in counts.items()}
    axes = nnx.to_pure_dict(nnx.map_state(lambda _, p: Axes(p.axes), _state(config)))

    def shrink(x, names: Axes):
        x = np.asarray(x)
        for axis, name in enumerate(names):
            if name in ("heads", "mlp"):
                index = np.expand_dims(kept[name], [i for i in range(1, x.ndim) if i != axis])
                x = np.take_along_axis(x, index, axis)
        if names and names[0] == "layer":
            x = x[kept["layers"]]
        return jnp.asarray(x)

    kv_heads = counts["heads"] if config.kv_heads else 0
    smaller = replace(config, head_width=config.head_dim, kv_heads=kv_heads, **keep)
    return smaller, jax.tree.map(shrink, params, axes)


def check(config: ModelConfig, keep: dict[str, int]) -> None:
    """Raises ValueError for a part that cannot be pruned, and for more than there is."""
    for name, count in keep.items():
        if name not in PRUNED:
            raise ValueError(f"cannot prune {name!r}; prune {', '.join(PRUNED)}")
        held = getattr(config, name)
        if not 1 <= count <= held:
            raise ValueError(f"keep {name}={count}: give 1 to {held}, which is what there is")
    if keep.get("heads", 0) % config.per_kv:
        raise ValueError(
            f"keep heads={keep['heads']}: {config.per_kv} of them at a time share keys and values; "
            f"give a multiple of {config.per_kv}"
        )


class Axes(tuple[Any, ...]):
    """Names of the axes of one weight; a leaf of a tree, which a plain tuple is not."""


def _state(config: ModelConfig):
    return nnx.state(abstract_model(config), nnx.Param)


def _best(scores: jax.Array, count: int) -> np.ndarray:
    """Indices of the highest scores along the last axis, in their order."""
    order = np.argsort(-np.asarray(scores), axis=-1, kind="stable")
    return np.sort(order[..., :count], axis=-1)
