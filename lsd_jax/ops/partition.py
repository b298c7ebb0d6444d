"""How several chips share a denoise stack: what of which array each of them has.

Each has as many heads and MLP features as any other, and the whole residual stream (tensor
parallelism, Shoeybi et al. 2019). The axes are those of `lsd_jax.types`.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

from lsd_jax.types import KVBuffer, MatrixScales, Rope, StackWeights

AXIS = "tensor"
"""Of the mesh, along which chips share a stack."""

BATCH_AXES = ("data", "fsdp")
"""Of the mesh, along which rows of a batch are split."""

# Specs stand in the place of arrays.
WHOLE: Any = PartitionSpec()
HEADS: Any = PartitionSpec(None, None, None, AXIS)
COLUMNS: Any = PartitionSpec(None, None, AXIS)
ROWS: Any = PartitionSpec(None, AXIS)

BUFFER = KVBuffer(k=HEADS, v=HEADS, pinned=WHOLE, age=WHOLE, memory=WHOLE)


def device_kind() -> str:
    """What is traced for, as JAX calls it: the device of the mesh in use, which need not be here,
    or the default one."""
    target = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return target.device_kind if target is not None else jax.devices()[0].device_kind


def chips_here() -> int:
    """Chips along the axis `tensor` of the mesh in use, which share a stack; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def one_chip(kernel: str) -> None:
    """Raises NotImplementedError where several chips share a stack."""
    if (chips := chips_here()) > 1:
        raise NotImplementedError(f"{kernel} runs on one chip, and {chips} share this; use xla")


def weights(weight_dtype: str) -> StackWeights:
    """Of the blocks, with matrices in `int8`, in `float8_e4m3`, or in no eight bits (empty)."""
    scales = {
        "": None,
        "int8": MatrixScales(qkv=COLUMNS, out=WHOLE, up=ROWS, down=WHOLE),
        "float8_e4m3": MatrixScales(qkv=WHOLE, out=WHOLE, up=WHOLE, down=WHOLE),
    }
    return StackWeights(
        qkv=HEADS, q_scale=WHOLE, k_scale=WHOLE, out=ROWS, up=COLUMNS, down=ROWS,
        age_k=COLUMNS, age_v=COLUMNS, matrix_scales=scales[weight_dtype],
    )  # fmt: skip


def arguments(weight_dtype: str) -> tuple:
    """Of `ops.denoise_stack`."""
    return WHOLE, weights(weight_dtype), BUFFER, WHOLE, WHOLE, Rope(WHOLE, WHOLE)
