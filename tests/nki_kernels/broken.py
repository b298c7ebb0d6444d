"""Kernels that break a rule of the simulator, each with the error that it has to raise."""

from functools import partial

import numpy as np

from nki_kernels import sim
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import errors
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.machine import Meeting
from tests.nki_kernels.calls import (
    activate,
    all_reduce,
    alone,
    combine,
    double,
    dynamic_copy,
    fp8,
    hbm,
    matmul,
    microscaled,
    ordered,
    psum,
    reduce,
    run,
    sbuf,
    scale,
    select,
    send,
    send_by_gpsimd,
    shift,
    tiles_of_240_kib,
    turned,
    window,
)

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
    (errors.ArgumentError, lambda: nisa.tensor_copy(dst=sbuf())),
    (errors.ArgumentError, lambda: nisa.tensor_copy(sbuf(), sbuf(), nisa.engine.vector, "", 1)),
    (errors.ArgumentError, lambda: nisa.tensor_copy(sbuf(), sbuf(), dst=sbuf())),
    (errors.ArgumentError, lambda: nl.ndarray((1, 1))),
    (errors.ArgumentError, lambda: nccl.all_reduce([sbuf()], [sbuf()])),
    (errors.ArgumentError, lambda: sim.jit(mode="jax")),
    (errors.PartitionCountError, lambda: nisa.memset(dst=turned(), value=0.0)),
    (
        errors.PartitionMismatchError,
        lambda: matmul(
            dst=psum(filled=False), stationary=sbuf(dtype=nl.bfloat16)[0:64],
            moving=sbuf(dtype=nl.bfloat16)[64:128],
        ),
    ),
    (
        errors.PartitionMismatchError,
        lambda: matmul(
            dst=psum(filled=False), stationary=sbuf(dtype=nl.bfloat16)[0:1],
            moving=sbuf(dtype=nl.bfloat16)[32:33],
        ),
    ),
    (errors.OperandError, lambda: combine("add", data2=2.0)),
    (
        errors.OperandError,
        lambda: nisa.scalar_tensor_tensor(
            dst=sbuf(), data=sbuf(), op0=nl.add, operand0=1.0, op1=nl.add, operand1=2.0
        ),
    ),
    (errors.OperandError, lambda: matmul(moving=2.0)),
    (errors.OperandError, lambda: nisa.dma_copy(dst=sbuf(), src=np.zeros((128, 128)))),
    (errors.OperandError, lambda: activate(reduce_res=0.0)),
    (errors.OperandError, lambda: window(bound0=0.0)),
    (errors.OperandError, lambda: window(bound1=sbuf(128, 2))),
    (errors.OperandError, lambda: nisa.nc_stream_shuffle(sbuf(), sbuf(), [0] * 31)),
    (errors.OperandError, lambda: nisa.nc_stream_shuffle(sbuf(), sbuf(), [32] * 32)),
    (errors.OperandError, lambda: all_reduce([1.0], [sbuf()])),
    (errors.OperationError, lambda: matmul(**fp8(), perf_mode=double, is_transpose=True)),
    (
        errors.OperationError,
        lambda: matmul(**fp8(), perf_mode=double, tile_size=(128, 64), tile_position=(0, 0)),
    ),
    (errors.OperationError, lambda: shift("left_shift", engine=nisa.engine.gpsimd)),
    (errors.OperationError, lambda: combine("power", engine=nisa.engine.vector)),
    (errors.OperationError, lambda: combine("invert")),
    (
        errors.OperationError,
        lambda: nisa.tensor_scalar_reduce(
            dst=sbuf(), data=sbuf(), op0="bitwise_or", operand0=1, reduce_op="add"
        ),
    ),
    (errors.OperationError, lambda: reduce(op="subtract")),
    (errors.OperationError, lambda: activate(reduce_res=sbuf(128, 1))),
    (errors.OperationError, lambda: activate(reduce_cmd=nisa.reduce_cmd.reset_reduce)),
    (
        errors.OperationError,
        lambda: activate(reduce_res=sbuf(128, 1), reduce_cmd=nisa.reduce_cmd.reduce),
    ),
    (
        errors.OperationError,
        lambda: nisa.activation_reduce(
            dst=sbuf(), op="exp", data=sbuf(), reduce_op="maximum", reduce_res=sbuf(128, 1)
        ),
    ),
    (
        errors.OperationError,
        lambda: select(reduce_cmd=nisa.reduce_cmd.reduce, reduce_res=sbuf(128, 1)),
    ),
    (errors.OperationError, lambda: select(reduce_cmd=nisa.reduce_cmd.reset_reduce)),
    (
        errors.OperationError,
        lambda: select(
            reduce_cmd=nisa.reduce_cmd.reset_reduce, reduce_res=sbuf(128, 1), reduce_op="add"
        ),
    ),
    (errors.OperationError, lambda: window(reduce_op="add")),
    (
        errors.OperationError,
        lambda: nisa.tensor_partition_reduce(dst=sbuf(1), op="subtract", data=sbuf()),
    ),
    (errors.OperationError, lambda: all_reduce([sbuf()], [sbuf()], op="multiply")),
    (errors.ElementCountError, lambda: nisa.bn_stats(dst=sbuf(128, 5), data=sbuf())),
    (errors.ElementCountError, lambda: nisa.bn_stats(dst=sbuf(64, 6), data=sbuf())),
    (errors.ElementCountError, lambda: nisa.bn_aggr(dst=sbuf(128, 2), data=sbuf(128, 7))),
    (errors.ElementCountError, lambda: nisa.bn_aggr(dst=sbuf(128, 3), data=sbuf(128, 6))),
    (
        errors.ElementCountError,
        lambda: activate(reduce_res=sbuf(128, 2), reduce_cmd=nisa.reduce_cmd.reset_reduce),
    ),
    (errors.ElementCountError, lambda: window(reduce_res=sbuf(128, 2))),
    (errors.ElementCountError, lambda: nisa.iota(dst=sbuf(), pattern=[[1, 64]])),
    (
        errors.ElementCountError,
        lambda: nisa.tensor_partition_reduce(dst=sbuf(2), op="add", data=sbuf()),
    ),
    (errors.ElementCountError, lambda: nisa.nc_stream_shuffle(sbuf(16), sbuf(16), [31] * 32)),
    (errors.ElementCountError, lambda: nisa.register_move(sbuf(1, 2), 1)),
    (errors.ElementCountError, lambda: nisa.register_load(sbuf(1, 1), sbuf(1, 2))),
    (errors.ElementCountError, lambda: nisa.register_store(sbuf(1, 2), sbuf(1, 1))),
    (
        errors.ElementCountError,
        lambda: nisa.dma_transpose(dst=sbuf(128, 64), src=hbm(128, 128), axes=(1, 0)),
    ),
    (
        errors.ElementCountError,
        lambda: nisa.dma_transpose(dst=sbuf(), src=hbm(128, 128), axes=(2, 1, 0)),
    ),
    (errors.ElementCountError, lambda: all_reduce([sbuf()], [sbuf(64)])),
    (errors.ElementCountError, lambda: all_reduce([sbuf()], [])),
    (
        errors.ElementCountError,
        lambda: nccl.all_gather([sbuf()], [sbuf(64)], alone, 0),
    ),
    (errors.BufferError, lambda: all_reduce([sbuf()], [hbm(128, 128)])),
    (errors.BufferError, lambda: all_reduce([psum()], [psum()])),
    (errors.BufferError, lambda: all_reduce([sbuf(), sbuf()], [sbuf(), sbuf()])),
    (errors.BufferError, lambda: nccl.all_to_all([sbuf()], [sbuf()], alone, 0)),
    (errors.BufferError, lambda: nccl.collective_permute([sbuf()], [sbuf()], [(0, 0)])),
    (
        errors.BufferError,
        lambda: nccl.collective_permute([hbm(1, 1)] * 2, [hbm(1, 1)] * 2, [(0, 0)]),
    ),
    (errors.ReduceAxisError, lambda: nccl.all_to_all([hbm(2, 2)], [hbm(2, 2)], alone, 1)),
    (errors.ReduceAxisError, lambda: nccl.all_gather([hbm(2, 2)], [hbm(2, 2)], alone, 1)),
    (errors.ReduceAxisError, lambda: nccl.reduce_scatter([sbuf()], [sbuf()], alone, 1, nl.add)),
    (errors.MatmulShapeError, lambda: matmul(tile_size=(64, 128), tile_position=(32, 0))),
    (errors.MatmulShapeError, lambda: matmul(tile_size=(64, 128), tile_position=(128, 0))),
    (errors.MatmulDtypeError, lambda: matmul(stationary=sbuf(), moving=sbuf(dtype=nl.bfloat16))),
    (errors.OutOfBoundsError, lambda: sbuf()[0, 0, 0]),
    (errors.AccessPatternError, lambda: sbuf(128, 8).squeeze_dim(1)),
    (errors.AccessPatternError, lambda: sbuf(128, 8)[:, 0:8:2].view(nl.uint8)),
    (errors.AccessPatternError, lambda: sbuf(128, 8).reshape_dim(0, (2, 64))),
    (errors.AccessPatternError, lambda: sbuf(128, 8).reshape_dim(1, (3, -1))),
    (errors.AccessPatternError, lambda: sbuf(128, 8).reshape_dim(1, (-1, -1))),
    (errors.AccessPatternError, lambda: sbuf(128, 8).flatten_dims(0, 1)),
    (
        errors.AccessPatternError,
        lambda: sbuf(128, 8).reshape((128, 2, 4)).permute((0, 2, 1)).flatten_dims(1, 2),
    ),
    (errors.AccessPatternError, lambda: sbuf(128, 8).rearrange(("p", "f"), ("p", "g"))),
    (
        errors.AccessPatternError,
        lambda: hbm(4, 4).ap(pattern=[[4, 1], [1, 4]], scalar_offset=sbuf(1, 2, nl.int32)),
    ),
    (
        errors.OutOfBoundsError,
        lambda: (
            hbm(4, 4, 4).ap(
                pattern=[[4, 2], [1, 4]], offset=12, scalar_offset=sbuf(1, 1, nl.int32),
                indirect_dim=1,
            )
        ),
    ),
    (errors.DtypeError, lambda: shift("bitwise_or", data=nl.float32)),
    (errors.DtypeError, lambda: shift("bitwise_or", data=nl.int16)),
    (errors.DtypeError, lambda: combine("bitwise_xor")),
    (
        errors.DtypeError,
        lambda: nisa.tensor_copy_predicated(
            dst=sbuf(), src=sbuf(dtype=nl.bfloat16), predicate=sbuf(dtype=nl.uint8)
        ),
    ),
    (errors.DtypeError, lambda: select(predicate=sbuf(dtype=nl.int32))),
    (errors.DmaError, lambda: nisa.dma_transpose(dst=hbm(8, 8), src=hbm(8, 8), axes=(1, 0))),
    (
        errors.DmaError,
        lambda: nisa.dma_transpose(dst=sbuf(dtype=nl.bfloat16), src=hbm(128, 128), axes=(1, 0)),
    ),
    (
        errors.DmaError,
        lambda: nisa.dma_transpose(
            dst=sbuf(), src=hbm(128, 128), axes=(1, 0), dge_mode=nisa.dge_mode.hwdge
        ),
    ),
    (
        errors.DmaError,
        lambda: nisa.dma_copy(dst=sbuf(), src=hbm(128, 128), engine=nisa.engine.vector),
    ),
    (
        errors.DmaError,
        lambda: nisa.dma_copy(
            dst=sbuf(), src=hbm(128, 128), engine=nisa.engine.scalar, dge_mode=nisa.dge_mode.swdge
        ),
    ),
    (errors.DmaError, lambda: dynamic_copy(dge_mode=nisa.dge_mode.none)),
    (
        errors.GenerationError,
        lambda: nisa.dma_transpose(dst=sbuf(), src=hbm(128, 128), axes=(1, 0), priority=1),
    ),
    (
        errors.GenerationError,
        lambda: nccl.all_gather([sbuf()], [sbuf()], alone, 0, priority=1),
    ),
    (errors.GenerationError, lambda: microscaled()),
    (errors.GenerationError, lambda: nisa.quantize_mx(sbuf(), sbuf(), sbuf())),
    (errors.GenerationError, lambda: matmul(moving=sbuf(dtype=nl.float8_e4m3fn))),
    (errors.LaunchError, lambda: all_reduce([sbuf()], [sbuf()], group=[[1]])),
    (errors.LaunchError, lambda: nisa.core_barrier(sbuf())),
    (errors.LaunchError, lambda: send()),
    (errors.LaunchError, lambda: sim.jit(lambda: None)[3]),
    (errors.LoopError, lambda: ordered(lambda: nl.fori_loop(0, 1, lambda i: None))),
    (errors.LoopError, lambda: ordered(lambda: nl.while_loop(sbuf(1, 1), lambda r: r))),
    (errors.LoopError, lambda: nl.while_loop(sbuf(1, 1, nl.int32), lambda r: None)),
    (errors.NotSimulatedError, lambda: hbm(4, 4).ap([[4, 4], [1, 4]], vector_offset=sbuf(4, 1))),
    (errors.NotSimulatedError, lambda: hbm(4, 4).ap([[4, 4], [1, 4]], dtype=nl.bfloat16)),
    (errors.NotSimulatedError, lambda: hbm(4, 4).select(0, sbuf(1, 1, nl.int32))),
    (errors.NotSimulatedError, lambda: nl.ndarray((1, 1), nl.float32, address=(0, 0))),
    (
        errors.NotSimulatedError,
        lambda: nisa.dma_copy(dst=sbuf(), src=hbm(128, 128), oob_mode=nisa.oob_mode.skip),
    ),
    (
        errors.NotSimulatedError,
        lambda: nisa.tensor_scalar_reduce(
            dst=sbuf(), data=sbuf(), op0="add", operand0=1.0, reduce_op="add", reduce_init=0.0
        ),
    ),
    (errors.NotSimulatedError, lambda: window(reduce_cmd=nisa.reduce_cmd.reduce)),
    (errors.NotSimulatedError, lambda: shift("left_shift", operand0=sbuf(128, 1))),
    (errors.NotSimulatedError, lambda: nccl.collective_permute([hbm(1, 1)], [hbm(1, 1)], [])),
]  # fmt: skip
# The same for kernels that run otherwise than on one core of trn2, or that do not come to run.
ELSEWHERE = [
    (errors.GenerationError, lambda: run(lambda: window(), chip="trn1")),
    (errors.GenerationError, lambda: run(lambda: activate(bias=1.0), chip="trn1")),
    (errors.GenerationError, lambda: run(lambda: matmul(**fp8(), perf_mode=double), chip="trn1")),
    (
        errors.GenerationError,
        lambda: run(lambda: matmul(tile_size=(32, 128), tile_position=(0, 0)), chip="trn1"),
    ),
    (errors.NotSimulatedError, lambda: run(lambda: microscaled(), chip="trn3")),
    (
        errors.NotSimulatedError,
        lambda: run(lambda: nisa.quantize_mx(sbuf(), sbuf(), sbuf()), chip="trn3"),
    ),
    (
        errors.MatmulDtypeError,
        lambda: run(
            lambda: matmul(
                moving=sbuf(dtype=nl.float8_e4m3), stationary=sbuf(dtype=nl.float8_e4m3fn)
            ),
            chip="trn3",
        ),
    ),
    (
        errors.OperationError,
        lambda: run(
            lambda: nisa.exponential(dst=sbuf(), src=sbuf(), reduce_res=sbuf(128, 1)), chip="trn3"
        ),
    ),
    (errors.DmaError, lambda: run(lambda: send(src=hbm(1, 1)), cores=2)),
    (errors.DtypeError, lambda: run(lambda: send(dst=sbuf(dtype=nl.bfloat16)), cores=2)),
    (errors.DtypeError, lambda: run(lambda: send(dst=sbuf(64)), cores=2)),
    (errors.LaunchError, lambda: run(lambda: send(to=0), cores=2)),
    (errors.LaunchError, lambda: run(lambda: nisa.core_barrier(hbm(1, 1), cores=(0, 2)), cores=2)),
    (
        errors.ElementCountError,
        lambda: run(
            lambda: nccl.all_to_all([hbm(3, 2)], [hbm(3, 2)], nccl.ReplicaGroup([[0, 1]]), 0),
            ranks=2,
        ),
    ),
    (
        errors.NotSimulatedError,
        lambda: run(lambda: nl.while_loop(sbuf(1, 1), lambda r: r), numerics=False),
    ),
    (errors.NotSimulatedError, lambda: run(lambda: None, cores=2, ranks=2)),
    (errors.LaunchError, lambda: sim.run(sim.jit(lambda: None), [()], ranks=2)),
    (errors.LaunchError, lambda: sim.run(sim.jit(lambda a: None), ())),
    (errors.LaunchError, lambda: nl.zeros((1, 1), nl.float32)),
    (errors.LaunchError, lambda: Meeting(2, timeout_s=0.01).exchange(0, None)),
    (errors.OutputBufferError, lambda: sim.run(sim.jit(lambda: nl.zeros((1, 1), nl.float32)), ())),
    (errors.CapacityError, lambda: run(lambda: tiles_of_240_kib(together=True))),
    *(
        (errors.DmaError, lambda d=dtype, n=most: run(lambda: send_by_gpsimd(n + 1, d), cores=2))
        for dtype, most in ((nl.float32, 256), (nl.bfloat16, 256), (nl.uint8, 256))
    ),
]  # fmt: skip
ALL = [(error, partial(run, body)) for error, body in BROKEN] + ELSEWHERE
