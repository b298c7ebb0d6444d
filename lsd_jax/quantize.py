"""Weights in eight bits: a matrix as integers or small floats, and a scale for each result.

A quantised leaf is a dict of `qvalue` (int8 or float8_e4m3fn, the shape of the weight) and `scale`
(float32, one where the matrix sums): `weight = qvalue * scale`. A quarter of the bytes on disk; a
model is loaded in float32 again, and kernels may read the eight bits themselves.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lsd_jax.matrices import MATRICES
from lsd_jax.ops.eight_bits import LARGEST, scaled
from lsd_jax.types import MatrixScales, StackWeights

FORMATS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
_LEAF = {"qvalue", "scale"}


@partial(jax.jit, static_argnames="form")
def quantize(params: dict, form: str) -> dict:
    """Every weight of `MATRICES` as a quantised leaf, by qwix, scaled by its largest value along
    the axes that are summed; the other leaves as they are.

    Raises ValueError for an unknown form.
    """
    import qwix

    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")

    def shrink(path, x: jax.Array) -> Any:
        matrix = MATRICES.get(tuple(key.key for key in path))
        if matrix is None:
            return x
        apart = [axis for axis in range(x.ndim) if axis not in matrix.summed]
        found = qwix.quantize(x, FORMATS[form], channelwise_axes=apart)
        return {"qvalue": found.qvalue, "scale": found.scale}

    return jax.tree_util.tree_map_with_path(shrink, params)


def dequantize(params: dict) -> dict:
    """The same parameters with quantised leaves in float32; others stay as they are."""

    def restore(leaf) -> Any:
        if isinstance(leaf, dict):
            return leaf["qvalue"].astype(jnp.float32) * leaf["scale"].astype(jnp.float32)
        return leaf

    return jax.tree.map(restore, params, is_leaf=lambda x: isinstance(x, dict) and set(x) == _LEAF)


def quantize_stack(weights: StackWeights, dtype: Any, weight_dtype: str = "int8") -> StackWeights:
    """The matrices in eight bits, with scales as `ops.eight_bits` says; the rest in `dtype`.

    Weights that were int8 before, as `quantize` makes them, move by one step at most: where the
    largest is -128, the others are rounded again.
    """

    def shrink(name: str) -> tuple[jax.Array, jax.Array]:
        matrix = getattr(weights, name).astype(jnp.float32)
        summed = MATRICES["stack", name].summed
        apart = (0, 2) if name == "qkv" else (0,)  # of a float8 matrix, those with a scale each
        among = tuple(axis for axis in range(matrix.ndim) if axis not in apart)
        axes = summed if weight_dtype == "int8" else among
        values, scale = scaled(matrix, LARGEST[weight_dtype], axes)
        if name == "qkv" and weight_dtype != "int8":  # the queries of all parts are one matrix
            scale = scale.at[:, :, :-2].set(jnp.max(scale[:, :, :-2], axis=2, keepdims=True))
            values = matrix * (1 / scale)
        values = jnp.round(values) if weight_dtype == "int8" else values
        return values.astype(weight_dtype), jnp.squeeze(scale, summed)

    found = {field.name: shrink(field.name) for field in fields(MatrixScales)}
    scales = MatrixScales(**{name: scale for name, (_, scale) in found.items()})
    matrices = {name: matrix for name, (matrix, _) in found.items()}
    rest = jax.tree.map(lambda x: x.astype(dtype), weights)
    return replace(rest, **matrices, matrix_scales=scales)
