"""VectorE, ScalarE and GpSimd: element by element, with reductions along the free axes."""

from __future__ import annotations

import math
from enum import Enum

import numpy as np

from nki_kernels.sim import alu
from nki_kernels.sim.emit import (
    choose,
    contiguous,
    emit,
    engine,
    instruction,
    not_both_in_psum,
    numerics,
    operand_value,
    same_shape,
    scalar_operand,
)
from nki_kernels.sim.errors import (
    DtypeError,
    ElementCountError,
    NotSimulatedError,
    OperationError,
    ReduceAxisError,
)
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import Buffer, Tensor
from nki_kernels.sim.trace import Cost

_UNKNOWN = engine.unknown


class reduce_cmd(Enum):
    """What happens to the register that a reduction accumulates in."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


def _narrow(*tensors: Tensor) -> bool:
    return all(t.dtype.itemsize <= 2 for t in tensors)


def _in_sbuf(*tensors: Tensor) -> bool:
    return all(t.buffer is Buffer.sbuf and contiguous(t) for t in tensors)


def _cost(where: str, kind: str, n: int, *tensors: Tensor, op: str = "") -> Cost:
    """Cost of one pass over n elements a partition; `kind` is "copy" or "tt" (two tensors)."""
    if where == "act":
        return Cost(n, ("act_element",))
    if where == "pool":
        slow = op in alu.TRANSCENDENTAL
        return Cost(n, ("pool_transcendental" if slow else "pool_element",))
    if kind == "tt":
        fast = _narrow(*tensors) and _in_sbuf(*tensors) and op in ("add", "subtract", "multiply")
        return Cost(n, ("dve_tt_bf16" if fast else "dve_tt_fp32",))
    if not _narrow(*tensors):
        return Cost(n, ("dve_copy_fp32",))
    return Cost(n, ("dve_copy_bf16" if _in_sbuf(*tensors) else "dve_copy_bf16_slow",))


@instruction
def tensor_copy(dst: Tensor, src: Tensor, engine=_UNKNOWN, name=None):
    """`dst = src`, cast; the way out of PSUM."""
    where = choose("tensor_copy", engine, *_ELEMENTWISE)
    same_shape("tensor_copy", dst, src)
    cost = _cost(where, "copy", src.per_partition, dst, src)
    out = emit("tensor_copy", where, cost, (dst,), (src,))
    if numerics():
        dst.write(src.read("tensor_copy"))
    return out


@instruction
def memset(dst: Tensor, value, engine=_UNKNOWN, name=None):
    """`dst = value`."""
    where = choose("memset", engine, *_VECTOR_POOL)
    out = emit("memset", where, _cost(where, "copy", dst.per_partition, dst), (dst,), ())
    if numerics():
        dst.write(np.full(dst.shape, value, np.float32))
    return out


@instruction
def tensor_tensor(dst: Tensor, data1: Tensor, data2: Tensor, op, engine=_UNKNOWN, name=None):
    """`dst = data1 op data2`, in float32 but for bits and for 32-bit integers on GpSimd.

    Where all three are int32 or uint32 and none lies in PSUM, GpSimd is the default, and computes
    exactly, as integers that wrap; `engine.vector` computes the same through float32. Bitwise
    operations run on VectorE alone, `power` on GpSimd alone, through float32.
    """
    tensors = (dst, data1, data2)
    bits = op in alu.BITWISE
    function = alu.BITWISE[op] if bits else alu.binary(op)
    if bits:
        _check_bits("tensor_tensor", *tensors)
    words = op != "power" and all(t.dtype.kind in "iu" and t.dtype.itemsize == 4 for t in tensors)
    in_psum = any(t.buffer is Buffer.psum for t in tensors)
    if bits:
        engines = (engine_.vector,)
    elif op == "power":
        engines = (engine_.gpsimd,)
    else:
        engines = _VECTOR_POOL[::-1] if words and not in_psum else _VECTOR_POOL
    where = choose("tensor_tensor", engine, *engines)
    same_shape("tensor_tensor", *tensors)
    not_both_in_psum("tensor_tensor", data1, data2)
    cost = _cost(where, "tt", dst.per_partition, dst, data1, data2, op=op)
    out = emit("tensor_tensor", where, cost, (dst,), (data1, data2))
    if numerics():
        exact = bits or (words and where == "pool")
        a, b = (t.read("tensor_tensor").reshape(dst.shape) for t in (data1, data2))
        if exact:
            dst.write(function(a.astype(np.int64), b.astype(np.int64)).astype(dst.dtype))
        else:
            dst.write(function(a.astype(np.float32), b.astype(np.float32)).astype(np.float32))
    return out


@instruction
def tensor_scalar(
    dst: Tensor, data: Tensor, op0, operand0, reverse0=False, op1=None, operand1=None,
    reverse1=False, engine=_UNKNOWN, name=None,
):  # fmt: skip
    """`dst = (data op0 operand0) op1 operand1`, operands one per partition."""
    steps = [(op0, operand0, reverse0)] + ([(op1, operand1, reverse1)] if op1 else [])
    if len({op in alu.BITS for op, _, _ in steps}) > 1:
        raise OperationError(f"tensor_scalar: {op0} and {op1} are not of one class")
    if op0 in alu.BITS:
        _check_bits("tensor_scalar", dst, data)
    engines = (engine_.vector,) if op0 in alu.BITS else _ELEMENTWISE
    where = choose("tensor_scalar", engine, *engines)
    if where == "act" and [str(op) for op, _, _ in steps] not in (
        ["multiply", "add"], ["multiply"], ["add"],
    ):  # fmt: skip
        raise OperationError(f"tensor_scalar: ScalarE multiplies, then adds; not {op0}, {op1}")
    same_shape("tensor_scalar", dst, data)
    operands = [t for _, o, _ in steps for t in scalar_operand("tensor_scalar", o, data)]
    slow = next((op for op, _, _ in steps if op in alu.TRANSCENDENTAL), op0)
    cost = _cost(where, "copy", dst.per_partition, dst, data, op=slow)
    out = emit("tensor_scalar", where, cost, (dst,), (data, *operands))
    if numerics():
        dst.write(_steps("tensor_scalar", data, steps))
    return out


@instruction
def scalar_tensor_tensor(
    dst: Tensor, data: Tensor, op0, operand0, op1, operand1: Tensor, reverse0=False,
    reverse1=False, name=None,
):  # fmt: skip
    """`dst = (data op0 operand0) op1 operand1`, the second operand a whole tile."""
    same_shape("scalar_tensor_tensor", dst, data, operand1)
    not_both_in_psum("scalar_tensor_tensor", data, operand1)
    operands = scalar_operand("scalar_tensor_tensor", operand0, data)
    cost = Cost(dst.per_partition, ("dve_tt_fp32",))
    out = emit("scalar_tensor_tensor", "dve", cost, (dst,), (data, operand1, *operands))
    if numerics():
        first = _steps("scalar_tensor_tensor", data, [(op0, operand0, reverse0)])
        second = operand1.read32("scalar_tensor_tensor").reshape(first.shape)
        dst.write(alu.step(op1, first, second, reverse1))
    return out


@instruction
def tensor_reduce(dst: Tensor, op, data: Tensor, axis, negate=False, keepdims=False, name=None):
    """Reduces trailing free axes."""
    axes = sorted(a % data.ndim for a in ((axis,) if isinstance(axis, int) else axis))
    if 0 in axes or axes != list(range(data.ndim - len(axes), data.ndim)):
        raise ReduceAxisError(f"tensor_reduce: axes {axis} of {data!r} are not its last free ones")
    if op not in alu.REDUCTIONS:
        raise OperationError(f"tensor_reduce has no {op!r}; it has {list(alu.REDUCTIONS)}")
    kept = math.prod(data.shape[: data.ndim - len(axes)])
    if dst.size != kept or dst.partitions != data.partitions:
        raise ElementCountError(f"tensor_reduce: {dst!r} does not hold {kept} results")
    rate = "dve_reduce_bf16" if _narrow(data) and op in ("add", "maximum") else "dve_copy_fp32"
    out = emit("tensor_reduce", "dve", Cost(data.per_partition, (rate,)), (dst,), (data,))
    if numerics():
        result = alu.REDUCTIONS[op](data.read32("tensor_reduce"), axis=tuple(axes))
        dst.write(-result if negate else result)
    return out


@instruction
def tensor_scalar_reduce(
    dst: Tensor, data: Tensor, op0, operand0, reduce_op, reduce_res: Tensor | None = None,
    reverse0=False, reduce_cmd=reduce_cmd.reset_reduce, reduce_init=None,
    reduce_res_negate=False, name=None,
):  # fmt: skip
    """`dst = data op0 operand0`, and its reduction along the row."""
    if reduce_cmd is not reduce_cmd_.reset_reduce or reduce_init is not None:
        raise NotSimulatedError("tensor_scalar_reduce: only reduce_cmd.reset_reduce is simulated")
    same_shape("tensor_scalar_reduce", dst, data)
    check_reduction("tensor_scalar_reduce", reduce_op, reduce_res, data, tuple(alu.REDUCTIONS))
    operands = scalar_operand("tensor_scalar_reduce", operand0, data)
    cost = Cost(dst.per_partition, ("dve_copy_fp32",), ("dve_reduce_extra",))
    results = () if reduce_res is None else (reduce_res,)
    out = emit("tensor_scalar_reduce", "dve", cost, (dst, *results), (data, *operands))
    if numerics():
        values = _steps("tensor_scalar_reduce", data, [(op0, operand0, reverse0)])
        dst.write(values)
        if reduce_res is not None:
            row = alu.REDUCTIONS[reduce_op](values.reshape(values.shape[0], -1), axis=1)
            reduce_res.write(-row if reduce_res_negate else row)
    return out


@instruction
def activation(
    dst: Tensor, op, data: Tensor, bias=None, scale=1.0, reduce_op=None,
    reduce_res: Tensor | None = None, reduce_cmd=reduce_cmd.idle, name=None,
):  # fmt: skip
    """ScalarE: `dst = op(data * scale + bias)`, and the row's sum where one is asked for."""
    alu.known_activation(op)
    same_shape("activation", dst, data)
    if isinstance(bias, (int, float)) and bias != 0:
        current().require_generation(3, "activation with a number as bias")
    operands = [*scalar_operand("activation", scale, data)]
    operands += scalar_operand("activation", 0.0 if bias is None else bias, data)
    reduces = reduce_cmd is not reduce_cmd_.idle
    if reduces != (reduce_res is not None):
        raise OperationError("activation: reduce_res goes with reduce_cmd.reset_reduce")
    if reduces:
        if reduce_cmd is not reduce_cmd_.reset_reduce or reduce_res is None:
            raise OperationError("activation: reduce by reduce_cmd.reset_reduce into reduce_res")
        check_reduction("activation", reduce_op or "add", reduce_res, data, ("add",))
    cost = Cost(dst.per_partition, ("act_element",), ("act_reduce_extra",) if reduces else ())
    written = (dst,) if reduce_res is None else (dst, reduce_res)
    table = alu.ACTIVATIONS[op][1]
    out = emit("activation", "act", cost, written, (data, *operands), table=table, name=str(op))
    if numerics():
        values = data.read32("activation") * operand_value("activation", scale, data.ndim)
        if bias is not None:
            values = values + operand_value("activation", bias, data.ndim)
        values = alu.activation(op, values)
        dst.write(values)
        if reduce_res is not None:
            reduce_res.write(values.reshape(values.shape[0], -1).sum(axis=1))
    return out


@instruction
def activation_reduce(
    dst: Tensor, op, data: Tensor, reduce_op, reduce_res: Tensor, bias=None, scale=1.0, name=None
):
    """`activation` that sums the row."""
    return activation(dst, op, data, bias, scale, reduce_op, reduce_res, reduce_cmd_.reset_reduce)


@instruction
def exponential(
    dst: Tensor, src: Tensor, max_value=0.0, reduce_res: Tensor | None = None,
    reduce_cmd=reduce_cmd.idle, reduce_init=0.0, name=None,
):  # fmt: skip
    """VectorE of the fourth generation: `exp(src - max_value)`, and the row's sum."""
    current().require_generation(4, "exponential")
    same_shape("exponential", dst, src)
    operands = scalar_operand("exponential", max_value, src)
    results = () if reduce_res is None else (reduce_res,)
    if reduce_res is not None:
        if reduce_cmd is not reduce_cmd_.reset_reduce:
            raise OperationError("exponential: reduce by reduce_cmd.reset_reduce")
        check_reduction("exponential", "add", reduce_res, src, ("add",))
    cost = Cost(src.per_partition, ("dve_copy_fp32",))
    out = emit("exponential", "dve", cost, (dst, *results), (src, *operands))
    if numerics():
        shifted = src.read32("exponential") - operand_value("exponential", max_value, src.ndim)
        values = np.exp(shifted)
        dst.write(values)
        if reduce_res is not None:
            reduce_res.write(values.reshape(values.shape[0], -1).sum(axis=1) + reduce_init)
    return out


@instruction
def reciprocal(dst: Tensor, data: Tensor, name=None):
    """`1 / data` on VectorE, eight cycles an element: for a few elements a partition."""
    same_shape("reciprocal", dst, data)
    cost = Cost(data.per_partition, ("dve_reciprocal",))
    out = emit("reciprocal", "dve", cost, (dst,), (data,))
    if numerics():
        dst.write(1 / data.read32("reciprocal"))
    return out


@instruction
def bn_stats(dst: Tensor, data: Tensor, name=None):
    """Count, mean and sum of squared deviations of a row's even and of its odd elements."""
    if data.per_partition > 512 or data.per_partition < 2:
        raise ElementCountError(f"bn_stats: {data!r} has not 2 to 512 elements a partition")
    if dst.per_partition != 6 or dst.partitions != data.partitions:
        raise ElementCountError(f"bn_stats: {dst!r} is not (partitions, 6)")
    out = emit("bn_stats", "dve", Cost(data.per_partition, ("dve_copy_fp32",)), (dst,), (data,))
    if numerics():
        row = data.read32("bn_stats").reshape(data.partitions, -1)
        columns = []
        for part in (row[:, 0::2], row[:, 1::2]):
            mean = part.mean(axis=1)
            m2 = np.square(part - mean[:, None]).sum(axis=1)
            columns += [np.full_like(mean, part.shape[1]), mean, m2]
        dst.write(np.stack(columns, axis=1))
    return out


@instruction
def bn_aggr(dst: Tensor, data: Tensor, name=None):
    """Mean and variance of the union of `bn_stats` triples."""
    if data.per_partition % 3 or dst.per_partition != 2:
        raise ElementCountError("bn_aggr: data is (partitions, 3k), dst (partitions, 2)")
    out = emit("bn_aggr", "dve", Cost(data.per_partition, ("dve_bn_aggr",)), (dst,), (data,))
    if numerics():
        triples = data.read32("bn_aggr").reshape(data.partitions, -1, 3)
        count, mean, m2 = np.moveaxis(triples, 2, 0)
        total = count.sum(axis=1)
        overall = (count * mean).sum(axis=1) / total
        spread = (m2 + count * np.square(mean - overall[:, None])).sum(axis=1) / total
        dst.write(np.stack([overall, spread], axis=1))
    return out


@instruction
def tensor_copy_predicated(
    dst: Tensor, src: Tensor, predicate: Tensor, reverse_pred=False, name=None
):
    """`dst = src` where the predicate is not zero; elsewhere `dst` stays."""
    if predicate.dtype.kind != "u":
        raise DtypeError(f"tensor_copy_predicated: predicate {predicate!r} must be unsigned")
    if src.dtype != dst.dtype:
        raise DtypeError(f"tensor_copy_predicated: {src!r} and {dst!r} differ in dtype")
    same_shape("tensor_copy_predicated", dst, src, predicate)
    not_both_in_psum("tensor_copy_predicated", src, predicate)
    cost = Cost(dst.per_partition, ("dve_copy_fp32",))
    out = emit("tensor_copy_predicated", "dve", cost, (dst,), (src, predicate, dst))
    if numerics():
        chosen = (predicate.read("tensor_copy_predicated") != 0) != reverse_pred
        old = dst.read("tensor_copy_predicated")
        new = src.read("tensor_copy_predicated").reshape(dst.shape)
        dst.write(np.where(chosen.reshape(dst.shape), new, old))
    return out


@instruction
def select_reduce(
    dst: Tensor, predicate: Tensor, on_true: Tensor, on_false, reduce_res: Tensor | None = None,
    reduce_cmd=reduce_cmd.idle, reduce_op="maximum", reverse_pred=False, name=None,
):  # fmt: skip
    """`dst = on_true if predicate else on_false`, and the row's maximum."""
    if predicate.dtype.kind not in "iu" or predicate.dtype.itemsize > 2:
        raise DtypeError(f"select_reduce: predicate {predicate!r} must be an 8 or 16 bit integer")
    same_shape("select_reduce", dst, on_true, predicate)
    not_both_in_psum("select_reduce", on_true, predicate)
    operands = scalar_operand("select_reduce", on_false, on_true)
    results = ()
    if reduce_cmd is not reduce_cmd_.idle:
        if reduce_cmd is not reduce_cmd_.reset_reduce or reduce_res is None:
            raise OperationError("select_reduce: reduce by reduce_cmd.reset_reduce into reduce_res")
        check_reduction("select_reduce", reduce_op, reduce_res, on_true, ("maximum",))
        results = (reduce_res,)
    cost = Cost(dst.per_partition, ("dve_copy_fp32",), ("dve_reduce_extra",))
    out = emit("select_reduce", "dve", cost, (dst, *results), (on_true, predicate, *operands))
    if numerics():
        chosen = (predicate.read("select_reduce") != 0) != reverse_pred
        values = np.where(
            chosen.reshape(dst.shape),
            on_true.read32("select_reduce").reshape(dst.shape),
            operand_value("select_reduce", on_false, dst.ndim),
        )
        dst.write(values)
        if reduce_res is not None and results:
            reduce_res.write(values.reshape(values.shape[0], -1).max(axis=1))
    return out


def _steps(op: str, data: Tensor, steps) -> np.ndarray:
    bitwise = steps[0][0] in alu.BITS
    values = data.read(op) if bitwise else data.read32(op)
    for name, operand, reverse in steps:
        if bitwise:
            if isinstance(operand, Tensor):
                raise NotSimulatedError(f"{op}: {name} by a tile; give a Python integer")
            values = alu.step(name, values, values.dtype.type(int(operand or 0)), reverse)
        else:
            operand = 0.0 if operand is None else operand
            values = alu.step(name, values, operand_value(op, operand, data.ndim), reverse)
    return values


def _check_bits(op: str, *tensors: Tensor) -> None:
    """Operations on bits cast nothing. Raises DtypeError."""
    if any(t.dtype.kind not in "iu" or t.dtype.itemsize != tensors[0].dtype.itemsize
           for t in tensors):  # fmt: skip
        raise DtypeError(f"{op}: operations on bits want integers of one width, got {tensors}")


def check_reduction(op: str, reduce_op, result, data: Tensor, allowed: tuple[str, ...]) -> None:
    if reduce_op not in allowed:
        raise OperationError(f"{op} reduces by {', '.join(allowed)}; not by {reduce_op}")
    if result is not None and (result.per_partition != 1 or result.partitions != data.partitions):
        raise ElementCountError(f"{op}: {result!r} is not (partitions, 1)")


# Parameters share their names with these, so functions reach them by another.
engine_, reduce_cmd_ = engine, reduce_cmd
_VECTOR_POOL = (engine.vector, engine.gpsimd)
_ELEMENTWISE = (engine.vector, engine.scalar, engine.gpsimd)
