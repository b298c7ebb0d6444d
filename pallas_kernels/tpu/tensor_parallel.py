"""The megakernel on several chips: each has a share of the heads and of the MLP features, and the
whole residual stream (tensor parallelism, Shoeybi et al. 2019).

The chips' shares of what is added to the residual stream are added up inside the kernel; see
`schedule.Combine`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lsd_jax.types import KVBuffer, MatrixScales, Rope, StackWeights
from pallas_kernels.tpu.kernel import AXIS

# Specs stand in the place of arrays.
WHOLE: Any = PartitionSpec()
HEADS: Any = PartitionSpec(None, None, None, AXIS)
COLUMNS: Any = PartitionSpec(None, None, AXIS)
ROWS: Any = PartitionSpec(None, AXIS)


def chips_here() -> int:
    """Chips along the axis `tensor` of the mesh in use, which share a stack; 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(AXIS, 1)


def specs(eight_bits: bool) -> tuple:
    """Where the arguments of `ops.denoise_stack` lie on the mesh, weights in eight bits or not."""
    scales = MatrixScales(qkv=COLUMNS, out=WHOLE, up=ROWS, down=WHOLE)
    weights = StackWeights(
        qkv=HEADS, q_scale=WHOLE, k_scale=WHOLE, out=ROWS, up=COLUMNS, down=ROWS,
        age_k=COLUMNS, age_v=COLUMNS, matrix_scales=scales if eight_bits else None,
    )  # fmt: skip
    kv = KVBuffer(k=HEADS, v=HEADS, pinned=WHOLE, age=WHOLE, memory=WHOLE)
    return WHOLE, weights, kv, WHOLE, WHOLE, Rope(WHOLE, WHOLE)


def over_chips(run: Callable) -> Callable:
    """`ops.denoise_stack` of whole arguments, by a `run` of one chip's share of them on every chip
    of the mesh in use. The result `x` is the same on each, to the last bit."""

    def shared(x, weights, *others):
        arguments = specs(weights.matrix_scales is not None)
        mapped = jax.shard_map(
            run, in_specs=arguments, out_specs=(WHOLE, HEADS, HEADS), check_vma=False
        )
        return mapped(x, weights, *others)

    return shared
