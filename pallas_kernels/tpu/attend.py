"""`ops.attend` by the kernels of `flash.py`: what they take, on which devices, and the way back.

They take queries, keys and values with heads before rows. To XLA that is another view, which it
writes as such where it computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from lsd_jax.ops.partition import AXIS, BATCH_AXES
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.flash import Tiles, flash
from pallas_kernels.tpu.plan import LANES
from pallas_kernels.tpu.planner import SPARE_BYTES, limit_bytes

HIDDEN = -1e9  # bias of a key that only fills a tile
FEWEST = LANES  # queries; fewer leave the better part of a tile empty, and XLA is as good


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
    room = limit_bytes(chip_here())
    if q.shape[1] < FEWEST:
        raise NotImplementedError(
            f"attend: {q.shape[1]} queries leave a tile of {FEWEST} half empty; use xla"
        )
    return over_devices(q, keys, values, bias, room)


def interpreted(
    q: Float[Array, "b t h k"],
    keys: Float[Array, "b s h k"],
    values: Float[Array, "b s h k"],
    bias: Float[Array, "b n"],
) -> Float[Array, "b t h k"]:
    """The same kernels, interpreted on whatever is here."""
    return over_devices(q, keys, values, bias, None)


def over_devices(q, keys, values, bias, room: int | None) -> Float[Array, "b t h k"]:
    """`alone` on each device of the mesh in use, if it is of several."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    tiles = tiles_of(q, keys, values, room)

    def run(*arguments):
        return alone(*arguments, tiles, room)

    if math.prod(sizes.values()) == 1:
        return run(q, keys, values, bias)
    axes = tuple(axis for axis in BATCH_AXES if axis in sizes)
    for what, size, parts in (
        ("rows", q.shape[0], math.prod(sizes[axis] for axis in axes)),
        ("heads of keys", q.shape[2], sizes.get(AXIS, 1)),
    ):
        if size % parts:
            raise NotImplementedError(f"attend: {size} {what} do not split over {parts} devices")
    rows = PartitionSpec(axes, None, AXIS if AXIS in sizes else None)
    mapped: Callable = jax.shard_map(
        run, in_specs=(rows, rows, rows, PartitionSpec(axes)), out_specs=rows, check_vma=False
    )
    return mapped(q, keys, values, bias)


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
    need = tiles.backward_bytes + SPARE_BYTES
    if room is not None and need > room:
        raise NotImplementedError(
            f"attend: keeps a head's {keys.shape[1]} keys in VMEM, {need / 1e6:.0f} MB of "
            f"{room / 1e6:.0f}; use a smaller window, bfloat16, or xla"
        )
    return tiles


def alone(q, keys, values, bias, tiles: Tiles, room: int | None) -> Float[Array, "b t h k"]:
    """`ops.attend` on one device; interpreted where there is no `room`."""

    def by_head(x, rows: int):  # [B, N, H, K] to [B, H, rows, K]
        return jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, rows - x.shape[1]), (0, 0)))

    s = tiles.all_keys
    bias = jnp.pad(bias, ((0, 0), (0, keys.shape[1] - bias.shape[1])))
    bias = jnp.pad(bias, ((0, 0), (0, s - keys.shape[1])), constant_values=HIDDEN)
    found = flash(
        by_head(q, tiles.all_queries), by_head(keys, s), by_head(values, s), bias,
        tiles, room, room is None,
    )  # fmt: skip
    return jnp.swapaxes(found[:, :, : q.shape[1]], 1, 2)
