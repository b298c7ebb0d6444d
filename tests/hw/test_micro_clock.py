"""The clock and the cases: loops that compute what they should and cannot be optimised away."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax.hw.micro import clock
from lsd_jax.hw.micro.suites import SUITES, chosen, find
from lsd_jax.hw.micro.suites.machine import collective_case, launch_case, transfer_case
from lsd_jax.hw.micro.suites.matrices import matmul_case
from lsd_jax.hw.micro.suites.vectors import copy_case, sum_case

FAST = clock.Budget(0.002, 4)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_loop_gives_the_functions_result_and_leaves_its_arguments(turns):
    a = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    loop, carry, others = clock.in_a_loop(lambda x, y: x @ y, (jnp.asarray(a), jnp.asarray(2 * a)))
    first, _, out = jax.jit(loop)(jnp.int32(turns), carry, others)
    np.testing.assert_allclose(out, a @ (2 * a), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first, a)


def bodies(case) -> str:
    """The program of a case's loop without its entry: what is done in each turn."""
    arguments = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), case.arguments)
    loop, carry, others = clock.in_a_loop(case.function, arguments)
    text = jax.jit(loop, donate_argnums=1).lower(jnp.int32(1), carry, others).compile().as_text()
    return text.split("ENTRY")[0]


def test_the_work_stays_in_the_loop_and_the_array_is_not_copied():
    assert re.search(r" dot\(|__ynn", bodies(matmul_case("f32", 64, 64, 64)))
    for case in (copy_case(1 << 16), sum_case(1 << 16)):
        assert not re.search(r"f32\[16384\]\S* copy\(", bodies(case))


def test_eight_times_the_work_takes_longer():
    small, large = (clock.measure(matmul_case("f32", n, n, n), FAST) for n in (64, 256))
    assert 0 < 4 * small.fastest < large.fastest  # 64 times the multiply-adds


@pytest.mark.parametrize(
    "case", [launch_case(2), transfer_case("send", 4096, 2), transfer_case("fetch", 4096, 1)]
)
def test_calls_and_transfers_are_timed(case):
    found = clock.measure(case, FAST)
    assert len(found.samples) >= FAST.samples
    assert 0 < found.fastest == min(found.samples)


def test_a_compilation_is_timed_anew_each_time():
    found = clock.measure(find("compile f32 products1"), FAST)
    assert min(found.samples) > 1e-3


@pytest.mark.multidevice
@pytest.mark.parametrize(
    "op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "shift"]
)
def test_collectives_run_on_a_ring(op):
    case = collective_case(op, 4096, 4)
    values = jax.device_put(clock.on_host(case.arguments[0]), case.arguments[0].sharding)
    got = np.asarray(jax.jit(case.function)(values))
    parts = np.asarray(values).reshape(4, -1)
    whole = parts.reshape(4, 4, -1)
    expected = {
        "all_reduce": parts.sum(0),
        "all_gather": np.tile(parts, (4, 1)),
        "reduce_scatter": parts.sum(0),
        "all_to_all": whole.swapaxes(0, 1),
        "shift": np.roll(parts, 1, axis=0),
    }[op]
    np.testing.assert_allclose(got.ravel(), expected.ravel(), rtol=1e-5, atol=1e-5)
    assert clock.measure(case, FAST).fastest > 0


def test_every_case_has_a_name_of_its_own_and_the_quick_ones_are_among_all():
    every = {name: [c.name for c in suite(False)] for name, suite in SUITES.items()}
    names = [name for some in every.values() for name in some]
    assert len(names) == len(set(names))
    for name, suite in SUITES.items():
        assert {case.name for case in suite(True)} <= set(every[name])
        assert len(suite(True)) <= len(every[name])


def test_every_quick_case_traces():
    for name, suite in SUITES.items():
        for case in suite(True):
            if name not in ("transfer", "collective"):
                assert jax.eval_shape(case.function, *case.arguments) is not None
            assert case.operations >= 0 and case.bytes >= 0


def test_an_unknown_suite_names_those_known():
    with pytest.raises(ValueError, match="--suite warp: known here: matmul, .*compile"):
        chosen("matmul,warp", True)
    with pytest.raises(ValueError, match="known here"):
        chosen("", True)
    assert {c.suite for c in chosen("launch,memory", True)} == {"launch", "memory"}


def test_a_product_counts_its_operations_and_bytes():
    case = matmul_case("bf16", 3, 5, 7)
    assert case.operations == 2 * 3 * 5 * 7
    assert case.bytes == 2 * (15 + 35) + 4 * 21
    assert case.name == "matmul bf16 m3 k5 n7"
