"""Each simulated instruction that computes against NumPy."""

import re
from pathlib import Path

import numpy as np
import pytest

from nki_kernels.sim import alu
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from tests.nki_kernels.simulated import BF16, COLUMN, A, B, close, load, rng, through

# What each operation is, written down a second time: one that the simulator has and these have not
# fails below.
TWO_INPUTS = {
    "add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b,
    "maximum": lambda a, b: np.where(a > b, a, b), "minimum": lambda a, b: np.where(a < b, a, b),
    "equal": lambda a, b: a == b, "not_equal": lambda a, b: a != b, "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b, "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b, "logical_and": lambda a, b: (a != 0) & (b != 0),
    "logical_or": lambda a, b: (a != 0) | (b != 0),
    "logical_xor": lambda a, b: (a != 0) ^ (b != 0), "power": lambda a, b: a**b,
    "abs_max": lambda a, b: np.where(abs(a) > abs(b), abs(a), abs(b)),
    "abs_min": lambda a, b: np.where(abs(a) < abs(b), abs(a), abs(b)),
}  # fmt: skip
ONE_INPUT = {
    "abs": abs, "square": lambda x: x * x, "relu": lambda x: x * (x > 0),
    "rsqrt": lambda x: x**-0.5, "reciprocal": lambda x: x**-1.0,
}  # fmt: skip
BITS = {
    "bitwise_and": lambda a, b: a & b, "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b, "left_shift": lambda a, b: a << b,
    "right_shift": lambda a, b: a >> b, "invert": lambda a, b: ~a,
}  # fmt: skip
ROWS = {"add": np.sum, "multiply": np.prod, "maximum": np.max, "minimum": np.min}
SPARSE = np.round(A), np.round(B)  # equal at some places, and zero at some


@pytest.mark.parametrize("engine", ["vector", "gpsimd"])
@pytest.mark.parametrize("op", alu.BINARY)
def test_tensor_tensor(op, engine):
    a, b = (abs(SPARSE[0]) + 0.5, SPARSE[1]) if op == "power" else SPARSE
    where = nisa.engine["gpsimd" if op == "power" else engine]

    def body(d, x, y):
        nisa.tensor_tensor(dst=d, data1=x, data2=y, op=getattr(nl, op), engine=where)

    out = through(body, a, b)
    truth = TWO_INPUTS[op](a, b).astype(np.float32)
    assert len(np.unique(truth)) > 1
    close(out, truth)


@pytest.mark.parametrize("op", alu.UNARY)
def test_operations_of_one_input(op):
    x = abs(A) + 0.1 if op in ("rsqrt", "reciprocal") else A
    out = through(
        lambda d, a: nisa.tensor_scalar(dst=d, data=a, op0=getattr(nl, op), operand0=0.0), x
    )
    close(out, ONE_INPUT[op](x), 1e-5)


@pytest.mark.parametrize("op", alu.BITS)
def test_operations_on_bits(op):
    a = rng.integers(-(1 << 30), 1 << 30, (128, 96)).astype(np.int32)
    b = rng.integers(0, 31, (128, 96)).astype(np.int32)

    def scalar(d, x):
        nisa.tensor_scalar(dst=d, data=x, op0=getattr(nl, op), operand0=5)

    def tensor(d, x, y):
        nisa.tensor_tensor(dst=d, data1=x, data2=y, op=getattr(nl, op))

    truth = BITS[op](a, np.int32(5))
    np.testing.assert_array_equal(through(scalar, a, dtype=nl.int32), truth)
    if op != "invert":
        np.testing.assert_array_equal(through(tensor, a, b, dtype=nl.int32), BITS[op](a, b))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_words_are_exact_on_gpsimd_and_float32_on_vector(dtype):
    a, b = np.full((2, 4), 2**24, dtype), np.ones((2, 4), dtype)

    def add(d, x, y, engine):
        return nisa.tensor_tensor(dst=d, data1=x, data2=y, op=nl.add, engine=nisa.engine[engine])

    def out(engine, second=b):
        body = lambda d, x, y: add(d, x, y, engine)  # noqa: E731
        return through(body, a, second, shape=a.shape, dtype=np.dtype(dtype))

    assert (out("unknown") == 2**24 + 1).all() and (out("gpsimd") == 2**24 + 1).all()
    assert (out("vector") == 2**24).all()
    assert (out("unknown", np.full_like(a, np.iinfo(dtype).max)) == a + np.iinfo(dtype).max).all()

    def engines(d, x, y):
        floats, bank = nl.ndarray(a.shape, nl.float32), nl.ndarray(a.shape, d.dtype, nl.psum)
        assert add(d, x, y, "unknown").engine == "pool"
        assert add(floats, x, y, "unknown").engine == add(bank, x, y, "unknown").engine == "dve"

    through(engines, a, b, shape=a.shape, dtype=np.dtype(dtype))


@pytest.mark.parametrize("op", alu.REDUCTIONS)
def test_reductions_over_rows_partitions_and_beside_the_result(op):
    x = 1 + A / 8
    rows, columns = ROWS[op](x, axis=1, keepdims=True), ROWS[op](x, axis=0, keepdims=True)
    close(
        through(lambda d, a: nisa.tensor_reduce(dst=d, op=op, data=a, axis=1), x, shape=(128, 1)),
        rows, 1e-4,
    )  # fmt: skip

    def partitions(d, a):
        nisa.tensor_partition_reduce(dst=d, op=op, data=a)

    close(through(partitions, x, shape=(1, 96)), columns, 1e-4)

    def beside(d, a):
        values = nl.ndarray(a.shape, nl.float32)
        nisa.tensor_scalar_reduce(
            dst=values, data=a, op0="multiply", operand0=1.0, reduce_op=op, reduce_res=d,
            reduce_res_negate=True,
        )  # fmt: skip

    close(through(beside, x, shape=(128, 1)), -rows, 1e-4)


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

    def second(d, a):
        nisa.tensor_scalar(
            dst=d, data=a, op0="multiply", operand0=3.0, op1="subtract", operand1=2.0, reverse1=True
        )

    def rsqrt(d, a):
        nisa.tensor_scalar(
            dst=d, data=a, op0="add", operand0=9.0, op1="rsqrt", operand1=0.0,
            engine=nisa.engine.gpsimd,
        )  # fmt: skip

    close(through(reverse, A), 2 - A)
    close(through(second, A), 2 - 3 * A)
    close(through(rsqrt, A), 1 / np.sqrt(A + 9))


def test_scalar_tensor_tensor():
    def body(d, a, b, c):
        nisa.scalar_tensor_tensor(dst=d, data=a, op0="multiply", operand0=c, op1="add", operand1=b)

    close(through(body, A, B, COLUMN), A * COLUMN + B)

    def reverse(d, a, b):
        nisa.scalar_tensor_tensor(
            dst=d, data=a, op0="subtract", operand0=1.0, op1="subtract", operand1=b, reverse0=True,
            reverse1=True,
        )  # fmt: skip

    close(through(reverse, A, B), B - (1 - A))


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
    for dtype, tolerance in ((np.float32, 1e-4), (BF16, 0.3), (nl.float8_e4m3, 5)):

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
    fp8 = nl.float8_e4m3
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


def test_a_transpose_by_matmul_keeps_the_dtype():
    x = A.astype(BF16)

    def body(d, a):
        identity = load(nl.shared_identity_matrix(128, nl.bfloat16))
        nisa.nc_matmul(dst=d, stationary=a, moving=identity, is_transpose=True)

    out = through(body, x, shape=(96, 128), dtype=nl.bfloat16, psum=True)
    np.testing.assert_array_equal(out, x.T)


def test_small_products_in_tiles_of_the_array():
    def body(d, a, b):
        for row in (0, 64):  # two contractions of 64, one in each half of the rows
            nisa.nc_matmul(
                dst=d, stationary=a[row : row + 64, 0:32], moving=b[row : row + 64],
                accumulate=row > 0, tile_position=(row, 0), tile_size=(64, 128),
            )  # fmt: skip

    out = through(body, A, B, shape=(32, 96), psum=True)
    close(out, A[:, :32].T @ B, 1e-4)

    def columns(d, a, b):
        for column in (0, 32):
            nisa.nc_matmul(
                dst=d[column : column + 32], stationary=a[:, column : column + 32], moving=b,
                accumulate=False, tile_position=(0, column), tile_size=(128, 32),
            )  # fmt: skip

    close(through(columns, A, B, shape=(64, 96), psum=True), A[:, :64].T @ B, 1e-4)


def test_reductions_of_selects():
    mask = (A > 0).astype(np.uint8)
    low, high = np.full((128, 1), 10, np.float32), np.full((128, 1), 20, np.float32)

    def select(d, a, m):
        nisa.select_reduce(
            dst=nl.ndarray(a.shape, nl.float32), predicate=m, on_true=a, on_false=-7.0,
            reduce_res=d, reduce_cmd=nisa.reduce_cmd.reset_reduce, reverse_pred=True,
        )  # fmt: skip

    def window(d, a, lo, hi):
        nisa.range_select(
            dst=nl.ndarray(a.shape, nl.float32), on_true_tile=a, comp_op0="greater_equal",
            comp_op1="less", bound0=lo, bound1=hi, reduce_res=d,
        )  # fmt: skip

    truth = np.where(mask, -7, A).max(axis=1, keepdims=True)
    close(through(select, A, mask, shape=(128, 1)), truth)
    truth = A[:, 10:20].max(axis=1, keepdims=True)
    close(through(window, A, low, high, shape=(128, 1)), truth)


@pytest.mark.parametrize(
    ("axes", "shape", "out"),
    [((2, 1, 0), (6, 4, 96), (96, 4, 6)), ((3, 1, 2, 0), (6, 4, 2, 96), (96, 4, 2, 6))],
)
def test_transposes_on_the_way_in(axes, shape, out):
    x = rng.standard_normal(shape).astype(np.float32)

    def body(d):
        nisa.dma_transpose(dst=d, src=nl.shared_constant(x), axes=axes)

    np.testing.assert_array_equal(through(body, shape=out), x.transpose(axes))


def test_copies_cast_on_the_way():
    def body(d):
        nisa.dma_copy(dst=d, src=nl.shared_constant(A))

    np.testing.assert_array_equal(through(body, dtype=nl.bfloat16), A.astype(BF16))


def test_each_table_has_its_numbers():
    assert TWO_INPUTS.keys() == alu.BINARY.keys() and ONE_INPUT.keys() == alu.UNARY.keys()
    assert BITS.keys() == set(alu.BITS) and ROWS.keys() == alu.REDUCTIONS.keys()


@pytest.mark.parametrize(("module", "prefix"), [(nisa, "nisa"), (nccl, "nccl")])
def test_each_public_name_is_called_by_a_test(module, prefix):
    tests = "".join(p.read_text(encoding="utf-8") for p in Path(__file__).parent.glob("*.py"))
    names = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    names = {n for n in {*names, *getattr(module, "__all__", ())} if not n.startswith("_")}
    missing = {n for n in names if not re.search(rf"\b{prefix}\.{n}\b", tests)}
    assert len(names) > 6 and missing == set()
