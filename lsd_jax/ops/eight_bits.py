"""Numbers in eight bits: what int8 matrices are made of, and what they are multiplied by."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LARGEST = 127
SMALLEST = 1e-30  # of the largest values that are scaled; keeps reciprocals finite


def eight_bits(x: jax.Array, axes: int | tuple[int, ...] = -1) -> tuple[jax.Array, jax.Array]:
    """Whole numbers of at most 127, still float32, and what they are to be multiplied by: one for
    all values along `axes`, which stay as axes of 1."""
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.maximum(largest, SMALLEST) * (1 / LARGEST)
    return jnp.round(x * (1 / scale)), scale
