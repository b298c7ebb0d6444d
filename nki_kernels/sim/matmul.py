"""TensorE: a 128 x 128 array that multiplies what SBUF holds into PSUM."""

from __future__ import annotations

from enum import Enum

from nki_kernels.sim.emit import choose, emit, engine, instruction, numerics
from nki_kernels.sim.errors import (
    BufferError,
    DtypeError,
    FirstAccumulateError,
    MatmulDtypeError,
    MatmulShapeError,
    NotSimulatedError,
    OperationError,
    PsumBankError,
)
from nki_kernels.sim.language import (
    bfloat16,
    float8_e4m3,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
)
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import BY_MATMUL, Buffer, Tensor
from nki_kernels.sim.trace import Cost

_FP8 = (float8_e4m3, float8_e4m3fn, float8_e5m2)
_DTYPES = (bfloat16, float16, float32, *_FP8)
BANK_BYTES = 2048


class matmul_perf_mode(Enum):
    """`double_row` contracts 256 rows of fp8 in the time of 128."""

    none = 0
    double_row = 1


@instruction
def nc_matmul(
    dst: Tensor, stationary: Tensor, moving: Tensor, is_stationary_onezero=False,
    is_moving_onezero=False, is_transpose=False, accumulate=None, tile_position=(), tile_size=(),
    perf_mode=matmul_perf_mode.none, name=None,
):  # fmt: skip
    """`dst (M, N) = stationary (K, M).T @ moving (K, N)`, added to `dst` where `accumulate`.

    `accumulate=None` adds where a matmul wrote `dst` last, and overwrites elsewhere.
    Cost: `max(min(64, M), N)` cycles, four times that in float32; the load of the stationary
    matrix, `M / 4`, hides behind the multiplication when `N >= M`.
    """
    double = perf_mode is matmul_perf_mode.double_row
    if double and (is_transpose or (tile_size and tile_size[1] != 128)):
        raise OperationError("nc_matmul: double_row neither transposes nor takes column tiles")
    if double:
        current().require_generation(3, "nc_matmul in double_row")
    k, m, n = _check_operands(dst, stationary, moving, double)
    if tile_size:
        _check_tile(stationary, k, m, tile_position, tile_size)
    if is_transpose and dst.dtype != moving.dtype:
        raise MatmulDtypeError(f"nc_matmul: a transpose keeps its dtype; {dst!r}, {moving!r}")
    if not is_transpose:
        _check_result_dtype(dst)
    _check_bank(dst)
    if numerics():
        ours = dst.all_by_matmul()
        if accumulate and not ours:
            raise FirstAccumulateError(
                f"nc_matmul accumulates onto {dst!r}, not all of which a matmul wrote; "
                "the first one takes accumulate=False"
            )
        accumulate = ours if accumulate is None else accumulate
    load = m / 4 if n < m else 0
    full = stationary.dtype == float32
    cost = Cost(max(min(64, m), n), ("pe_fp32_factor",) if full else (), cycles=load)
    out = emit(
        "nc_matmul", "pe", cost, (dst,), (stationary, moving),
        flops=0 if is_transpose else 2 * k * m * n, accumulates=bool(accumulate), name=name or "",
    )  # fmt: skip
    if numerics():
        left = stationary.read32("nc_matmul").reshape(k, m)
        right = moving.read32("nc_matmul").reshape(k, n)
        product = left.T @ right
        if accumulate:
            product += dst.read32("nc_matmul").reshape(m, n)
        dst.write(product, BY_MATMUL)
    return out


@instruction
def nc_transpose(dst: Tensor, data: Tensor, engine=engine.unknown, name=None):
    """`dst = data.T`: up to 128 x 128 from SBUF to PSUM on TensorE, up to 32 x 32 on VectorE."""
    where = choose("nc_transpose", engine, engine_.tensor, engine_.vector)
    rows, columns = data.partitions, data.per_partition
    most = 128 if where == "pe" else 32
    if rows > most or columns > most or (dst.partitions, dst.per_partition) != (columns, rows):
        raise MatmulShapeError(
            f"nc_transpose: {data!r} to {dst!r}; at most {most} x {most} on this engine"
        )
    if dst.dtype != data.dtype:
        raise DtypeError(f"nc_transpose: {dst!r} must have the dtype of {data!r}")
    if where == "pe":
        _check_buffers("nc_transpose", dst, data)
        _check_bank(dst)
        full = ("pe_fp32_factor",) if data.dtype == float32 else ()
        cost = Cost(max(rows, min(64, columns)), full)
    else:
        cost = Cost(max(64, columns), ("dve_copy_fp32",))
    out = emit("nc_transpose", where, cost, (dst,), (data,))
    if numerics():
        dst.write(data.read("nc_transpose").reshape(rows, columns).T, BY_MATMUL)
    return out


@instruction
def nc_matmul_mx(
    dst: Tensor, stationary: Tensor, moving: Tensor, stationary_scale: Tensor,
    moving_scale: Tensor, tile_position=None, tile_size=None, accumulate=None, name=None,
):  # fmt: skip
    """Products of microscaled fp8 and fp4, of the fourth generation. Raises GenerationError before
    it, and NotSimulatedError from it on."""
    current().require_generation(4, "nc_matmul_mx")
    raise NotSimulatedError("nc_matmul_mx (microscaled products) is not simulated")


@instruction
def quantize_mx(dst: Tensor, src: Tensor, dst_scale: Tensor, name=None):
    """Quantises to microscaled fp8, in the fourth generation. Raises GenerationError before it, and
    NotSimulatedError from it on."""
    current().require_generation(4, "quantize_mx")
    raise NotSimulatedError("quantize_mx (microscaled fp8) is not simulated")


def _check_operands(dst: Tensor, stationary: Tensor, moving: Tensor, double: bool):
    """K, M and N. Raises MatmulShapeError, MatmulDtypeError or BufferError."""
    _check_buffers("nc_matmul", dst, stationary, moving)
    for tensor in (stationary, moving):
        if tensor.dtype not in _DTYPES:
            raise MatmulDtypeError(f"nc_matmul: the tensor engine does not take {tensor!r}")
    if (stationary.dtype == float32) != (moving.dtype == float32):
        raise MatmulDtypeError(
            f"nc_matmul: float32 pairs only with itself; {stationary!r}, {moving!r}"
        )
    if float8_e4m3fn in (stationary.dtype, moving.dtype):
        current().require_generation(4, "nc_matmul of float8_e4m3fn")
        if float8_e4m3 in (stationary.dtype, moving.dtype):
            raise MatmulDtypeError("nc_matmul: float8_e4m3 and float8_e4m3fn do not mix")
    rows = 2 if double else 1
    if double:
        if stationary.dtype not in _FP8 or moving.dtype not in _FP8:
            raise MatmulDtypeError("nc_matmul: double_row is for fp8 only")
        shapes = stationary.shape, moving.shape
        if any(len(s) != 3 or s[:2] != (128, 2) for s in shapes):
            raise MatmulShapeError(f"nc_matmul: double_row wants (128, 2, ...) twice, got {shapes}")
    k, m, n = stationary.partitions, stationary.per_partition // rows, moving.per_partition // rows
    if moving.partitions != k or not 1 <= m <= 128 or not 1 <= n <= 512:
        raise MatmulShapeError(
            f"nc_matmul: stationary (K, M <= 128) and moving (K, N <= 512) have equal K; "
            f"got {stationary!r} and {moving!r}"
        )
    if (dst.partitions, dst.per_partition) != (m, n):
        raise MatmulShapeError(f"nc_matmul: the result is ({m}, {n}), but {dst!r}")
    return k * rows, m, n


def _check_buffers(op: str, dst: Tensor, *sources: Tensor) -> None:
    if dst.buffer is not Buffer.psum:
        raise BufferError(f"{op}: TensorE writes PSUM only, not {dst!r}")
    for source in sources:
        if source.buffer is not Buffer.sbuf:
            raise BufferError(f"{op}: TensorE reads SBUF only, not {source!r}")


def _check_result_dtype(dst: Tensor) -> None:
    if dst.dtype == float32:
        return
    if dst.dtype != bfloat16:
        raise MatmulDtypeError(f"nc_matmul: PSUM accumulates float32, not {dst!r}")
    current().require_generation(4, "nc_matmul into bfloat16 PSUM")


def _check_bank(dst: Tensor) -> None:
    region = dst.region()
    if region.lo // BANK_BYTES != (region.hi - 1) // BANK_BYTES:
        raise PsumBankError(f"{dst!r}: bytes {region.lo}:{region.hi} cross a bank of {BANK_BYTES}")


def _check_tile(stationary: Tensor, k: int, m: int, position, size) -> None:
    """Row and column tiles of the array: small products in a corner of it.

    Those of different corners run at once on hardware; the timeline lets them queue.
    """
    if not (len(size) == len(position) == 2 and all(s in (32, 64, 128) for s in size)):
        raise MatmulShapeError(f"nc_matmul: tile_size {size} is not of 32, 64 or 128")
    if 32 in size:
        current().require_generation(3, "nc_matmul in tiles of 32")
    if any(p % s or p + s > 128 for p, s in zip(position, size, strict=True)):
        raise MatmulShapeError(f"nc_matmul: tile_position {position} is not a multiple of {size}")
    if k > size[0] or m > size[1] or stationary.start_partition != position[0]:
        raise MatmulShapeError(f"nc_matmul: {stationary!r} does not fit tile {size} at {position}")


engine_ = engine
