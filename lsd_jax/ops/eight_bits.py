"""Numbers in eight bits: what small matrices are made of, and what they are multiplied by.

`int8` takes a scale for each column of a matrix, and for each row of what it is multiplied by.
`float8_e4m3` (largest 240) keeps three bits of any size from 2^-6 on, so that one scale serves a
matrix, and what it is multiplied by needs none: it follows a norm, a softmax or a GELU.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

LARGEST = {"int8": 127, "float8_e4m3": 240}
SMALLEST = 1e-30  # of the largest values that are scaled; keeps reciprocals finite


def eight_bits(x: jax.Array, axes: int | tuple[int, ...] = -1) -> tuple[jax.Array, jax.Array]:
    """Whole numbers of at most 127, still float32, and what they are to be multiplied by: one for
    all values along `axes`, which stay as axes of 1."""
    values, scale = scaled(x, LARGEST["int8"], axes)
    return jnp.round(values), scale


def scaled(x: jax.Array, most: int, axes: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`x / scale` and the scale, such that the largest along `axes` is `most`."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.maximum(largest, SMALLEST) * (1 / most)
    return x * (1 / scale), scale


def multiplier(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array | float]:
    """What a matrix of that dtype is multiplied by for `x [B, T, ...]`, in `x`'s dtype, and what
    to multiply the results by, `[B, T]` or a number."""
    if dtype != jnp.int8:
        return x.astype(dtype).astype(x.dtype), 1.0
    values, row = eight_bits(x.astype(jnp.float32), tuple(range(2, x.ndim)))
    return values.astype(x.dtype), row.reshape(x.shape[:2])
