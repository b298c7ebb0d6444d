"""The megakernel on several chips, each with its share of a stack, see `lsd_jax.ops.partition`.

The chips' shares of what is added to the residual stream are added up inside the kernel; see
`schedule.Combine`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from lsd_jax.ops import partition
from lsd_jax.ops.partition import HEADS, WHOLE


def over_chips(run: Callable) -> Callable:
    """`ops.denoise_stack` of whole arguments, by a `run` of one chip's share of them on every chip
    of the mesh in use. The result `x` is the same on each, to the last bit."""

    def shared(x, weights, *others):
        eight_bits = "" if weights.matrix_scales is None else weights.up.dtype.name
        mapped = jax.shard_map(
            run,
            in_specs=partition.arguments(eight_bits),
            out_specs=(WHOLE, HEADS, HEADS),
            check_vma=False,
        )
        return mapped(x, weights, *others)

    return shared
