"""`nki.collectives` under simulation: what the ranks of a group compute together."""

from __future__ import annotations

import numpy as np

from nki_kernels.sim import alu
from nki_kernels.sim.emit import instruction, numerics, record
from nki_kernels.sim.errors import (
    BufferError,
    ElementCountError,
    LaunchError,
    NotSimulatedError,
    OperandError,
    OperationError,
    ReduceAxisError,
)
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import Buffer, Tensor
from nki_kernels.sim.trace import Collective, Cost

_REDUCTIONS = {name: alu.REDUCTIONS[name] for name in ("add", "minimum", "maximum")}


class ReplicaGroup:
    """Groups of ranks, `[[0, 1, ...]]`; one group that holds all ranks is simulated."""

    def __init__(self, groups):
        self.groups = [list(group) for group in groups]


def rank_id() -> int:
    """Our rank."""
    return current().rank


@instruction
def all_reduce(srcs, dsts, replica_group, op, priority=None, name=None) -> None:
    """`dst = op over ranks of src`, for each pair."""
    _check_operation("all_reduce", op, priority)
    for src, dst in _pairs("all_reduce", srcs, dsts, replica_group, lambda size, ranks: size):

        def combine(parts):
            stacked = np.stack([p.astype(np.float32) for p in parts])
            return _REDUCTIONS[op](stacked, axis=0)

        _together("all_reduce", src, dst, combine)


@instruction
def all_gather(srcs, dsts, replica_group, collective_dim, priority=None, name=None) -> None:
    """`dst` = the ranks' `src`s, one after the other along `collective_dim`: 0, or 1 in SBUF."""
    _check_operation("all_gather", None, priority)
    pairs = _pairs("all_gather", srcs, dsts, replica_group, lambda size, ranks: size * ranks)
    _check_dim("all_gather", collective_dim, (0, 1) if pairs[0][0].on_chip else (0,))
    for src, dst in pairs:
        _together("all_gather", src, dst, lambda parts: np.concatenate(parts, collective_dim))


@instruction
def reduce_scatter(srcs, dsts, replica_group, collective_dim, op, priority=None, name=None) -> None:
    """Each rank's share of `op over ranks of src` along `collective_dim`, which is 0."""
    _check_operation("reduce_scatter", op, priority)
    _check_dim("reduce_scatter", collective_dim, (0,))
    pairs = _pairs("reduce_scatter", srcs, dsts, replica_group, lambda size, ranks: size // ranks)
    for src, dst in pairs:

        def combine(parts):
            stacked = np.stack([p.astype(np.float32) for p in parts])
            total = _REDUCTIONS[op](stacked, axis=0)
            return np.split(total, len(parts), collective_dim)[current().rank]

        _together("reduce_scatter", src, dst, combine)


@instruction
def all_to_all(srcs, dsts, replica_group, collective_dim, priority=None, name=None) -> None:
    """Part r of each rank's `src` goes to rank r, whose `dst` has them in the order of the ranks.
    Tensors lie in HBM, and are split along dimension 0."""
    _check_operation("all_to_all", None, priority)
    _check_dim("all_to_all", collective_dim, (0,))
    pairs = _pairs("all_to_all", srcs, dsts, replica_group, lambda size, ranks: size)
    for src, dst in pairs:
        if src.on_chip:
            raise BufferError(f"all_to_all: {src!r} must be in HBM")
        if src.shape[0] % current().ranks:
            raise ElementCountError(f"all_to_all: {src!r} does not split over the ranks")

        def combine(parts):
            ours = [np.split(p, len(parts))[current().rank] for p in parts]
            return np.concatenate(ours)

        _together("all_to_all", src, dst, combine)


@instruction
def collective_permute(srcs, dsts, source_target_pairs, priority=None, name=None) -> None:
    """Rank `source`'s tensor goes to rank `target`, for each pair: one tensor, in HBM.

    Each rank has to be a source once and a target once; what others would get is not documented.
    """
    _check_operation("collective_permute", None, priority)
    ranks = list(range(current().ranks))
    if any(sorted(pair[end] for pair in source_target_pairs) != ranks for end in (0, 1)):
        raise NotSimulatedError(f"collective_permute: {source_target_pairs} leave ranks out")
    pairs = _pairs("collective_permute", srcs, dsts, ReplicaGroup([ranks]), lambda size, _: size)
    if len(pairs) != 1 or pairs[0][0].on_chip:
        raise BufferError(f"collective_permute takes one tensor, in HBM; not {srcs}")
    source = {to: of for of, to in source_target_pairs}
    _together("collective_permute", *pairs[0], lambda parts: parts[source[current().rank]])


def _check_operation(name: str, op, priority) -> None:
    if op is not None and op not in _REDUCTIONS:
        raise OperationError(f"{name} has no {op!r}; it has {list(_REDUCTIONS)}")
    if priority is not None:
        current().require_generation(4, f"{name} with a priority")


def _check_dim(name: str, dim: int, allowed: tuple[int, ...]) -> None:
    if dim not in allowed:
        raise ReduceAxisError(f"{name} works along dimension {allowed} here, not {dim}")


def _pairs(op: str, srcs, dsts, group: ReplicaGroup, size_of):
    machine = current()
    if group.groups != [list(range(machine.ranks))]:
        raise LaunchError(f"{op}: groups {group.groups} are not all {machine.ranks} ranks")
    if len(srcs) != len(dsts) or not srcs:
        raise ElementCountError(f"{op}: {len(srcs)} sources and {len(dsts)} destinations")
    pairs = list(zip(srcs, dsts, strict=True))
    tensors = [t for pair in pairs for t in pair]
    if not all(isinstance(t, Tensor) for t in tensors):
        raise OperandError(f"{op}: srcs and dsts are lists of tensors, not {tensors}")
    on_chip = {t.on_chip for t in tensors}
    if len(on_chip) != 1 or any(t.buffer is Buffer.psum for t in tensors):
        raise BufferError(f"{op}: all tensors lie in HBM, or all in SBUF")
    if len(pairs) > 1 and on_chip == {True}:
        raise BufferError(f"{op}: several tensors at once go from HBM only")
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
