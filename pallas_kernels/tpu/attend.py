"""`ops.attend` by the kernels of `flash.py`: what they take, on which devices, and the way back.

They take queries, keys and values with heads before rows. To XLA that is another view, which it
writes as such where it computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lsd_jax.ops.dispatch import gradients_wanted
from lsd_jax.ops.partition import AXIS, BATCH_AXES
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.flash import Tiles, flash
from pallas_kernels.tpu.loops import Interpret
from pallas_kernels.tpu.plan import LANES
from pallas_kernels.tpu.planner import limit_bytes

HIDDEN = -1e9  # bias of a key that only fills a tile
FEWEST = LANES  # queries; fewer leave half of a tile empty, and XLA is as good
FITTING = 2  # one part in so many of VMEM: where all logits fit into it, XLA is as fast forward


def attend(
    q: Float[Array, "b t h k"],
    keys: Float[Array, "b s h k"],
    values: Float[Array, "b s h k"],
    bias: Float[Array, "b n"],
) -> Float[Array, "b t h k"]:
    """`ops.attend` on the TPU that this is traced for, or on those of the mesh in use, each with
    its sessions and heads. It can be differentiated.

    Raises NotImplementedError where that is none, or the shape is not one for it.
    """
    chip = chip_here()
    if q.shape[1] < FEWEST:
        raise NotImplementedError(
            f"attend: {q.shape[1]} queries leave a tile of {FEWEST} half empty; use xla"
        )
    logits = 4 * math.prod(q.shape[:3]) * keys.shape[1] // math.prod(parts_here())
    if not gradients_wanted() and logits <= chip["vmem_bytes"] / FITTING:
        raise NotImplementedError(
            f"attend: {logits / 1e6:.1f} MB of logits fit into VMEM, where XLA is as fast; use xla"
        )
    return over_devices(q, keys, values, bias, limit_bytes(chip))


def interpreted(
    q: Float[Array, "b t h k"],
    keys: Float[Array, "b s h k"],
    values: Float[Array, "b s h k"],
    bias: Float[Array, "b n"],
) -> Float[Array, "b t h k"]:
    """The same kernels, interpreted on whatever is here."""
    return over_devices(q, keys, values, bias, None)


def over_devices(q, keys, values, bias, room: int | None) -> Float[Array, "b t h k"]:
    """`alone` on each device of the mesh in use, if it is of several; interpreted where there is no
    `room`."""
    tiles = tiles_of(q, keys, values, room)

    def run(q, keys, values, bias):
        return alone(q, keys, values, bias, tiles, room is None)

    by_rows, by_heads = parts_here()
    if by_rows * by_heads == 1:
        return run(q, keys, values, bias)
    for what, size, parts in (
        ("rows", q.shape[0], by_rows),
        ("heads of keys", q.shape[2], by_heads),
    ):
        if size % parts:
            raise NotImplementedError(f"attend: {size} {what} do not split over {parts} devices")
    mesh = jax.sharding.get_abstract_mesh().shape
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh)
    rows = PartitionSpec(axes, None, AXIS if AXIS in mesh else None)
    mapped: Callable = jax.shard_map(
        run, in_specs=(rows, rows, rows, PartitionSpec(axes)), out_specs=rows, check_vma=False
    )
    return mapped(q, keys, values, bias)


def parts_here() -> tuple[int, int]:
    """Into how many parts the mesh in use splits rows, and heads."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES), sizes.get(AXIS, 1)


def tiles_of(q: jax.Array, keys: jax.Array, values: jax.Array, room: int | None) -> Tiles:
    """The tiles for these arguments, in so many bytes of VMEM, if that is bounded.

    Raises NotImplementedError, with the remedy, for what the kernels do not take.
    """
    dtypes = {x.dtype.name for x in (q, keys, values)}
    if len(dtypes) > 1 or not dtypes <= {"bfloat16", "float32"}:
        raise NotImplementedError(
            f"attend: takes bfloat16 or float32, not {', '.join(sorted(dtypes))}; cast to one"
        )
    if q.shape[3] % LANES:
        raise NotImplementedError(
            f"attend: takes heads of a multiple of {LANES} features, not {q.shape[3]}; use xla"
        )
    tiles = Tiles.of(q.shape[1], keys.shape[1], q.shape[3], q.dtype.name)
    need = tiles.backward_bytes
    if room is not None and need > room:
        raise NotImplementedError(
            f"attend: keeps a head's {keys.shape[1]} keys in VMEM, {need / 1e6:.0f} MB of "
            f"{room / 1e6:.0f}; use a smaller window, bfloat16, or xla"
        )
    return tiles


def alone(q, keys, values, bias, tiles: Tiles, interpret: Interpret) -> Float[Array, "b t h k"]:
    """`ops.attend` on one device."""

    def by_head(x, rows: int, mode: str):  # [B, N, H, K] to [B, H, rows, K]
        more = ((0, 0), (0, 0), (0, rows - x.shape[1]), (0, 0))
        return jnp.pad(jnp.swapaxes(x, 1, 2), more, mode)

    s = tiles.all_keys
    bias = jnp.pad(bias, ((0, 0), (0, keys.shape[1] - bias.shape[1])))
    bias = jnp.pad(bias, ((0, 0), (0, s - keys.shape[1])), constant_values=HIDDEN)
    k, v = (by_head(x, s, "constant") for x in (keys, values))
    # Filled up by queries as long as real ones: of zeros, every power of 2 might vanish.
    found: Any = flash(by_head(q, tiles.all_queries, "edge"), k, v, bias, tiles, interpret)
    return jnp.swapaxes(found, 1, 2)[:, : q.shape[1]]
