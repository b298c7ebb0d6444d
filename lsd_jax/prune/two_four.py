"""2:4 sparsity: of every four weights along a matrix's rows two are zero, which chips with sparse
matrix units run at up to twice the rate (Mishra et al. 2021)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from lsd_jax.matrices import MATRICES

SUMMED = {path[1]: matrix.summed for path, matrix in MATRICES.items() if path[0] == "stack"}
"""The matrices of the blocks and, in each, the axes along which products are summed."""


def sparsify(params: dict) -> dict:
    """The parameters with the smaller two of each four weights of the blocks' matrices zero."""
    stack = {
        name: jnp.where(pattern(x, SUMMED[name]), x, 0) if name in SUMMED else x
        for name, x in params["stack"].items()
    }
    return params | {"stack": stack}


def pattern(x: Array, summed: tuple[int, ...]) -> Bool[Array, "..."]:
    """Which weights stay: in each group of four neighbours along `summed`, the larger two; of
    equals, the first.

    Raises ValueError where that length is no multiple of four.
    """
    moved = jnp.moveaxis(x, summed, range(-len(summed), 0))
    flat = moved.reshape(*moved.shape[: -len(summed)], -1)
    if flat.shape[-1] % 4:
        raise ValueError(f"{flat.shape[-1]} weights do not split into groups of four")
    groups = jnp.abs(flat).reshape(*flat.shape[:-1], -1, 4)
    rank = jnp.argsort(jnp.argsort(-groups, axis=-1, stable=True), axis=-1)
    kept = (rank < 2).reshape(moved.shape)
    return jnp.moveaxis(kept, range(-len(summed), 0), summed)


def keep_zeros(changes: Any, params: dict) -> dict:
    """An update that leaves what is zero in the blocks' matrices as it is."""
    stack = {
        name: jnp.where(params["stack"][name] == 0, 0, x) if name in SUMMED else x
        for name, x in changes["stack"].items()
    }
    return changes | {"stack": stack}
