"""Each rule of the hardware has an error of its name, and a kernel that breaks it."""

import warnings

import numpy as np
import pytest

from nki_kernels import sim
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import errors
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.alu import ActivationRangeWarning


def run(body, chip="trn2", cores=1):
    """Runs `body` within a kernel that returns a zero."""

    def kernel():
        body()
        out = nl.ndarray((1, 1), dtype=nl.float32, buffer=nl.shared_hbm)
        nisa.dma_copy(dst=out, src=nl.zeros((1, 1), nl.float32))
        return out

    return sim.run(sim.jit(kernel)[cores], (), chip)


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


double = nisa.matmul_perf_mode.double_row
BROKEN = [
    (errors.ArgumentError, lambda: nisa.tensor_copy(dst=sbuf(), src=sbuf(), mask=1)),
    (errors.ArgumentError, lambda: nl.ndarray((1, 1), nl.float32, block_dim=2)),
    (errors.PartitionCountError, lambda: nl.ndarray((129, 1), nl.float32)),
    (errors.PartitionCountError, lambda: nl.ndarray((4,), nl.float32)),
    (errors.PartitionCountError, lambda: nisa.tensor_copy(dst=sbuf(64), src=sbuf(32))),
    (errors.PartitionStartError, lambda: nisa.tensor_copy(dst=sbuf(16), src=sbuf()[16:32])),
    (errors.PartitionStartError, lambda: nisa.tensor_copy(dst=sbuf(64), src=sbuf()[32:96])),
    (errors.PartitionStartError, lambda: nisa.tensor_copy(dst=sbuf(96), src=sbuf()[32:128])),
    (
        errors.PartitionMismatchError,
        lambda: nisa.tensor_tensor(
            dst=sbuf(64), data1=sbuf()[0:64], data2=sbuf()[64:128], op=nl.add
        ),
    ),
    (errors.BufferError, lambda: nisa.tensor_copy(dst=sbuf(), src=hbm(128, 128))),
    (errors.BufferError, lambda: matmul(dst=sbuf())),
    (errors.BufferError, lambda: matmul(moving=psum())),
    (errors.PsumAccessError, lambda: nisa.dma_copy(dst=hbm(128, 128), src=psum())),
    (
        errors.PsumAccessError,
        lambda: nisa.tensor_copy(dst=sbuf(), src=psum(), engine=nisa.engine.gpsimd),
    ),
    (
        errors.BothPsumError,
        lambda: nisa.tensor_tensor(dst=sbuf(), data1=psum(), data2=psum(), op=nl.add),
    ),
    (
        errors.BothPsumError,
        lambda: nisa.scalar_tensor_tensor(
            dst=sbuf(), data=psum(), op0=nl.multiply, operand0=1.0, op1=nl.add, operand1=psum()
        ),
    ),
    (errors.MatmulShapeError, lambda: matmul(stationary=sbuf(128, 129, nl.bfloat16))),
    (errors.MatmulShapeError, lambda: matmul(moving=sbuf(128, 513, nl.bfloat16))),
    (errors.MatmulShapeError, lambda: matmul(moving=sbuf(64, 128, nl.bfloat16))),
    (errors.MatmulShapeError, lambda: matmul(dst=psum(128, 64, filled=False))),
    (errors.MatmulShapeError, lambda: matmul(tile_size=(48, 128), tile_position=(0, 0))),
    (errors.MatmulShapeError, lambda: matmul(tile_size=(64, 64), tile_position=(0, 0))),
    (
        errors.MatmulShapeError,
        lambda: matmul(
            stationary=sbuf(128, 128, nl.float8_e4m3), moving=sbuf(128, 128, nl.float8_e4m3),
            perf_mode=double,
        ),
    ),
    (errors.MatmulDtypeError, lambda: matmul(perf_mode=double)),
    (errors.MatmulDtypeError, lambda: matmul(stationary=sbuf())),
    (errors.MatmulDtypeError, lambda: matmul(stationary=sbuf(dtype=nl.int32))),
    (errors.MatmulDtypeError, lambda: matmul(dst=psum(dtype=nl.float16, filled=False))),
    (errors.MatmulDtypeError, lambda: matmul(is_transpose=True)),
    (
        errors.MatmulShapeError,
        lambda: nisa.nc_transpose(
            dst=psum(128, 128, nl.bfloat16, filled=False), data=sbuf(64, 64, nl.bfloat16)
        ),
    ),
    (
        errors.PsumBankError,
        lambda: matmul(dst=nl.ndarray((128, 600), nl.float32, nl.psum)[:, 448:576]),
    ),
    (errors.FirstAccumulateError, lambda: matmul(accumulate=True)),
    (
        errors.PoisonReadError,
        lambda: nisa.tensor_copy(dst=sbuf(), src=nl.ndarray((128, 128), nl.float32)),
    ),
    (errors.OperandError, lambda: scale(sbuf(128, 2))),
    (errors.OperandError, lambda: scale(sbuf(128, 1, nl.bfloat16))),
    (errors.OperandError, lambda: scale(sbuf(64, 1))),
    (errors.OperandError, lambda: scale("two")),
    (errors.OperationError, lambda: combine("divide")),
    (errors.OperationError, lambda: nisa.activation(dst=sbuf(), op="divide", data=sbuf())),
    (errors.OperationError, lambda: scale(2.0, op0=nl.subtract, engine=nisa.engine.scalar)),
    (
        errors.OperationError,
        lambda: scale(2.0, op1="bitwise_and", operand1=1),
    ),
    (errors.OperationError, lambda: nisa.memset(dst=sbuf(), value=0, engine=nisa.engine.tensor)),
    (errors.ReduceAxisError, lambda: reduce(axis=0)),
    (
        errors.ReduceAxisError,
        lambda: nisa.tensor_reduce(
            dst=sbuf(128, 4), op=nl.add, data=sbuf(128, 16).reshape((128, 4, 4)), axis=1
        ),
    ),
    (errors.ElementCountError, lambda: nisa.tensor_copy(dst=sbuf(128, 4), src=sbuf(128, 8))),
    (errors.ElementCountError, lambda: nisa.dma_copy(dst=sbuf(128, 4), src=hbm(128, 8))),
    (errors.ElementCountError, lambda: nisa.bn_stats(dst=sbuf(128, 6), data=sbuf(128, 513))),
    (errors.ElementCountError, lambda: reduce(dst_columns=2)),
    (errors.OutOfBoundsError, lambda: sbuf()[:, 100:200]),
    (errors.OutOfBoundsError, lambda: sbuf()[:, 128]),
    (errors.OutOfBoundsError, lambda: hbm(4, 4).ap(pattern=[[4, 4], [1, 5]])),
    (errors.AccessPatternError, lambda: sbuf().ap(pattern=[[64, 128], [1, 64]])),
    (errors.AccessPatternError, lambda: sbuf()[:, 0:64].reshape((64, 128))),
    (errors.AccessPatternError, lambda: sbuf().permute((1, 0))),
    (errors.AccessPatternError, lambda: sbuf().broadcast(1, 4)),
    (
        errors.DtypeError,
        lambda: nisa.tensor_copy_predicated(dst=sbuf(), src=sbuf(), predicate=sbuf()),
    ),
    (
        errors.DtypeError,
        lambda: nisa.nc_transpose(dst=psum(filled=False), data=sbuf(dtype=nl.bfloat16)),
    ),
    (
        errors.DmaError,
        lambda: nisa.dma_copy(
            dst=sbuf(dtype=nl.bfloat16), src=hbm(128, 128), dge_mode=nisa.dge_mode.hwdge
        ),
    ),
    (errors.DmaError, lambda: nisa.dma_transpose(dst=sbuf(), src=hbm(128, 128), axes=(0, 1))),
    (errors.GenerationError, lambda: nisa.exponential(dst=sbuf(), src=sbuf())),
    (errors.GenerationError, lambda: matmul(dst=psum(dtype=nl.bfloat16, filled=False))),
    (errors.GenerationError, lambda: nisa.dma_copy(dst=sbuf(), src=hbm(128, 128), priority=1)),
    (errors.LaunchError, lambda: nisa.core_barrier(hbm(1, 1))),
    (
        errors.LaunchError,
        lambda: nccl.all_reduce([sbuf()], [sbuf()], nccl.ReplicaGroup([[0, 1]]), nl.add),
    ),
]  # fmt: skip


def scale(operand, op0="multiply", **rest):
    nisa.tensor_scalar(dst=sbuf(), data=sbuf(), op0=op0, operand0=operand, **rest)


def combine(op):
    nisa.tensor_tensor(dst=sbuf(), data1=sbuf(), data2=sbuf(), op=op)


def reduce(axis=1, dst_columns=1):
    nisa.tensor_reduce(dst=sbuf(128, dst_columns), op=nl.add, data=sbuf(), axis=axis)


@pytest.mark.parametrize(("error", "body"), BROKEN)
def test_a_broken_rule_raises_its_error(error, body):
    with pytest.raises(error):
        run(body)


def test_every_error_has_a_kernel_that_raises_it():
    named = {v for v in vars(errors).values() if isinstance(v, type)}
    elsewhere = {errors.OutputBufferError, errors.CapacityError, errors.NkiValidationError}
    assert named - elsewhere == {error for error, _ in BROKEN}


def test_the_same_tiles_pass_where_no_rule_is_broken():
    def body():
        matmul()
        scale(sbuf(128, 1))
        combine("add")
        reduce()
        nisa.tensor_copy(dst=sbuf(32), src=sbuf()[96:128])
        nisa.tensor_copy(dst=sbuf(), src=psum())

    assert run(body).outputs[0] == 0


def test_a_result_must_be_in_shared_hbm():
    with pytest.raises(errors.OutputBufferError):
        sim.run(sim.jit(lambda: nl.ndarray((1, 1), nl.float32, nl.hbm)), ())


def test_capacity_counts_what_is_alive_at_once():
    def tiles(together):
        held = []
        for _ in range(5):
            tile = sbuf(128, 48 * 256)  # 48 KiB a partition
            held.append(tile)
            if not together:
                nisa.tensor_copy(dst=sbuf(128, 1), src=tile[:, 0:1])
        for tile in held if together else held[-1:]:
            nisa.tensor_copy(dst=sbuf(128, 1), src=tile[:, 0:1])

    run(lambda: tiles(False))
    with pytest.raises(errors.CapacityError, match="SBUF: .* of 212992 on trn2"):
        run(lambda: tiles(True))

    def banks():
        held = [psum(128, 512) for _ in range(9)]
        for bank in held:
            nisa.tensor_copy(dst=sbuf(128, 512), src=bank)

    with pytest.raises(errors.CapacityError, match="PSUM"):
        run(banks)


@pytest.mark.parametrize("writer", ["memset", "copy"])
def test_accumulating_onto_what_no_matmul_wrote_is_an_error(writer):
    def body():
        tile = psum()
        matmul(dst=tile, accumulate=True)
        if writer == "memset":
            nisa.memset(dst=tile, value=0.0)
        else:
            nisa.tensor_copy(dst=tile, src=sbuf())
        matmul(dst=tile, accumulate=True)

    with pytest.raises(errors.FirstAccumulateError):
        run(body)


def test_generations_differ_in_what_they_have():
    run(lambda: nisa.exponential(dst=sbuf(), src=sbuf()), chip="trn3")
    run(lambda: matmul(dst=psum(dtype=nl.bfloat16, filled=False)), chip="trn3")
    with pytest.raises(errors.GenerationError):
        run(lambda: nisa.activation(dst=sbuf(), op=nl.exp, data=sbuf(), bias=1.0), chip="trn1")


def test_scalar_functions_warn_outside_of_their_range():
    with pytest.warns(ActivationRangeWarning, match="sin"):
        run(lambda: nisa.activation(dst=sbuf(), op="sin", data=sbuf(value=4.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lambda: nisa.activation(dst=sbuf(), op="sin", data=sbuf(value=3.0)))


def test_two_cores_that_take_different_steps_are_told():
    def body():
        if nl.program_id(0) == 0:
            nisa.core_barrier(nl.shared_constant(np.zeros((1, 1), np.float32)))
        else:
            raise errors.LaunchError("core 1 stops")

    with pytest.raises(errors.LaunchError):
        run(body, cores=2)


def test_without_numerics_shapes_are_still_checked():
    def kernel(a):
        out = nl.ndarray((128, 8), nl.float32, nl.shared_hbm)
        tile = nl.ndarray((128, 8), nl.float32)
        nisa.dma_copy(dst=tile, src=a)
        nisa.dma_copy(dst=out, src=tile)
        return out

    class Shape:
        dtype = np.float32

        def __init__(self, *shape):
            self.shape = shape

    done = sim.run(sim.jit(kernel), (Shape(128, 8),), numerics=False)
    assert done.outputs == [None] and len(done.traces[0].instructions) == 2
    with pytest.raises(errors.ElementCountError):
        sim.run(sim.jit(kernel), (Shape(128, 9),), numerics=False)
