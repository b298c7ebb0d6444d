"""The kernels that only move bytes: what arrives, that nothing races, and that chips take them."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from lsd_jax.hw.micro.suites import ON_TPU, here, moves
from lsd_jax.ops.partition import AXIS
from pallas_kernels import aot
from pallas_kernels.tpu import copies
from tests.pallas_kernels import races
from tests.pallas_kernels.test_aot import needs_libtpu

ALL_THREE = "tests.pallas_kernels.test_copies:all_three"
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
def test_all_blocks_are_touched_as_often_as_asked(rows, turns):
    x = some(8, 128)
    total = jax.jit(partial(copies.touch, rows=rows, turns=turns, interpret=SIMULATED))(x)
    blocks = -(-rows // copies.BLOCK)
    np.testing.assert_allclose(total, blocks * x * (-1) ** turns, rtol=1e-6)


def test_rows_that_are_no_whole_blocks_are_refused():
    for rows in (12, 700):
        with pytest.raises(ValueError, match=f"{rows} rows are no whole blocks"):
            copies.touch(some(8, 128), rows, 1, interpret=SIMULATED)


@pytest.mark.multidevice
@pytest.mark.parametrize("devices", [2, 5])
def test_each_device_hands_its_rows_to_the_next_and_they_on(devices):
    def twice(x):
        return copies.shift(copies.shift(x, "ring", SIMULATED), "ring", SIMULATED)

    x = some(devices * 16, 128)
    run = jax.shard_map(
        twice,
        mesh=Mesh(np.array(jax.devices()[:devices]), ("ring",)),
        in_specs=P("ring"), out_specs=P("ring"), check_vma=False,
    )  # fmt: skip
    np.testing.assert_array_equal(jax.jit(run)(x), np.roll(x, 32, axis=0))
    assert not races.found()


def test_the_cases_run_these_kernels_and_only_on_a_tpu():
    assert not set(ON_TPU) & set(here())
    for case in (moves.load_case(4096, 16), moves.touch_case(1 << 16)):
        assert jax.eval_shape(case.function, *case.arguments).shape == (8, 128)
    handed = moves.remote_case(4096, 8)
    assert jax.eval_shape(handed.function, *handed.arguments).shape == (8 * 8, 128)


def all_three():
    """On two chips, as `aot` compiles them."""

    def run(x, y, z):
        return copies.load(x, flight=4), copies.touch(y, 2048, 3), copies.shift(z, AXIS)

    specs = P(), P(), P(AXIS)
    shapes = (64, 128, 128), (8, 128), (512, 128)
    arguments = tuple(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    shared = jax.shard_map(run, in_specs=specs, out_specs=specs, check_vma=False)
    return shared, arguments, (), specs


@needs_libtpu
def test_the_compiler_takes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = aot.compile_for("v6e", ALL_THREE, {}, profile=False, chips=2)
    assert found.kernels == 3 and found.vmem_bytes >= 1 << 20
