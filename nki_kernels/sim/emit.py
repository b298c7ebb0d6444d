"""The checks that all instructions share, and the way into the trace."""

from __future__ import annotations

import functools
import inspect
from enum import Enum

import numpy as np

from nki_kernels.sim.errors import (
    ArgumentError,
    BothPsumError,
    BufferError,
    ElementCountError,
    OperandError,
    OperationError,
    PartitionCountError,
    PartitionMismatchError,
    PartitionStartError,
    PsumAccessError,
)
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import Buffer, Tensor
from nki_kernels.sim.trace import Cost, Instruction

EngineName = str


class engine(Enum):
    """Where an instruction runs; `unknown` leaves it to the compiler, here to a fixed default."""

    tensor = "pe"
    scalar = "act"
    gpsimd = "pool"
    dma = "dma"
    vector = "dve"
    sync = "sp"
    unknown = ""


_MODULES = {"language": "nl", "collectives": "nccl"}


def instruction(function):
    """Checks the arguments of a call by the function's signature.

    Raises ArgumentError where some are missing or too many, and OperandError where a parameter
    annotated `Tensor`, or `Tensor | None`, gets something else.
    """
    signature = inspect.signature(function)
    module = _MODULES.get(function.__module__.rpartition(".")[2], "nisa")
    name = f"{module}.{function.__name__}"
    parameters = signature.parameters.values()
    names = {p.name for p in parameters}
    required = {p.name for p in parameters if p.default is p.empty}
    kinds = {"Tensor": (Tensor,), "Tensor | None": (Tensor, type(None))}
    tiles = {p.name: kinds[p.annotation] for p in parameters if p.annotation in kinds}

    @functools.wraps(function)
    def checked(*args, **kwargs):
        given = kwargs
        if args or not required <= kwargs.keys() <= names:  # `bind` is slow, and kernels name all
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise ArgumentError(
                    f"{name}: {error}; it takes: {', '.join(signature.parameters)}"
                ) from None
        for tile, kind in tiles.items():
            if tile in given and not isinstance(given[tile], kind):
                raise OperandError(f"{name}: {tile} must be a tensor, got {given[tile]!r}")
        return function(*args, **kwargs)

    return checked


def emit(
    op: str,
    where: EngineName,
    cost: Cost,
    dst: tuple[Tensor, ...],
    src: tuple[Tensor, ...],
    **rest,
) -> Instruction:
    """Checks the operands of a compute instruction against its engine and adds it to the trace.

    Raises the error of the rule that is broken.
    """
    for tensor in (*dst, *src):
        if not tensor.on_chip:
            raise BufferError(f"{op}: {tensor!r} is in HBM; copy it on chip by nisa.dma_copy first")
        if where == "pool" and tensor.buffer is Buffer.psum:
            raise PsumAccessError(f"{op}: GpSimd cannot touch PSUM ({tensor!r})")
        check_partitions(op, tensor)
    starts = {
        t.start_partition for t in src
        if t.buffer is Buffer.sbuf and (t.partitions > 1 or where == "pe")
    }  # fmt: skip
    if len(starts) > 1:
        raise PartitionMismatchError(
            f"{op}: SBUF inputs start at partitions {sorted(starts)}; copy one to the other's"
        )
    return record(op, where, cost, dst, src, **rest)


def record(
    op: str,
    where: EngineName,
    cost: Cost,
    dst: tuple[Tensor, ...],
    src: tuple[Tensor, ...],
    **rest,
) -> Instruction:
    """Adds an instruction to the trace."""
    dynamic = tuple(t.dynamic for t in (*dst, *src) if t.dynamic is not None)
    return current().trace.add(
        Instruction(
            op, where, cost,
            reads=tuple(t.region() for t in (*src, *dynamic)),
            writes=tuple(t.region() for t in dst), **rest,
        )
    )  # fmt: skip


def check_partitions(op: str, tensor: Tensor) -> None:
    """The start rule. Raises PartitionCountError or PartitionStartError."""
    count, free = tensor.partitions, tensor._free
    if tensor.strides[0] % free and count > 1:
        raise PartitionCountError(f"{op}: dimension 0 of {tensor!r} is not its partitions")
    start = tensor.start_partition
    allowed = (0,) if count > 64 else (0, 64) if count > 32 else (0, 32, 64, 96)
    if start not in allowed:
        raise PartitionStartError(
            f"{op}: {tensor!r} of {count} partitions starts at {start}; may at {allowed}"
        )


def same_shape(op: str, *tensors: Tensor) -> None:
    """Equal partitions and elements of each. Raises PartitionCountError or ElementCountError."""
    first = tensors[0]
    for other in tensors[1:]:
        if other.partitions != first.partitions:
            raise PartitionCountError(f"{op}: {first!r} and {other!r} differ in partitions")
        if other.size != first.size:
            raise ElementCountError(f"{op}: {first!r} and {other!r} differ in elements")


def not_both_in_psum(op: str, a: Tensor, b: Tensor) -> None:
    if a.buffer is Buffer.psum and b.buffer is Buffer.psum:
        raise BothPsumError(f"{op}: {a!r} and {b!r} are both in PSUM; copy one to SBUF")


def choose(op: str, asked: engine, *allowed: engine) -> EngineName:
    """The engine's short name; the first allowed one for `unknown`. Raises OperationError."""
    if asked is engine.unknown:
        return allowed[0].value
    if asked not in allowed:
        names = ", ".join(e.name for e in allowed)
        raise OperationError(f"{op} does not run on engine.{asked.name}; it does on {names}")
    return asked.value


def scalar_operand(op: str, operand, data: Tensor):
    """A Python number, or a float32 tile (P, 1) of `data`'s partitions. Raises OperandError."""
    if isinstance(operand, (int, float, np.floating)) and not isinstance(operand, bool):
        return ()
    if not isinstance(operand, Tensor):
        raise OperandError(f"{op}: operand {operand!r} is neither a number nor a tile")
    if operand.dtype != np.float32 or operand.per_partition != 1:
        raise OperandError(f"{op}: operand {operand!r} must be float32 of (partitions, 1)")
    if operand.partitions != data.partitions:
        raise OperandError(f"{op}: operand {operand!r} has not the partitions of {data!r}")
    return (operand,)


def operand_value(op: str, operand, ndim: int):
    """What `scalar_operand` allowed, as something that broadcasts against `ndim` dimensions."""
    if not isinstance(operand, Tensor):
        return np.float32(operand)
    return operand.read(op).reshape(-1, *(1,) * (ndim - 1))


def numerics() -> bool:
    """Whether values are computed, or only checked and timed."""
    return current().numerics


def contiguous(tensor: Tensor) -> bool:
    """Whether a partition's elements lie side by side."""
    return tensor.run_bytes == tensor.per_partition * tensor.dtype.itemsize
