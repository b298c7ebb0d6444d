"""Calls of one instruction each on tiles of ones, right but for what the caller gives."""

import numpy as np

from nki_kernels import sim
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.tensor import Tensor

alone = nccl.ReplicaGroup([[0]])
double = nisa.matmul_perf_mode.double_row


def run(body, chip="trn2", cores=1, ranks=1, numerics=True):
    """Runs `body` within a kernel that returns a zero."""

    def kernel():
        body()
        out = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=nl.zeros((1, 1), nl.float32))
        return out

    arguments = [()] * ranks if ranks > 1 and numerics else ()
    return sim.run(sim.jit(kernel)[cores], arguments, chip, numerics, ranks)


def sbuf(rows=128, columns=128, dtype=nl.float32, value=1.0):
    return nl.full((rows, columns), value, dtype)


def psum(rows=128, columns=128, dtype=nl.float32, filled=True):
    tile = nl.ndarray((rows, columns), dtype, nl.psum)
    if filled:
        nisa.nc_matmul(
            dst=tile, stationary=sbuf(128, rows, nl.bfloat16),
            moving=sbuf(128, columns, nl.bfloat16), accumulate=False,
        )  # fmt: skip
    return tile


def matmul(dst=None, stationary=None, moving=None, **options):
    nisa.nc_matmul(
        dst=dst if dst is not None else psum(filled=False),
        stationary=stationary if stationary is not None else sbuf(dtype=nl.bfloat16),
        moving=moving if moving is not None else sbuf(dtype=nl.bfloat16),
        **({"accumulate": False} | options),
    )


def hbm(*shape, dtype=np.float32):
    return nl.shared_constant(np.ones(shape, dtype))


def scale(operand, op0="multiply", **rest):
    nisa.tensor_scalar(dst=sbuf(), data=sbuf(), op0=op0, operand0=operand, **rest)


def shift(op, operand0=1, data=nl.int32, **rest):
    nisa.tensor_scalar(
        dst=sbuf(dtype=nl.int32), data=sbuf(dtype=data), op0=op, operand0=operand0, **rest
    )


def combine(op, **rest):
    nisa.tensor_tensor(**(dict(dst=sbuf(), data1=sbuf(), data2=sbuf(), op=op) | rest))


def reduce(axis=1, dst_columns=1, op=nl.add):
    nisa.tensor_reduce(dst=sbuf(128, dst_columns), op=op, data=sbuf(), axis=axis)


def activate(**rest):
    nisa.activation(dst=sbuf(), op="exp", data=sbuf(), **rest)


def select(predicate=None, **rest):
    predicate = predicate if predicate is not None else sbuf(dtype=nl.uint8)
    nisa.select_reduce(dst=sbuf(), predicate=predicate, on_true=sbuf(), on_false=0.0, **rest)


def window(**rest):
    bounds = (
        {}
        if rest.keys() & {"bound0", "bound1"} == {"bound0", "bound1"}
        else {"bound0": sbuf(128, 1), "bound1": sbuf(128, 1)}
    )
    nisa.range_select(
        dst=sbuf(), on_true_tile=sbuf(), comp_op0="greater", comp_op1="less", **(bounds | rest)
    )


def fp8():
    tile = sbuf(128, 256, nl.float8_e4m3).reshape((128, 2, 128))
    return {"stationary": tile, "moving": tile}


def turned():
    """A tile whose first axis walks along the partition."""
    return Tensor(sbuf().storage, 0, (2, 2), (1, 128), nl.float32)


def microscaled():
    tile = sbuf(dtype=nl.uint8)
    nisa.nc_matmul_mx(psum(filled=False), tile, tile, tile, tile)


def all_reduce(srcs, dsts, op=nl.add, group=((0,),)):
    nccl.all_reduce(srcs, dsts, nccl.ReplicaGroup(group), op)


def dynamic_copy(**rest):
    place = hbm(4, 4).ap(pattern=[[4, 1], [1, 4]], scalar_offset=sbuf(1, 1, nl.int32))
    nisa.dma_copy(dst=sbuf(1, 4), src=place, **rest)


def send(src=None, dst=None, to=None, **rest):
    other = 1 - nl.program_id(0) if to is None else to
    src, dst = (t if t is not None else sbuf() for t in (src, dst))
    nisa.sendrecv(src, dst, send_to_rank=other, recv_from_rank=other, pipe_id=0, **rest)


def send_by_gpsimd(columns, dtype):
    tiles = sbuf(128, columns, dtype), sbuf(128, columns, dtype)
    send(*tiles, dma_engine=nisa.dma_engine.gpsimd_dma)


def ordered(body):
    with nl.no_reorder():
        body()


def tiles_of_240_kib(together):
    """Five tiles of 48 KiB a partition, alive at once or one after the other."""
    held = []
    for _ in range(5):
        tile = sbuf(128, 48 * 256)
        held.append(tile)
        if not together:
            nisa.tensor_copy(dst=sbuf(128, 1), src=tile[:, 0:1])
    for tile in held if together else held[-1:]:
        nisa.tensor_copy(dst=sbuf(128, 1), src=tile[:, 0:1])
