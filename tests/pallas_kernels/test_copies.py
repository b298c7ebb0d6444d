"""The kernels that only move bytes: what arrives, that nothing races, and that chips take them."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lsd_jax.hw.micro.suites import ON_TPU, find, here
from lsd_jax.ops.partition import AXIS
from pallas_kernels import aot
from pallas_kernels.tpu import copies
from tests.pallas_kernels import races
from tests.pallas_kernels.test_aot import needs_libtpu

LOAD_AND_SHIFT = "tests.pallas_kernels.test_copies:load_and_shift"
SIMULATED = pltpu.InterpretParams(detect_races=True)


def some(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("pieces", "flight"), [(3, 1), (5, 2), (2, 4), (8, 8)])
def test_every_piece_is_loaded(pieces, flight):
    x = some(pieces, 16, 128)
    total = jax.jit(partial(copies.load, flight=flight, interpret=SIMULATED))(x)
    np.testing.assert_allclose(total, x[:, :8].sum(0), rtol=1e-5, atol=1e-5)
    assert not races.found()


@pytest.mark.parametrize(("rows", "turns"), [(16, 3), (1024, 2), (1536, 1)])
def test_all_rows_are_touched_as_often_as_asked(rows, turns):
    x = some(8, 128)
    last = jax.jit(partial(copies.touch, rows=rows, turns=turns, interpret=SIMULATED))(x)
    np.testing.assert_array_equal(last, x * (-1) ** turns)


@pytest.mark.multidevice
@pytest.mark.parametrize("devices", [2, 4])
def test_each_device_hands_its_rows_to_the_next(devices):
    x = some(devices * 16, 128)
    run = jax.shard_map(
        partial(copies.shift, axis="ring", interpret=SIMULATED),
        mesh=Mesh(np.array(jax.devices()[:devices]), ("ring",)),
        in_specs=P("ring"), out_specs=P("ring"), check_vma=False,
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(run)(x), np.roll(x, 16, axis=0))
    assert not races.found()


def test_the_cases_run_these_kernels_and_only_on_a_tpu():
    assert not set(ON_TPU) & set(here())
    for name in ("load f32 bytes4096 flight16", "touch f32 bytes65536 turns512"):
        case = find(name)
        assert jax.eval_shape(case.function, *case.arguments).shape == (8, 128)


def load_and_shift():
    """Both on two chips, as `aot` compiles them."""
    run = jax.shard_map(
        lambda x, y: (copies.load(x, flight=4), copies.shift(y, AXIS)),
        in_specs=(P(), P(AXIS)), out_specs=(P(), P(AXIS)), check_vma=False,
    )  # fmt: skip
    shapes = ((64, 128, 128), (512, 128))
    arguments = tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    return run, arguments, (), (P(), P(AXIS))


@needs_libtpu
def test_the_compiler_takes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = aot.compile_for("v6e", LOAD_AND_SHIFT, {}, profile=False, chips=2)
    assert found.kernels == 2 and found.vmem_bytes >= 4 * 64 << 10
