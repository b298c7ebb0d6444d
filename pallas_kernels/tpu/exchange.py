"""Between the chips that share a stack: their shares of what is added to the residual stream are
offered to the chips that add them up, and the sums told to all.

Nothing is written over that is still wanted: a chip offers again only when it was told all sums of
the last time, and a sum is told only when its shares were read.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lsd_jax.ops.partition import AXIS
from pallas_kernels.tpu import cores, schedule
from pallas_kernels.tpu.loops import Index, Rows, aligned

if TYPE_CHECKING:
    from pallas_kernels.tpu.kernel import Machine


def meet(machine: Machine, node: schedule.Meet, layer: Index, tile: Index) -> None:
    here, barrier = jax.lax.axis_index(AXIS), pltpu.get_barrier_semaphore()
    for other in others(machine, here):
        pl.semaphore_signal(barrier, 1, device_id={AXIS: other})
    pl.semaphore_wait(barrier, machine.plan.chips - 1)


def add(machine: Machine, part: schedule.Part, rows: Rows, share: jax.Array, tile: int) -> None:
    """Adds to the residual stream, or to this chip's or core's share of what is to be added; after
    the last tile it starts on its way to those that add it up."""
    at, piece = machine.at, machine.plan.piece
    tiles = machine.plan.groups if part == "attention" else machine.plan.chunks
    if machine.plan.sharers == 1:
        at.x[rows] += share
        return
    share = share + at.share[rows] if tile else share
    if tile < tiles - 1:
        at.share[rows] = share
        return
    at.offered[rows] = share.astype(at.offered.dtype)
    if machine.plan.cores > 1:
        cores.offer(machine, part, rows).start()
        return
    here = jax.lax.axis_index(AXIS)
    for first in range(0, rows.size, piece):
        offered = pl.ds(aligned(rows.start + first, piece), piece)
        owner = offered.start // machine.plan.owned

        @pl.when(owner != here)
        def _(offered=offered, owner=owner):
            offer(machine, offered, owner).start()


def offer(machine: Machine, rows: Rows, owner: Index) -> Any:
    """The copy of this chip's share in some rows to the inbox of the chip that owns them."""
    at, here = machine.at, jax.lax.axis_index(AXIS)
    inside = pl.ds(aligned(rows.start % machine.plan.owned, rows.size), rows.size)
    return pltpu.make_async_remote_copy(
        at.offered.at[rows], at.inbox.at[here, inside], at.sent.at[0, owner],
        at.received.at[0, here], device_id={AXIS: owner},
    )  # fmt: skip


def tell(machine: Machine, owner: Index, other: Index) -> Any:
    """The copy of an owner's sums to another chip."""
    at, rows = machine.at, rows_of(machine, owner)
    return pltpu.make_async_remote_copy(
        at.total.at[rows], at.total.at[rows], at.sent.at[1, other],
        at.received.at[1, owner], device_id={AXIS: other},
    )  # fmt: skip


def combine(machine: Machine, node: schedule.Combine, layer: Index, tile: Index) -> None:
    if machine.plan.cores > 1:
        cores.combine(machine, node.part)
        return
    at, here = machine.at, jax.lax.axis_index(AXIS)
    mine = rows_of(machine, here)
    at.inbox[here] = at.offered[mine]
    for other in others(machine, here):
        received(machine, 0, other)
    # In the order of the chips, for each of them the same.
    shares = (at.inbox[chip].astype(jnp.float32) for chip in range(machine.plan.chips))
    at.total[mine] = functools.reduce(jnp.add, shares).astype(at.total.dtype)
    for other in others(machine, here):
        tell(machine, here, other).start()
    for other in others(machine, here):
        received(machine, 1, other)

    def block(rows: Rows, session: Index) -> None:
        at.x[rows] += at.total[rows].astype(jnp.float32)

    machine.for_rows(block)
    for other in others(machine, here):
        offer(machine, rows_of(machine, other), other).wait_send()
        tell(machine, here, other).wait_send()


def received(machine: Machine, what: int, other: Index) -> None:
    """Waits for all that another chip offers to this one, or tells it."""
    at, rows = machine.at, rows_of(machine, other)
    place = at.inbox.at[other] if what == 0 else at.total.at[rows]
    pltpu.make_async_copy(place, place, at.received.at[what, other]).wait()


def others(machine: Machine, here: Index) -> list[Index]:
    """All other chips, the next one first: so no two of them write to the same one at once."""
    return [(here + step) % machine.plan.chips for step in range(1, machine.plan.chips)]


def rows_of(machine: Machine, chip: Index) -> Rows:
    """The rows that a chip adds up."""
    return pl.ds(aligned(chip * machine.plan.owned, machine.plan.owned), machine.plan.owned)
