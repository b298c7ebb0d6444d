"""`nki.language` under simulation: dtypes, buffers, tensors, views and the names of operations."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np

from nki_kernels.sim.emit import instruction, numerics
from nki_kernels.sim.errors import LoopError, NotSimulatedError
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import BY_ENGINE, Buffer, Tensor

float32, float16 = np.dtype(np.float32), np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
tfloat32 = float32  # kept at full precision
float8_e4m3 = np.dtype(ml_dtypes.float8_e4m3)  # IEEE, largest 240: not the `fn` format
float8_e4m3fn = np.dtype(ml_dtypes.float8_e4m3fn)  # the open format, largest 448: generation 4
float8_e5m2 = np.dtype(ml_dtypes.float8_e5m2)
int8, int16, int32 = (np.dtype(t) for t in (np.int8, np.int16, np.int32))
uint8, uint16, uint32 = (np.dtype(t) for t in (np.uint8, np.uint16, np.uint32))
bool_ = np.dtype(np.bool_)

sbuf, psum, shared_hbm = Buffer.sbuf, Buffer.psum, Buffer.shared_hbm
hbm = private_hbm = Buffer.hbm


class _TileSize:
    """Limits of tiles."""

    pmax, gemm_stationary_fmax, gemm_moving_fmax, bn_stats_fmax = 128, 128, 512, 512
    psum_bank_fmax, psum_bank_fmax_bytes, psum_num_banks = 512, 2048, 8

    @property
    def sbuf_fmax_bytes(self) -> int:
        """What a partition of SBUF holds on the chip that the kernel runs on."""
        return int(current().chip["sbuf_bytes_per_partition"])


tile_size = _TileSize()

# What `op=` takes: the simulated instructions know an operation by its name.
_OPERATIONS = (
    "add subtract multiply maximum minimum equal not_equal greater greater_equal less less_equal "
    "logical_and logical_or logical_xor power abs_max abs_min abs square relu rsqrt reciprocal "
    "bitwise_and bitwise_or bitwise_xor invert left_shift right_shift "
    "copy sigmoid gelu gelu_apprx_tanh gelu_apprx_sigmoid silu tanh softplus mish erf exp log sin "
    "arctan sqrt sign"
).split()


class Operation(str):
    """An operation by name, such as `nl.add`."""


add, subtract, multiply = Operation("add"), Operation("subtract"), Operation("multiply")
maximum, minimum = Operation("maximum"), Operation("minimum")
copy, square, exp, rsqrt = (Operation(n) for n in ("copy", "square", "exp", "rsqrt"))
gelu_apprx_tanh = Operation("gelu_apprx_tanh")
globals().update({name: Operation(name) for name in _OPERATIONS})


@instruction
def ndarray(shape, dtype, buffer=sbuf, name="", address=None) -> Tensor:
    """An uninitialised tensor. A fixed `address` is not simulated: allocation is the compiler's."""
    if address is not None:
        raise NotSimulatedError("nl.ndarray(address=...) is not simulated; leave allocation out")
    return current().new(shape, np.dtype(dtype), buffer, name)


@instruction
def empty_like(x: Tensor, dtype=None, buffer=sbuf, name="") -> Tensor:
    """An uninitialised tensor of `x`'s shape and, unless another is given, dtype."""
    return ndarray(x.shape, dtype or x.dtype, buffer, name)


@instruction
def zeros_like(x: Tensor, dtype=None, buffer=sbuf, name="") -> Tensor:
    """A tensor of zeros of `x`'s shape and, unless another is given, dtype."""
    return zeros(x.shape, dtype or x.dtype, buffer, name)


@instruction
def zeros(shape, dtype, buffer=sbuf, name="") -> Tensor:
    """A tensor of zeros, as VectorE writes them."""
    return full(shape, 0.0, dtype, buffer, name)


@instruction
def ones(shape, dtype, buffer=sbuf, name="") -> Tensor:
    """A tensor of ones, as VectorE writes them."""
    return full(shape, 1.0, dtype, buffer, name)


@instruction
def full(shape, fill_value, dtype, buffer=sbuf, name="") -> Tensor:
    """A tensor of one value, as VectorE writes it."""
    from nki_kernels.sim import isa

    tensor = ndarray(shape, dtype, buffer, name)
    isa.memset(dst=tensor, value=fill_value)
    return tensor


def shared_constant(array: np.ndarray, name="") -> Tensor:
    """An array that the compiler puts into HBM with the program."""
    return current().new(array.shape, array.dtype, shared_hbm, name or "constant", array)


def shared_identity_matrix(n: int, dtype) -> Tensor:
    """The identity `[n, n]` in HBM."""
    return shared_constant(np.eye(n).astype(np.dtype(dtype)), "identity")


def ds(start: int, size: int) -> slice:
    """`start : start + size`."""
    return slice(start, start + size)


def affine_range(*bounds: int) -> range:
    """`range`, under the name that nki kept for it."""
    return builtins.range(*bounds)


sequential_range = static_range = affine_range


@contextmanager
def no_reorder() -> Iterator[None]:
    """Keeps the program's order, as this simulator always does. Refuses loops of the device."""
    machine = current()
    before, machine.ordered = machine.ordered, True
    try:
        yield
    finally:
        machine.ordered = before


@instruction
def fori_loop(lower: int, upper: int, body_fun, step: int = 1) -> None:
    """`body_fun(i)` for each i, where `i` may be used as `.ap(scalar_offset=i)` alone.

    Raises LoopError inside of `no_reorder`.
    """
    _check_loop("nl.fori_loop")
    for i in builtins.range(lower, upper, step):
        body_fun(_register(i, "loop_index"))


@instruction
def while_loop(init: Tensor, body_fun) -> None:
    """`r = init`, then `r = body_fun(r)` for as long as the register `r` is not zero.

    Raises LoopError inside of `no_reorder`, or where the body returns no register; and, as nobody
    knows how often it runs without values, NotSimulatedError without numerics.
    """
    _check_loop("nl.while_loop")
    if not numerics():
        raise NotSimulatedError("nl.while_loop runs as often as values say: simulate those too")
    register = init
    while value := int(register.read("nl.while_loop").item()):
        register = body_fun(_register(value, "loop_condition"))
        if not isinstance(register, Tensor) or register.size != 1:
            raise LoopError(f"nl.while_loop: the body returns a register, not {register!r}")


def _register(value: int, name: str) -> Tensor:
    register = ndarray((1, 1), int32, sbuf, name)
    if numerics():
        register.write(np.array(value, np.int32), BY_ENGINE)
    return register


def _check_loop(name: str) -> None:
    if current().ordered:
        raise LoopError(f"{name} inside of nl.no_reorder(); put it around the loop's body")


def program_id(axis: int) -> int:
    """Which of the cores that run this kernel as one (LNC) we are."""
    return current().core if axis == 0 else 0


def num_programs(axis: int) -> int:
    """How many cores run this kernel as one."""
    return current().cores if axis == 0 else 1
