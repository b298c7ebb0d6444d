"""`nki.collectives` under simulation: what the ranks of a group compute together."""

from __future__ import annotations

import numpy as np

from nki_kernels.sim import alu
from nki_kernels.sim.emit import numerics, record
from nki_kernels.sim.errors import BufferError, ElementCountError, LaunchError, OperationError
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import Buffer, Tensor
from nki_kernels.sim.trace import Collective, Cost


class ReplicaGroup:
    """Groups of ranks, `[[0, 1, ...]]`; one group that holds all ranks is simulated."""

    def __init__(self, groups):
        self.groups = [list(group) for group in groups]


def rank_id() -> int:
    """Our rank."""
    return current().rank


def all_reduce(srcs, dsts, replica_group, op) -> None:
    """`dst = op over ranks of src`, for each pair."""
    if op not in alu.REDUCTIONS:
        raise OperationError(f"all_reduce has no {op!r}; it has {list(alu.REDUCTIONS)}")
    for src, dst in _pairs("all_reduce", srcs, dsts, replica_group, lambda size, ranks: size):

        def combine(parts):
            stacked = np.stack([p.astype(np.float32) for p in parts])
            return alu.REDUCTIONS[op](stacked, axis=0)

        _together("all_reduce", src, dst, combine)


def all_gather(srcs, dsts, replica_group, collective_dim) -> None:
    """`dst` = the ranks' `src`s, one after the other along `collective_dim`."""
    pairs = _pairs("all_gather", srcs, dsts, replica_group, lambda size, ranks: size * ranks)
    for src, dst in pairs:
        _together("all_gather", src, dst, lambda parts: np.concatenate(parts, collective_dim))


def reduce_scatter(srcs, dsts, replica_group, collective_dim, op) -> None:
    """Each rank's share of `op over ranks of src` along `collective_dim`."""
    if op not in alu.REDUCTIONS:
        raise OperationError(f"reduce_scatter has no {op!r}; it has {list(alu.REDUCTIONS)}")
    pairs = _pairs("reduce_scatter", srcs, dsts, replica_group, lambda size, ranks: size // ranks)
    for src, dst in pairs:

        def combine(parts):
            stacked = np.stack([p.astype(np.float32) for p in parts])
            total = alu.REDUCTIONS[op](stacked, axis=0)
            return np.split(total, len(parts), collective_dim)[current().rank]

        _together("reduce_scatter", src, dst, combine)


def _pairs(op: str, srcs, dsts, group: ReplicaGroup, size_of):
    machine = current()
    if group.groups != [list(range(machine.ranks))]:
        raise LaunchError(f"{op}: groups {group.groups} are not all {machine.ranks} ranks")
    pairs = list(zip(srcs, dsts, strict=True))
    tensors = [t for pair in pairs for t in pair]
    on_chip = {t.on_chip for t in tensors}
    if len(on_chip) != 1 or any(t.buffer is Buffer.psum for t in tensors):
        raise BufferError(f"{op}: all tensors lie in HBM, or all in SBUF")
    for src, dst in pairs:
        if dst.size != size_of(src.size, machine.ranks) or src.dtype != dst.dtype:
            raise ElementCountError(f"{op}: {src!r} does not give {dst!r}")
    return pairs


def _together(op: str, src: Tensor, dst: Tensor, combine) -> None:
    machine = current()
    size = max(src.size, dst.size) * src.dtype.itemsize
    step = Collective("all_reduce_ns", size, machine.ranks)
    record(op, "sp", Cost(), (dst,), (src,), collective=step)
    if not numerics():
        return
    mine = src.read(op).copy()
    if machine.meeting is None:
        parts = [mine]
    else:
        brought = machine.meeting.exchange(machine.rank, mine)
        parts = [brought[rank] for rank in range(machine.ranks)]
    dst.write(combine(parts))
