"""`nki.language` under simulation: dtypes, buffers, tensors, views and the names of operations."""

from __future__ import annotations

import builtins
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from nki_kernels.sim.errors import AccessPatternError, UnknownArgumentError
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import BY_ENGINE, Buffer, Tensor

float32, float16 = np.dtype(np.float32), np.dtype(np.float16)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
tfloat32 = float32  # kept at full precision
float8_e4m3 = np.dtype(ml_dtypes.float8_e4m3)  # IEEE, largest 240: not the `fn` format
float8_e5m2 = np.dtype(ml_dtypes.float8_e5m2)
int8, int16, int32 = (np.dtype(t) for t in (np.int8, np.int16, np.int32))
uint8, uint16, uint32 = (np.dtype(t) for t in (np.uint8, np.uint16, np.uint32))
bool_ = np.dtype(np.bool_)

sbuf, psum, shared_hbm = Buffer.sbuf, Buffer.psum, Buffer.shared_hbm
hbm = private_hbm = Buffer.hbm

tile_size = SimpleNamespace(
    pmax=128, psum_bank_fmax=512, psum_bank_fmax_bytes=2048, psum_num_banks=8,
    gemm_stationary_fmax=128, gemm_moving_fmax=512, bn_stats_fmax=512,
)  # fmt: skip

# What `op=` takes: the simulated instructions know an operation by its name.
_OPERATIONS = (
    "add subtract multiply maximum minimum equal not_equal greater greater_equal less less_equal "
    "logical_and logical_or logical_xor power abs_max abs_min abs square relu rsqrt reciprocal "
    "bitwise_and bitwise_or bitwise_xor left_shift right_shift "
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


def ndarray(shape, dtype, buffer=sbuf, name="", address=None, **unknown) -> Tensor:
    """An uninitialised tensor. A fixed `address` is not simulated: allocation is the compiler's."""
    _refuse(unknown, "nl.ndarray", ("shape", "dtype", "buffer", "name", "address"))
    if address is not None:
        raise AccessPatternError("nl.ndarray(address=...) is not simulated; leave allocation out")
    return current().new(shape, np.dtype(dtype), buffer, name)


def zeros(shape, dtype, buffer=sbuf, name="") -> Tensor:
    """A tensor of zeros, as VectorE writes them."""
    return full(shape, 0.0, dtype, buffer, name)


def ones(shape, dtype, buffer=sbuf, name="") -> Tensor:
    """A tensor of ones, as VectorE writes them."""
    return full(shape, 1.0, dtype, buffer, name)


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


def fori_loop(lower: int, upper: int, body, step: int = 1) -> None:
    """`body(i)` for each i, where `i` may be used as `.ap(scalar_offset=i)` alone."""
    for i in builtins.range(lower, upper, step):
        index = ndarray((1, 1), int32, sbuf, "loop_index")
        if index.storage.data is not None:
            index.write(np.array(i, np.int32), BY_ENGINE)
        body(index)


def program_id(axis: int) -> int:
    """Which of the cores that run this kernel as one (LNC) we are."""
    return current().core if axis == 0 else 0


def num_programs(axis: int) -> int:
    """How many cores run this kernel as one."""
    return current().cores if axis == 0 else 1


def _refuse(unknown: dict, where: str, known) -> None:
    if unknown:
        raise UnknownArgumentError(
            f"{where} has no {', '.join(map(repr, unknown))}; it has: {', '.join(known)}"
        )
