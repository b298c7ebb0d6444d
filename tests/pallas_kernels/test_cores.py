"""The megakernel on both cores of a chip, interpreted, against the float32 specification."""

from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax import config as configs
from lsd_jax import ring
from lsd_jax.hw.chips import load
from lsd_jax.hw.stack import share, streamed_stack
from lsd_jax.ops import dispatch
from lsd_jax.ops import remember as ops
from lsd_jax.ops.commit import Retention
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.ops.remember import pinned_alone
from lsd_jax.quantize import quantize_stack
from pallas_kernels import aot, bench
from pallas_kernels.tpu.cost import total
from pallas_kernels.tpu.denoise_stack import by_kernel, shape_of
from pallas_kernels.tpu.launch import launch
from pallas_kernels.tpu.plan import Plan, filling
from pallas_kernels.tpu.planner import choose, choose_cycles, choose_for, fastest
from pallas_kernels.tpu.remember import remember
from pallas_kernels.tpu.schedule import program
from tests.marks import slow
from tests.pallas_kernels import races
from tests.pallas_kernels.examples import arguments, noticed
from tests.pallas_kernels.test_aot import needs_libtpu
from tests.pallas_kernels.test_megakernel import (
    TOLERANCE,
    assert_near,
    assert_remembers,
    remembering,
)


def plan_of(args, group=1, chunk=128, rows=16, queries=16):
    x, weights, kv, _, modulation, _ = args
    whole = shape_of(x, weights, kv, modulation)
    return Plan(share(whole, 2), group, chunk, rows, queries, filled=filling(whole), cores=2)


def run(args, plan, **options):
    """The seam on two simulated cores, with races looked for."""
    simulated = pltpu.InterpretParams(detect_races=True, **options)
    out = jax.jit(lambda *args: by_kernel(plan, *args, interpret=simulated))(*args)
    out = jax.block_until_ready(out)
    assert not races.found()
    return out


@pytest.mark.parametrize(
    ("dtype", "shape", "tiles"),
    [
        slow("float32", dict(heads=4, mlp=512), dict()),
        ("float32", dict(b=2, heads=2), dict(rows=64)),  # one block
        ("bfloat16", dict(b=2, heads=4, mlp=512), dict(rows=32, group=2, chunk=256)),
        slow("float32", dict(heads=2, g=2), dict()),
        ("bfloat16", dict(rows=3, g=2), dict()),  # 24 tokens, filled up to 32 rows; keys are shared
    ],
)
def test_equals_the_specification(dtype, shape, tiles):
    args, exact = arguments(dtype, **shape), arguments(**shape)
    if tiles.get("rows") == 64:  # sessions of one block share their modulation
        args, exact = ((*a[:4], a[4][:, :1], a[5]) for a in (args, exact))
    ours = run(args, plan_of(args, **tiles))
    assert {a.dtype.name for a in ours} == {dtype}
    assert_near(ours, jax.jit(denoise_stack)(*exact), TOLERANCE[dtype])


def test_copies_that_are_done_at_once_change_nothing():
    args = arguments(heads=2, mlp=256)
    ours = run(args, plan_of(args), dma_execution_mode="eager")
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


def test_weights_in_eight_bits():
    exact = arguments(heads=2, mlp=256)
    x, weights, *rest = exact
    args = x, quantize_stack(weights, "float32"), *rest
    assert_near(run(args, plan_of(args)), jax.jit(denoise_stack)(*exact), 3e-2)


@pytest.mark.parametrize(
    ("dtype", "shape", "tiles"),
    [
        ("float32", dict(b=2, heads=4, mlp=512), dict(group=2)),
        ("float32", dict(layers=1), dict()),  # nothing to exchange
        ("bfloat16", dict(layers=3, rows=3, p=24, g=2), dict()),
    ],
)
def test_keys_and_values_that_are_to_be_remembered(dtype, shape, tiles):
    """The last layer ends with them, each core's of its own heads."""
    plan, given, x = assert_remembers(run, plan_of, dtype, shape, tiles)
    if plan.shape.layers == 1:
        np.testing.assert_array_equal(x, given)


def test_a_frame_is_remembered_on_both_cores_as_the_specification_says():
    x, weights, kv, _, modulation, rope = arguments(b=2, heads=2)
    bias = ring.bias(pinned_alone(kv))
    retention = Retention(sinks=0, periods=(), grid=(4, 8))
    given = x, weights, kv, bias, modulation, rope, retention

    def both_cores(*args, places):
        assert places
        return run(args, remembering(plan_of(args)))

    ours, fine = remember(*given, stack=both_cores)
    with dispatch.using("xla"):
        theirs, well = ops.remember(*given)
    np.testing.assert_array_equal(fine, well)
    np.testing.assert_array_equal(ours.age, theirs.age)
    assert_near((ours.k, ours.v), (theirs.k, theirs.v), 1e-4)


def test_both_cores_have_the_same_residual_stream_to_the_last_bit():
    """Only one of them gives it away."""
    args = arguments("bfloat16", heads=2, mlp=256)
    plan = plan_of(args, rows=32)
    interpreted = pltpu.InterpretParams()

    def streams(*args):
        return launch(plan, program(plan), *args, interpret=interpreted, dump=("x",))

    out = jax.jit(streams)(*args)
    one, other = np.asarray(out["x"])
    assert np.array_equal(one, other) and np.all(np.isfinite(one))
    assert np.array_equal(one.reshape(out["x_out"].shape).astype("bfloat16"), out["x_out"])


@pytest.mark.parametrize("fault", ["none", "unheard", "one place", "whole"])
def test_cores_that_do_not_wait_are_caught(fault):
    """In a process of its own: what waits for a core that never tells would not end."""
    seen = noticed("two_cores.py")[fault]
    clean = {"raced": False, "near": True, "error": None}
    assert (seen == clean) == (fault == "none"), seen
    assert seen["raced"] == (fault != "none"), seen  # two cores that write the same place, too


@pytest.mark.parametrize("name", ["reference", "base"])
def test_a_v5p_is_planned_on_both_cores_where_that_is_faster(name):
    shape, chip = streamed_stack(configs.load(name)), load("v5p")
    alone, both = choose(shape, "v5p"), choose(shape, "v5p", cores=2)
    assert both.plan.shape == share(shape, 2) and both.plan.cores == 2
    assert 0.5 * alone.total.cycles < both.total.cycles < 0.85 * alone.total.cycles
    assert fastest(shape, chip) == both and both.plan.describe().startswith("2 cores, each ")
    assert fastest(shape, chip, 2).plan.cores == 1  # of several chips one core each
    assert fastest(shape, load("v6e")).plan.cores == 1
    cycles = choose_cycles([shape, shape], chip, cores=2)
    assert cycles == pytest.approx(2 * [both.total.cycles])


def test_what_two_cores_cannot_share_stays_on_one():
    odd = shape_of(*arguments("bfloat16", heads=3, mlp=384)[:3], arguments("bfloat16")[4])
    assert fastest(odd, load("v5p")).plan.cores == 1
    with pytest.raises(NotImplementedError, match="heads=3 cannot be shared"):
        choose_for(odd, load("v5p"), 1, 2)


def test_an_exchange_costs_its_bytes_and_its_latency():
    """A share goes to HBM and comes back from there, twice a layer."""
    plan = choose(streamed_stack(configs.load("reference")), "v5p", cores=2).plan
    shape, chip = plan.shape, load("v5p")
    both = total(program(plan), plan, chip)
    by_itself = replace(plan, cores=1)
    alone = total(program(by_itself), by_itself, chip)
    moved = 2 * shape.layers * 2 * shape.rows * shape.dim * shape.itemsize
    assert both.hbm_bytes - alone.hbm_bytes == moved
    assert both.compute_cycles - alone.compute_cycles > 2 * shape.layers * 2 * 670


def test_a_row_of_both_cores_is_one_of_what_each_does(monkeypatch):
    def compiled(chip, case, options, profile=True, chips=1):
        assert profile and chips == 1 and options["heads"] == 4
        return aot.Compiled({1: 80_000, 2: 60_000}[options["cores"]], 1, 1, {}, {}, 9, 9, 0, 1, "0")

    monkeypatch.setattr(aot, "compile_for", compiled)
    chip, shape = load("v5p"), streamed_stack(configs.load("reference"))
    alone, both = bench._figures(shape, chip, "pallas"), bench.core_figures(shape, chip, 2)
    assert (alone["cycles"], both["cycles"]) == (80_000, 60_000)
    assert both["us"] == pytest.approx(60_000 / chip["clock"] * 1e6)
    assert both["floor_us"] == pytest.approx(alone["floor_us"] / 2, rel=0.05)
    assert both["mxu_busy"] == pytest.approx(alone["mxu_busy"] / 2 * 80 / 60)
    assert both["plan"].startswith("2 cores, each") and "waits for the other" in both["note"]


@needs_libtpu
@pytest.mark.parametrize("profile", [False, slow(True)])
def test_a_megakernel_on_both_cores_compiles_to_one_launch_and_is_faster(
    profile, tmp_path, monkeypatch
):
    """In one launch, in which the profiler sees one core; on both without being asked to. How fast
    takes a profile, and another of one core."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape = replace(streamed_stack(configs.load("reference")), layers=1)
    options = {"implementation": "pallas", **asdict(shape)}
    both = aot.compile_for("v5p", bench.STACK, options, profile=profile)
    assert both.kernels == both.launches == 1
    place = 2 * 2 * shape.tokens * shape.dim * 2
    assert place <= both.temp_bytes < 2 * place
    if profile:
        alone = aot.compile_for("v5p", bench.STACK, options | {"cores": 1})
        assert 0.5 * alone.cycles < both.cycles < 0.85 * alone.cycles and not alone.temp_bytes
