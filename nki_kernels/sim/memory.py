"""What moves data: DMA between HBM and SBUF, and the exchange between two cores."""

from __future__ import annotations

from enum import Enum

import numpy as np

from nki_kernels.sim.emit import engine, instruction, numerics, record
from nki_kernels.sim.errors import (
    DmaError,
    DtypeError,
    ElementCountError,
    LaunchError,
    NotSimulatedError,
    PsumAccessError,
)
from nki_kernels.sim.machine import current
from nki_kernels.sim.tensor import Buffer, Tensor
from nki_kernels.sim.trace import Collective, Cost, Transfer


class dge_mode(Enum):
    """Who makes the descriptors: software on GpSimd, the hardware, or the compiler beforehand."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):
    """What a gather does with indices out of bounds."""

    error = 0
    skip = 1


class dma_engine(Enum):
    """Who carries `sendrecv`."""

    dma = 0
    gpsimd_dma = 1


@instruction
def dma_copy(
    dst: Tensor, src: Tensor, priority=None, oob_mode=oob_mode.error, dge_mode=dge_mode.unknown,
    engine=engine.unknown, name=None,
):  # fmt: skip
    """`dst = src` between HBM and SBUF in either direction, cast through float32.

    `dge_mode.unknown` is taken as hwdge, from SyncE, unless the dtypes differ: then as swdge.
    """
    _check_ends("dma_copy", dst, src, priority, oob_mode)
    if dst.size != src.size:
        raise ElementCountError(f"dma_copy: {src!r} and {dst!r} differ in elements")
    elements = min(t.run_bytes // t.dtype.itemsize for t in (dst, src))
    row_bytes = elements * max(dst.dtype.itemsize, src.dtype.itemsize)
    hbm = sum(t.size * t.dtype.itemsize for t in (dst, src) if not t.on_chip)
    transfer = Transfer(dst.size // elements, row_bytes, hbm)
    where, cost = _issue(dge_mode, engine, dst, src)
    out = record("dma_copy", where, cost, (dst,), (src,), transfer=transfer, name=name or "")
    if numerics():
        dst.write(src.read("dma_copy").copy())
    return out


@instruction
def dma_transpose(
    dst: Tensor, src: Tensor, axes=None, priority=None, dge_mode=dge_mode.unknown,
    oob_mode=oob_mode.error, name=None,
):  # fmt: skip
    """Transposes on the way into SBUF: axes (1, 0), (2, 1, 0) or (3, 1, 2, 0)."""
    axes = tuple(axes) if axes is not None else tuple(reversed(range(src.ndim)))
    if axes not in ((1, 0), (2, 1, 0), (3, 1, 2, 0)):
        raise DmaError(f"dma_transpose: axes {axes} are none of (1, 0), (2, 1, 0), (3, 1, 2, 0)")
    _check_ends("dma_transpose", dst, src, priority, oob_mode)
    if dst.buffer is not Buffer.sbuf or dst.dtype != src.dtype:
        raise DmaError(f"dma_transpose: {dst!r} must be in SBUF, of the dtype of {src!r}")
    if dst.size != src.size or len(axes) != src.ndim:
        raise ElementCountError(f"dma_transpose: {src!r} by {axes} is not {dst!r}")
    hardware = dge_mode is dge_mode_.hwdge
    if hardware and (src.dtype.itemsize != 2 or src.shape[0] != 16 or src.shape[-1] > 128):
        raise DmaError("dma_transpose: hwdge takes two-byte [16, <= 128] only")
    share = "dma_transpose_onchip" if src.on_chip else "dma_transpose_load"
    hbm = 0 if src.on_chip else src.size * src.dtype.itemsize
    row = dst.per_partition * dst.dtype.itemsize
    transfer = Transfer(dst.partitions, row, hbm, share)
    where, cost = _issue(dge_mode, engine.unknown, dst, src)
    out = record("dma_transpose", where, cost, (dst,), (src,), transfer=transfer)
    if numerics():
        dst.write(np.transpose(src.read("dma_transpose"), axes))
    return out


@instruction
def core_barrier(data: Tensor, cores=(0, 1), engine=engine.gpsimd, name=None):
    """Both cores wait for each other; what they wrote to `data`, in shared HBM, is then visible."""
    machine = current()
    if data.buffer is not Buffer.shared_hbm:
        raise LaunchError(f"core_barrier: {data!r} must be in shared_hbm")
    if machine.cores != 2 or tuple(cores) != (0, 1):
        raise LaunchError("core_barrier is for two cores: call kernel[2](...)")
    out = record(
        "core_barrier", "pool", Cost(), (data,), (data,), collective=Collective("core_barrier_ns")
    )
    if machine.meeting is not None:
        machine.meeting.exchange(machine.core, None)
    return out


@instruction
def sendrecv(
    src: Tensor, dst: Tensor, send_to_rank, recv_from_rank, pipe_id, dma_engine=dma_engine.dma,
    name=None,
):  # fmt: skip
    """Two cores that run as one exchange SBUF tiles."""
    machine = current()
    if machine.cores != 2 or send_to_rank != 1 - machine.core or recv_from_rank != send_to_rank:
        raise LaunchError("sendrecv exchanges between cores 0 and 1 of kernel[2](...)")
    if src.buffer is not Buffer.sbuf or dst.buffer is not Buffer.sbuf:
        raise DmaError(f"sendrecv goes from SBUF to SBUF; {src!r}, {dst!r}")
    if src.dtype != dst.dtype or src.size != dst.size:
        raise DtypeError(f"sendrecv: {src!r} and {dst!r} must agree")
    most = {4: 1024, 2: 512, 1: 256}[src.dtype.itemsize]
    if dma_engine is dma_engine_.gpsimd_dma and src.per_partition * src.dtype.itemsize > most:
        raise DmaError(f"sendrecv by gpsimd_dma takes {most} bytes a partition, not {src!r}")
    size = src.size * src.dtype.itemsize
    step = Collective("sendrecv_ns", size, 2)
    out = record("sendrecv", "pool", Cost(), (dst,), (src,), collective=step)
    if machine.meeting is not None:
        mine = src.read("sendrecv").copy()
        dst.write(machine.meeting.exchange(machine.core, mine)[recv_from_rank])
    return out


def _check_ends(op: str, dst: Tensor, src: Tensor, priority, oob: oob_mode) -> None:
    if oob is not oob_mode_.error:
        raise NotSimulatedError(f"{op}: oob_mode.skip is not simulated")
    if priority is not None:
        current().require_generation(4, f"{op} with a priority")
    for tensor in (dst, src):
        if tensor.buffer is Buffer.psum:
            raise PsumAccessError(f"{op}: DMA cannot touch PSUM ({tensor!r}); go by SBUF")


def _issue(mode: dge_mode, where: engine, dst: Tensor, src: Tensor) -> tuple[str, Cost]:
    """The engine that issues a DMA, and what that costs it. A place known at run time alone costs
    GpSimd more; the hardware's descriptors take it in their stride. Raises DmaError."""
    same_dtype = dst.dtype == src.dtype
    dynamic = dst.dynamic is not None or src.dynamic is not None
    if where not in (engine.unknown, engine.sync, engine.scalar):
        raise DmaError(f"a DMA is issued by engine.sync or engine.scalar, not by {where}")
    if mode is dge_mode.unknown:
        mode = dge_mode.hwdge if same_dtype else dge_mode.swdge
    if mode is dge_mode.hwdge:
        if not same_dtype:
            raise DmaError("hwdge does not cast; use swdge, or equal dtypes")
        return ("act" if where is engine.scalar else "sp"), Cost(fixed=("dma_issue_hwdge_ns",))
    if where is not engine.unknown:
        raise DmaError("engine=sync or scalar goes with dge_mode.hwdge only")
    if mode is dge_mode.swdge:
        return "pool", Cost(fixed=("dma_issue_indirect_ns" if dynamic else "dma_issue_swdge_ns",))
    if dynamic:
        raise DmaError("dge_mode.none has its descriptors beforehand: no place known at run time")
    return "sp", Cost()


oob_mode_, dge_mode_, dma_engine_ = oob_mode, dge_mode, dma_engine
