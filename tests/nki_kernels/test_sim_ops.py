"""Each simulated instruction against NumPy."""

import ml_dtypes
import numpy as np
import pytest

from nki_kernels import sim
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl

rng = np.random.default_rng(0)
A = rng.standard_normal((128, 96)).astype(np.float32)
B = rng.standard_normal((128, 96)).astype(np.float32)
COLUMN = rng.standard_normal((128, 1)).astype(np.float32)
BF16 = ml_dtypes.bfloat16


def through(body, *arrays, shape=(128, 96), dtype=nl.float32, chip="trn2", psum=()):
    """`body(dst, *tiles)` over tiles in SBUF that hold the arrays; what `dst` holds then."""

    def kernel(*tensors):
        out = nl.ndarray(shape, dtype, nl.shared_hbm)
        tiles = [load(t) for t in tensors]
        dst = nl.ndarray(shape, dtype, nl.psum if psum else nl.sbuf)
        body(dst, *tiles)
        if psum:
            copy = nl.ndarray(shape, dtype)
            nisa.tensor_copy(dst=copy, src=dst)
            dst = copy
        nisa.dma_copy(dst=out, src=dst)
        return out

    return sim.run(sim.jit(kernel), arrays, chip).outputs[0]


def load(tensor):
    tile = nl.ndarray(tensor.shape, tensor.dtype)
    nisa.dma_copy(dst=tile, src=tensor)
    return tile


def close(a, b, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("engine", ["vector", "gpsimd"])
@pytest.mark.parametrize("op", ["add", "subtract", "multiply", "maximum", "minimum", "greater"])
def test_tensor_tensor(op, engine):
    where = nisa.engine[engine]
    out = through(
        lambda d, a, b: nisa.tensor_tensor(dst=d, data1=a, data2=b, op=op, engine=where), A, B
    )
    close(out, getattr(np, op)(A, B).astype(np.float32))


@pytest.mark.parametrize("engine", ["vector", "scalar", "gpsimd"])
def test_tensor_scalar_takes_numbers_and_columns(engine):
    where = nisa.engine[engine]

    def body(d, a, c):
        nisa.tensor_scalar(
            dst=d, data=a, op0="multiply", operand0=c, op1="add", operand1=0.5, engine=where
        )

    close(through(body, A, COLUMN), A * COLUMN + 0.5)


def test_tensor_scalar_reverses_and_has_unary_operations():
    def reverse(d, a):
        nisa.tensor_scalar(dst=d, data=a, op0="subtract", operand0=2.0, reverse0=True)

    def rsqrt(d, a):
        nisa.tensor_scalar(
            dst=d, data=a, op0="add", operand0=9.0, op1="rsqrt", operand1=0.0,
            engine=nisa.engine.gpsimd,
        )  # fmt: skip

    close(through(reverse, A), 2 - A)
    close(through(rsqrt, A), 1 / np.sqrt(A + 9))


def test_bitwise_on_integers():
    numbers = rng.integers(0, 1 << 20, (128, 8)).astype(np.int32)

    def body(d, a):
        nisa.tensor_scalar(
            dst=d, data=a, op0="bitwise_and", operand0=255, op1="left_shift", operand1=2
        )

    out = through(body, numbers, shape=(128, 8), dtype=nl.int32)
    np.testing.assert_array_equal(out, (numbers & 255) << 2)


def test_scalar_tensor_tensor():
    def body(d, a, b, c):
        nisa.scalar_tensor_tensor(dst=d, data=a, op0="multiply", operand0=c, op1="add", operand1=b)

    close(through(body, A, B, COLUMN), A * COLUMN + B)


@pytest.mark.parametrize(("op", "reduce"), [("add", np.sum), ("maximum", np.max)])
def test_tensor_reduce(op, reduce):
    def body(d, a):
        nisa.tensor_reduce(dst=d, op=op, data=a, axis=1, negate=True)

    close(through(body, A, shape=(128, 1)), -reduce(A, axis=1, keepdims=True), 1e-5)
    cube = A.reshape(128, 8, 12)
    out = through(
        lambda d, a: nisa.tensor_reduce(dst=d, op=op, data=a, axis=2), cube, shape=(128, 8)
    )
    close(out, reduce(cube, axis=2), 1e-5)


def test_reductions_beside_the_result():
    def scalar(d, a):
        values = nl.ndarray(a.shape, nl.float32)
        nisa.tensor_scalar_reduce(
            dst=values, data=a, op0="multiply", operand0=2.0, reduce_op="add", reduce_res=d
        )

    def activation(d, a):
        values = nl.ndarray(a.shape, nl.bfloat16)
        nisa.activation_reduce(
            dst=values, op="exp", data=a, reduce_op="add", reduce_res=d, scale=0.5, bias=0.1
        )

    close(through(scalar, A, shape=(128, 1)), 2 * A.sum(1, keepdims=True), 1e-5)
    close(through(activation, A, shape=(128, 1)), np.exp(A / 2 + 0.1).sum(1, keepdims=True), 1e-5)


@pytest.mark.parametrize(
    ("op", "truth"),
    [
        ("copy", lambda x: x), ("square", np.square), ("exp", np.exp), ("tanh", np.tanh),
        ("relu", lambda x: np.maximum(x, 0)), ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("silu", lambda x: x / (1 + np.exp(-x))), ("abs", np.abs), ("sign", np.sign),
        ("softplus", lambda x: np.log1p(np.exp(x))), ("arctan", np.arctan), ("sin", np.sin),
        ("gelu_apprx_tanh", lambda x: x / (1 + np.exp(-1.5957691 * (x + 0.044715 * x**3)))),
        ("gelu_apprx_sigmoid", lambda x: x / (1 + np.exp(-1.702 * x))),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    ],
)  # fmt: skip
def test_scalar_engine_functions(op, truth):
    x = np.clip(A, -1, 1)
    close(through(lambda d, a: nisa.activation(dst=d, op=op, data=a), x), truth(x), 2e-6)


@pytest.mark.parametrize(
    ("op", "truth"),
    [
        ("log", np.log),
        ("sqrt", np.sqrt),
        ("rsqrt", lambda x: x**-0.5),
        ("reciprocal", lambda x: 1 / x),
    ],
)
def test_scalar_engine_functions_of_positive_numbers(op, truth):
    x = np.abs(A) + 0.1
    close(through(lambda d, a: nisa.activation(dst=d, op=op, data=a), x), truth(x), 2e-6)


def test_erf_and_gelu_agree():
    from math import erf

    x = A[:, :4]
    truth = np.vectorize(erf)(x)
    close(through(lambda d, a: nisa.activation(dst=d, op="erf", data=a), x, shape=x.shape), truth)
    gelu = 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))
    close(through(lambda d, a: nisa.activation(dst=d, op="gelu", data=a), x, shape=x.shape), gelu)


def test_activation_scales_and_shifts_by_columns():
    def body(d, a, c):
        nisa.activation(dst=d, op="exp", data=a, scale=0.5, bias=c)

    close(through(body, A, COLUMN), np.exp(A / 2 + COLUMN), 1e-5)


def test_reciprocal_and_exponential():
    x = np.abs(A) + 1
    close(through(lambda d, a: nisa.reciprocal(dst=d, data=a), x), 1 / x)

    def body(d, a, c):
        total = nl.ndarray((128, 1), nl.float32)
        nisa.exponential(
            dst=d, src=a, max_value=c, reduce_res=total, reduce_cmd=nisa.reduce_cmd.reset_reduce
        )
        nisa.tensor_scalar(dst=d, data=d, op0="subtract", operand0=total)

    values = np.exp(A - COLUMN)
    close(through(body, A, COLUMN, chip="trn3"), values - values.sum(1, keepdims=True), 1e-4)


def test_batch_statistics():
    def body(d, a):
        stats = nl.ndarray((128, 12), nl.float32)
        nisa.bn_stats(dst=stats[:, 0:6], data=a[:, 0:50])
        nisa.bn_stats(dst=stats[:, 6:12], data=a[:, 50:96])
        nisa.bn_aggr(dst=d, data=stats)

    out = through(body, A, shape=(128, 2))
    close(out, np.stack([A.mean(1), A.var(1)], axis=1), 1e-5)


def test_matmul_in_three_dtypes_and_accumulated():
    w = rng.standard_normal((128, 64)).astype(np.float32)
    for dtype, tolerance in ((np.float32, 1e-4), (BF16, 0.3), (ml_dtypes.float8_e4m3, 5)):

        def body(d, a, b):
            nisa.nc_matmul(dst=d, stationary=a, moving=b, accumulate=False)
            nisa.nc_matmul(dst=d, stationary=a, moving=b, accumulate=True)
            nisa.nc_matmul(dst=d, stationary=a, moving=b)

        a, b = w.astype(dtype), A.astype(dtype)
        exact = 3 * a.astype(np.float32).T @ b.astype(np.float32)
        out = through(body, a, b, shape=(64, 96), psum=True)
        close(out, exact, 1e-4)
        close(out, 3 * w.T @ A, 3 * tolerance)


def test_double_row_contracts_256():
    fp8 = ml_dtypes.float8_e4m3
    a, b = (rng.standard_normal((128, 2, n)).astype(fp8) for n in (64, 96))

    def body(d, x, y):
        nisa.nc_matmul(
            dst=d, stationary=x, moving=y, accumulate=False,
            perf_mode=nisa.matmul_perf_mode.double_row,
        )  # fmt: skip

    truth = np.einsum("pim,pin->mn", a.astype(np.float32), b.astype(np.float32))
    close(through(body, a, b, shape=(64, 96), psum=True), truth, 1e-4)


def test_transposes():
    x = A.astype(BF16)

    def tensor(d, a):
        nisa.nc_transpose(dst=d, data=a)

    out = through(tensor, x, shape=(96, 128), dtype=nl.bfloat16, psum=True)
    np.testing.assert_array_equal(out, x.T)

    def vector(d, a):
        nisa.nc_transpose(dst=d, data=a[0:32, 0:32], engine=nisa.engine.vector)

    np.testing.assert_array_equal(through(vector, A, shape=(32, 32)), A[:32, :32].T)

    def dma(d, a):
        nisa.dma_transpose(dst=d, src=nl.shared_constant(A), axes=(1, 0))

    np.testing.assert_array_equal(through(dma, A, shape=(96, 128)), A.T)


def test_selects():
    mask = (A > 0).astype(np.uint8)

    def predicated(d, a, b, m):
        nisa.tensor_copy(dst=d, src=a)
        nisa.tensor_copy_predicated(dst=d, src=b, predicate=m)

    close(through(predicated, A, B, mask), np.where(mask, B, A))

    def select(d, a, m):
        nisa.select_reduce(dst=d, predicate=m, on_true=a, on_false=-7.0)

    close(through(select, A, mask), np.where(mask, A, -7))
    low, high = np.full((128, 1), 10, np.float32), np.full((128, 1), 20, np.float32)

    def within(d, a, lo, hi):
        nisa.range_select(
            dst=d, on_true_tile=a, comp_op0="greater_equal", comp_op1="less", bound0=lo, bound1=hi,
            range_start=5, on_false_value=0.0,
        )  # fmt: skip

    at = np.arange(5, 101)
    close(through(within, A, low, high), np.where((at >= 10) & (at < 20), A, 0))

    def affine(d, a):  # keep the lower triangle: partition - column >= 0
        nisa.affine_select(
            dst=d, pattern=[[-1, 96]], channel_multiplier=1, on_true_tile=a, on_false_value=0.0,
            cmp_op="greater_equal",
        )  # fmt: skip

    close(through(affine, A), np.tril(A))


def test_iota_scan_shuffle_and_partition_reduce():
    out = through(
        lambda d: nisa.iota(dst=d, pattern=[[10, 3], [1, 4]], offset=5, channel_multiplier=100),
        shape=(128, 12),
    )  # fmt: skip
    i, j, p = np.arange(3)[:, None], np.arange(4), np.arange(128)[:, None]
    close(out, 5 + 100 * p + (10 * i + j).reshape(-1))

    def scan(d, a, b):
        nisa.tensor_tensor_scan(dst=d, data0=a, data1=b, initial=0.5, op0="multiply", op1="add")

    state, states = np.full(128, 0.5, np.float32), []
    for k in range(96):
        state = A[:, k] * state + B[:, k]
        states.append(state)
    close(through(scan, A, B), np.stack(states, 1), 1e-4)

    mask = [*range(1, 32), 255]

    def shuffle(d, a, b):
        nisa.tensor_copy(dst=d, src=b)
        nisa.nc_stream_shuffle(dst=d, src=a, shuffle_mask=mask)

    truth = np.roll(A.reshape(4, 32, 96), -1, axis=1)
    truth[:, 31] = B.reshape(4, 32, 96)[:, 31]
    close(through(shuffle, A, B), truth.reshape(128, 96))
    out = through(
        lambda d, a: nisa.tensor_partition_reduce(dst=d, op="add", data=a), A, shape=(1, 96)
    )
    close(out, A.sum(0, keepdims=True), 1e-4)


def test_writes_round_half_to_even_and_saturate():
    x = np.array([[0.5, 1.5, 2.5, 300.0, -300.0]], np.float32)
    out = through(lambda d, a: nisa.tensor_copy(dst=d, src=a), x, shape=(1, 5), dtype=nl.int8)
    assert out.tolist() == [[0, 2, 2, 127, -128]]
    out = through(lambda d, a: nisa.tensor_copy(dst=d, src=a), A, dtype=nl.bfloat16)
    np.testing.assert_array_equal(out, A.astype(BF16))


def test_views_and_access_patterns():
    def body(d):
        source = nl.shared_constant(A)
        rows = source.ap(pattern=[[0, 128], [1, 96]], offset=96)  # row 1 in every partition
        nisa.dma_copy(dst=d, src=rows)

    close(through(body), np.broadcast_to(A[1], A.shape))

    def dynamic(d, index):
        row = nl.shared_constant(A).ap(pattern=[[96, 1], [1, 96]], scalar_offset=index)
        nisa.dma_copy(dst=d, src=row)

    index = np.array([[7]], np.int32)
    close(through(dynamic, index, shape=(1, 96)), A[7:8])

    def views(d, a):
        cube = a.reshape((128, 8, 12)).permute((0, 2, 1))  # as [12, 8]
        nisa.tensor_copy(dst=d, src=cube)

    close(through(views, A), A.reshape(128, 8, 12).transpose(0, 2, 1).reshape(128, 96))

    def bits(d, a):
        nisa.tensor_copy(dst=d, src=a.view(nl.int32)[:, 0:96])

    out = through(bits, A, dtype=nl.int32)
    np.testing.assert_array_equal(out, A.view(np.int32))


def test_registers_loops_and_constants():
    def body(d, index):
        source = nl.shared_constant(A)
        register = nisa.register_alloc(index)
        nisa.dma_copy(dst=d[0:1], src=source.ap(pattern=[[96, 1], [1, 96]], scalar_offset=register))
        total = nl.zeros((1, 96), nl.float32)

        def add(i):
            row = nl.ndarray((1, 96), nl.float32)
            nisa.dma_copy(dst=row, src=source.ap(pattern=[[96, 1], [1, 96]], scalar_offset=i))
            nisa.tensor_tensor(dst=total, data1=total, data2=row, op="add")

        nl.fori_loop(0, 5, add)
        nisa.tensor_tensor(dst=d, data1=d, data2=total, op="add")

    out = through(body, np.array([[3]], np.int32), shape=(1, 96))
    close(out, A[3:4] + A[:5].sum(0), 1e-5)
    assert sim.run.__module__ == "nki_kernels.sim.run"


def test_two_cores_share_hbm_and_exchange_tiles():
    def kernel(a):
        out = nl.ndarray((2, 128, 96), nl.float32, nl.shared_hbm)
        core = nl.program_id(0)
        mine, theirs = load(a), nl.ndarray((128, 96), nl.float32)
        nisa.tensor_scalar(dst=mine, data=mine, op0="multiply", operand0=float(core + 1))
        nisa.sendrecv(
            src=mine, dst=theirs, send_to_rank=1 - core, recv_from_rank=1 - core, pipe_id=0
        )
        nisa.dma_copy(dst=out[core], src=theirs)
        nisa.core_barrier(out)
        return out

    out = sim.run(sim.jit(kernel)[2], (A,)).outputs[0]
    close(out[0], 2 * A)
    close(out[1], A)


def test_collectives_over_ranks():
    group = nccl.ReplicaGroup([[0, 1, 2, 3]])

    def kernel(a):
        out = nl.ndarray((6, 8, 96), nl.float32, nl.shared_hbm)
        mine = load(a)
        total, gathered = nl.ndarray((8, 96), nl.float32), nl.ndarray((32, 96), nl.float32)
        part = nl.ndarray((8, 24), nl.float32)
        nccl.all_reduce([mine], [total], group, nl.add)
        nccl.all_gather([mine], [gathered], group, 0)
        nccl.reduce_scatter([mine], [part], group, 1, nl.add)
        nisa.dma_copy(dst=out[0], src=total)
        nisa.dma_copy(dst=out[1:5].reshape((32, 96)), src=gathered)
        nisa.dma_copy(dst=out[5][:, 0:24], src=part)
        nisa.dma_copy(dst=out[5][:, 24:96], src=total[:, 24:96])
        return out

    arrays = A[:32].reshape(4, 8, 96)
    done = sim.run(sim.jit(kernel), [(a,) for a in arrays], ranks=4)
    for rank, out in enumerate(done.outputs):
        close(out[0], arrays.sum(0), 1e-5)
        close(out[1:5], arrays)
        close(out[5, :, :24], arrays.sum(0)[:, rank * 24 : rank * 24 + 24], 1e-5)
