"""Instructions that depend on where an element is: iota, selects, scans, shuffles, registers."""

from __future__ import annotations

import numpy as np

from nki_kernels.sim import alu
from nki_kernels.sim.elementwise import check_reduction, reduce_cmd
from nki_kernels.sim.emit import (
    emit,
    instruction,
    numerics,
    operand_value,
    same_shape,
    scalar_operand,
)
from nki_kernels.sim.errors import (
    ElementCountError,
    NotSimulatedError,
    OperandError,
    OperationError,
)
from nki_kernels.sim.language import int32, sbuf
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import BY_ENGINE, Tensor
from nki_kernels.sim.trace import Cost

reduce_cmd_ = reduce_cmd  # a parameter shares its name
FP32_MIN = float(np.finfo(np.float32).min)


@instruction
def iota(dst: Tensor, pattern, offset=0, channel_multiplier=0, name=None):
    """`offset + partition * channel_multiplier + sum(index * step)`, by `[step, number]`s."""
    values = _affine("iota", dst, pattern, offset, channel_multiplier)
    cost = Cost(dst.per_partition, ("pool_element",), ("pool_pattern_extra",))
    out = emit("iota", "pool", cost, (dst,), ())
    if numerics():
        dst.write(values)
    return out


@instruction
def affine_select(
    dst: Tensor, pattern, channel_multiplier, on_true_tile: Tensor, on_false_value,
    cmp_op="equal", offset=0, name=None,
):  # fmt: skip
    """Keeps elements whose affine position compares true with 0; puts a number elsewhere."""
    same_shape("affine_select", dst, on_true_tile)
    where = _affine("affine_select", dst, pattern, offset, channel_multiplier)
    cost = Cost(dst.per_partition, ("pool_element",), ("pool_pattern_extra",))
    out = emit("affine_select", "pool", cost, (dst,), (on_true_tile,))
    if numerics():
        kept = alu.binary(cmp_op)(where, 0).reshape(dst.shape)
        values = on_true_tile.read32("affine_select").reshape(dst.shape)
        dst.write(np.where(kept, values, np.float32(on_false_value)))
    return out


@instruction
def range_select(
    dst: Tensor, on_true_tile: Tensor, comp_op0, comp_op1, bound0: Tensor, bound1: Tensor,
    reduce_cmd=reduce_cmd.reset_reduce, reduce_res: Tensor | None = None, reduce_op="maximum",
    range_start=0, on_false_value=FP32_MIN, name=None,
):  # fmt: skip
    """Keeps element j where `(range_start + j) op0 bound0` and `op1 bound1`, bounds per row."""
    current().require_generation(3, "range_select")
    same_shape("range_select", dst, on_true_tile)
    for bound in (bound0, bound1):
        scalar_operand("range_select", bound, on_true_tile)
    if reduce_cmd is not reduce_cmd_.reset_reduce:
        raise NotSimulatedError("range_select: only reduce_cmd.reset_reduce is simulated")
    check_reduction("range_select", reduce_op, reduce_res, on_true_tile, ("maximum",))
    results = () if reduce_res is None else (reduce_res,)
    cost = Cost(dst.per_partition, ("dve_copy_fp32",))
    out = emit("range_select", "dve", cost, (dst, *results), (on_true_tile, bound0, bound1))
    if numerics():
        at = np.arange(range_start, range_start + dst.per_partition, dtype=np.float32)
        kept = np.ones((dst.partitions, dst.per_partition), bool)
        for op, bound in ((comp_op0, bound0), (comp_op1, bound1)):
            kept &= alu.binary(op)(at[None], operand_value("range_select", bound, 2))
        values = on_true_tile.read32("range_select").reshape(kept.shape)
        values = np.where(kept, values, np.float32(on_false_value))
        dst.write(values)
        if reduce_res is not None:
            reduce_res.write(values.max(axis=1))
    return out


@instruction
def tensor_tensor_scan(
    dst: Tensor, data0: Tensor, data1: Tensor, initial, op0, op1, reverse0=False, reverse1=False,
    name=None,
):  # fmt: skip
    """The recurrence `r = (data0 op0 r) op1 data1` along the free axis."""
    same_shape("tensor_tensor_scan", dst, data0, data1)
    operands = scalar_operand("tensor_tensor_scan", initial, data0)
    cost = Cost(2 * dst.per_partition, ("dve_copy_fp32",))
    out = emit("tensor_tensor_scan", "dve", cost, (dst,), (data0, data1, *operands))
    if numerics():
        a, b = (t.read32("tensor_tensor_scan").reshape(t.partitions, -1) for t in (data0, data1))
        state = np.broadcast_to(
            np.reshape(operand_value("tensor_tensor_scan", initial, 2), -1)
            if operands else np.float32(initial), (dst.partitions,)
        )  # fmt: skip
        states = []
        for i in range(a.shape[1]):
            state = alu.step(op0, a[:, i], state, reverse0)
            state = alu.step(op1, state, b[:, i], reverse1)
            states.append(state)
        dst.write(np.stack(states, axis=1))
    return out


@instruction
def tensor_partition_reduce(dst: Tensor, op, data: Tensor, name=None):
    """Reduces over partitions on GpSimd: slow; a matmul with ones is faster."""
    if op not in alu.REDUCTIONS:
        raise OperationError(f"tensor_partition_reduce has no {op!r}")
    if dst.partitions != 1 or dst.per_partition != data.per_partition:
        raise ElementCountError(f"tensor_partition_reduce: {dst!r} is not (1, ...) of {data!r}")
    cost = Cost(data.per_partition * data.partitions, ("pool_element",))
    out = emit("tensor_partition_reduce", "pool", cost, (dst,), (data,))
    if numerics():
        dst.write(alu.REDUCTIONS[op](data.read32("tensor_partition_reduce"), axis=0))
    return out


@instruction
def nc_stream_shuffle(dst: Tensor, src: Tensor, shuffle_mask, name=None):
    """Moves partitions within each quadrant of 32: `dst[i] = src[mask[i]]`; 255 keeps `dst[i]`."""
    if len(shuffle_mask) != 32 or any(i != 255 and not 0 <= i < 32 for i in shuffle_mask):
        raise OperandError("nc_stream_shuffle: the mask is 32 numbers below 32, or 255")
    same_shape("nc_stream_shuffle", dst, src)
    keeps = (dst,) if 255 in shuffle_mask else ()
    cost = Cost(dst.per_partition, ("dve_copy_fp32",))
    out = emit("nc_stream_shuffle", "dve", cost, (dst,), (src, *keeps))
    if numerics():
        old = dst.read("nc_stream_shuffle").copy() if keeps else np.empty(dst.shape, dst.dtype)
        source = src.read("nc_stream_shuffle").reshape(dst.shape)
        for start in range(0, dst.partitions, 32):
            for i, j in enumerate(shuffle_mask):
                if j != 255 and start + i < dst.partitions:
                    if start + j >= dst.partitions:
                        raise ElementCountError("nc_stream_shuffle: the mask leaves the tile")
                    old[start + i] = source[start + j]
        dst.write(old)
    return out


@instruction
def register_alloc(x=None) -> Tensor:
    """A scalar register, optionally loaded from a (1, 1) tile or a number."""
    register = current().new((1, 1), int32, sbuf, "register")
    if isinstance(x, Tensor):
        register_load(register, x)
    elif x is not None:
        register_move(register, x)
    return register


@instruction
def register_move(dst: Tensor, src, name=None) -> None:
    """`dst = src`, a register or a number."""
    if dst.size != 1 or (isinstance(src, Tensor) and src.size != 1):
        raise ElementCountError(f"register_move moves one element; {src!r} to {dst!r}")
    if numerics():
        value = src.read("register_move") if isinstance(src, Tensor) else np.full((1, 1), src)
        dst.write(np.asarray(value, np.int32), BY_ENGINE)


@instruction
def register_load(dst: Tensor, src: Tensor, name=None):
    """A register from a (1, 1) tile."""
    return _through_register("register_load", dst, src)


@instruction
def register_store(dst: Tensor, src: Tensor, name=None):
    """A (1, 1) tile from a register."""
    return _through_register("register_store", dst, src)


def _through_register(op: str, dst: Tensor, src: Tensor):
    if dst.size != 1 or src.size != 1:
        raise ElementCountError(f"{op} moves one element; {src!r} to {dst!r}")
    out = emit(op, "sp", Cost(), (dst,), (src,))
    if numerics():
        dst.write(src.read(op))
    return out


def _affine(op: str, dst: Tensor, pattern, offset: int, channel_multiplier: int) -> np.ndarray:
    numbers = [n for _, n in pattern]
    if int(np.prod(numbers)) != dst.per_partition:
        raise ElementCountError(f"{op}: pattern {pattern} has not the elements of {dst!r}")
    free = np.zeros(numbers, np.float32)
    for axis, (step, n) in enumerate(pattern):
        shape = [1] * len(numbers)
        shape[axis] = n
        free = free + step * np.arange(n, dtype=np.float32).reshape(shape)
    rows = offset + channel_multiplier * np.arange(dst.partitions, dtype=np.float32)
    return rows[:, None] + free.reshape(1, -1)
