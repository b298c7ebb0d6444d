"""The megakernel, interpreted, against the float32 specification, and its program step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax import ring
from lsd_jax.config import ModelConfig
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.quantize import quantize_stack
from pallas_kernels.tpu import kernel, schedule
from pallas_kernels.tpu.denoise_stack import as_seam, interpreted
from pallas_kernels.tpu.interpret import interpret
from pallas_kernels.tpu.kernel import SAFE_EXPONENT, twice_gelu
from pallas_kernels.tpu.launch import launch
from tests.marks import slow
from tests.pallas_kernels import races
from tests.pallas_kernels.examples import arguments, noticed, plan_of

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
WHOLE = dict(rows=8, columns=16, p=128, slots=1, layers=1)
"""Tokens and pinned keys of whole registers, as queries along the lanes want them."""

TURNED = dict(rows=128, queries=128, turned=True)
REMEMBERING = dict(remembering=True)


def run(args, plan, **options):
    """The seam by the kernel, with races looked for."""
    simulated = pltpu.InterpretParams(detect_races=True, **options)
    program = schedule.program(plan)
    out = jax.jit(lambda *args: launch(plan, program, *args, interpret=simulated))(*args)
    out = jax.block_until_ready(as_seam(out))
    assert not races.found()
    return out


def assert_near(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(
    ("dtype", "shape", "tiles"),
    [
        slow("float32", dict(b=1), dict()),
        ("float32", dict(b=2, heads=4, mlp=384), dict(group=2, ahead=3)),
        ("float32", dict(b=4, slots=0, layers=1), dict(group=2, rows=16)),
        slow("bfloat16", dict(b=3), dict(queries=32)),
        ("bfloat16", dict(b=2, slots=1, p=0), dict(group=2, chunk=256)),
        ("float32", dict(b=2, g=2), dict(group=2, queries=8)),
        slow("bfloat16", dict(b=1, g=3, layers=1), dict()),
        # Tokens that are filled up: 24 to 32, 24 to 32 of a batch, 40 to 48, 21 to 24.
        ("bfloat16", dict(rows=3, p=24), dict()),
        slow("bfloat16", dict(b=2, rows=3, slots=2, g=2), dict(queries=32)),
        slow("bfloat16", dict(b=2, rows=5, slots=1, p=0, layers=1), dict(rows=48, queries=48)),
        ("float32", dict(b=2, rows=3, columns=7, p=5), dict(rows=24, queries=8, group=2)),
        slow("float32", dict(b=2, **WHOLE), TURNED),
        ("bfloat16", dict(b=1, g=2, **WHOLE), TURNED | dict(group=2)),
    ],
)
def test_equals_the_specification(dtype, shape, tiles, monkeypatch):
    monkeypatch.setattr("pallas_kernels.tpu.plan.TURNED_KEYS", 64)  # so that frames come in parts
    args, exact = arguments(dtype, **shape), arguments(**shape)
    plan = plan_of(args, **tiles)
    assert plan.session_rows == {21: 24, 24: 32, 32: 32, 40: 48, 128: 128}[plan.shape.tokens]
    ours = run(args, plan)
    assert {a.dtype.name for a in ours} == {dtype}
    assert_near(ours, jax.jit(denoise_stack)(*exact), TOLERANCE[dtype])


@pytest.mark.parametrize("eight", [False, slow(True)])
def test_blocks_that_are_projected_in_parts(eight, monkeypatch):
    args = in_eight_bits(arguments(b=2)) if eight else arguments(b=2)
    tiles = plan_of(args, group=2, chunk=256, rows=64)
    whole = run(args, tiles)
    monkeypatch.setattr("pallas_kernels.tpu.kernel.PROJECTED", 32)
    assert_near(run(args, tiles), whole, 5e-3 if eight else 1e-5)  # a last bit, a step of int8


@pytest.mark.parametrize("columns", [slow(8), 7])
def test_one_modulation_for_all_sessions_and_blocks_of_several(columns):
    x, weights, kv, bias, modulation, rope = arguments(b=2, columns=columns)
    args = x, weights, kv, bias, modulation[:, :1], rope
    ours = run(args, plan_of(args, group=2, chunk=256, rows=64, queries=32))
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


@pytest.mark.parametrize("forgotten", ["own", "window", None])
def test_rows_that_fill_up_would_be_seen_were_they_not_masked(forgotten, monkeypatch):
    """As keys of the frame itself, and in the whole tiles of keys in which a slot begins or ends:
    21 keys and slots of 40, in tiles of 16."""
    hide = kernel.seen

    def seen(bias, keys, first, size):
        own = bias.shape[1] == 1
        if (forgotten == "own" and own) or (forgotten == "window" and not own):
            return bias
        return hide(bias, keys, first, size)

    monkeypatch.setattr(kernel, "seen", seen)
    args = arguments("bfloat16", rows=5, p=21, layers=1)
    plan = plan_of(args, rows=48)
    windows = [plan.window(start, size) for start, size in ((0, 21), (21, 40), (61, 40), (101, 40))]
    assert windows == [(0, 32), (16, 48), (48, 64), (96, 45)]  # the buffer has 141 keys
    (x, *_), (exact, *_) = (
        run(args, plan), jax.jit(denoise_stack)(*arguments(rows=5, p=21, layers=1))
    )  # fmt: skip
    far = np.abs(np.asarray(x, np.float32) - exact).max() > 5 * TOLERANCE["bfloat16"]
    assert far == (forgotten is not None)


def test_copies_that_are_done_at_once_change_nothing():
    args = arguments()
    ours = run(args, plan_of(args), dma_execution_mode="eager")
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


@pytest.mark.parametrize(
    ("dtype", "g", "rows"),
    [("float32", 1, 4), slow("bfloat16", 1, 4), slow("bfloat16", 2, 4), ("bfloat16", 2, 3)],
)
def test_a_stream_around_the_ring(dtype, g, rows):
    """From a cold buffer until the window has been overwritten, each on its own history."""
    x, weights, kv, _, modulation, rope = arguments(dtype, b=2, rows=rows, g=g)
    exact = arguments(b=2, rows=rows, g=g)
    config = ModelConfig(height=16 * rows, width=128, patch=16, sinks=1, window=2)
    cold = jnp.full_like(kv.age, ring.EMPTY)
    ours, theirs = (dataclasses.replace(tree, age=cold) for tree in (kv, exact[2]))
    ours_of, reference = jax.jit(interpreted), jax.jit(denoise_stack)
    for frame in range(5):
        x = jnp.roll(x, frame, axis=1)
        a = ours_of(x, weights, ours, ring.bias(ours), modulation, rope)
        exactly = (x.astype(jnp.float32), exact[1], theirs)
        b = reference(*exactly, ring.bias(theirs), *exact[4:])
        assert_near(a, b, TOLERANCE[dtype])
        ours = ring.commit(ours, a[1], a[2], config)
        theirs = ring.commit(theirs, b[1], b[2], config)
    assert not np.any(ours.age == ring.EMPTY)


@pytest.mark.parametrize(("dtype", "rows"), [slow("float32", 4), ("bfloat16", 5)])
def test_what_is_cold_or_invalid_has_no_influence(dtype, rows):
    x, weights, kv, bias, modulation, rope = arguments(dtype, rows=rows)
    cold = (bias != 0)[None, :, :, None, None]
    assert np.any(cold) and not np.all(cold)
    dirty = dataclasses.replace(kv, k=jnp.where(cold, 3e4, kv.k), v=jnp.where(cold, -3e4, kv.v))
    ours = jax.jit(interpreted)
    clean = ours(x, weights, kv, bias, modulation, rope)
    for a, b in zip(clean, ours(x, weights, dirty, bias, modulation, rope), strict=True):
        np.testing.assert_array_equal(a, b)


def test_large_logits_do_not_overflow():
    """Their bound, which stands in for the running maximum, has to be taken off."""
    x, weights, kv, bias, modulation, rope = arguments(layers=1)
    q_scale, k_scale = weights.q_scale * 1.6, weights.k_scale * 1.6
    bound = np.abs(q_scale).max() * np.abs(k_scale).max() * 128**0.5
    assert bound / np.log(2) > SAFE_EXPONENT
    weights = dataclasses.replace(weights, q_scale=q_scale, k_scale=k_scale)
    args = x, weights, dataclasses.replace(kv, k=kv.k * 1.6), bias, modulation, rope
    ours = jax.jit(interpreted)(*args)
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


def in_eight_bits(args, dtype="float32"):
    x, weights, *rest = args
    return x, quantize_stack(weights, dtype), *rest


@pytest.mark.parametrize(
    ("dtype", "shape", "tiles", "tolerance"),
    [
        ("float32", dict(b=1), dict(group=2, chunk=256), 1e-4),  # whole rows, as the specification
        slow("bfloat16", dict(b=2, heads=4, mlp=384), dict(group=2), 2.5e-2),
        slow("float32", dict(b=1, g=2), dict(group=2, chunk=256), 1e-2),  # a bit, a step of int8
        ("bfloat16", dict(b=2, rows=3, g=2), dict(), 2.5e-2),
    ],
)
def test_weights_in_eight_bits(dtype, shape, tiles, tolerance):
    exact = arguments(**shape)
    args = in_eight_bits(exact)
    x, _, *rest = arguments(dtype, **shape)
    given = x, quantize_stack(exact[1], dtype), *rest
    ours = run(given, plan_of(given, **tiles))
    theirs = jax.jit(denoise_stack)(*args)
    assert_near(ours, theirs, tolerance)
    assert_near(theirs, jax.jit(denoise_stack)(*exact), 2.5e-2)


@pytest.mark.parametrize("scaled", [False, True])
def test_gelu_of_rows_whose_scale_is_left_out(scaled):
    rng = np.random.default_rng(0)
    scale = jnp.asarray(10 ** rng.uniform(-4, 1, (64, 1)) if scaled else 1.0, jnp.float32)
    x = jnp.asarray(rng.uniform(-6, 6, (64, 128)), jnp.float32) / scale
    found = twice_gelu(x, scale if scaled else None) * scale / 2
    np.testing.assert_allclose(found, jax.nn.gelu(x * scale, approximate=True), atol=2e-6)


def test_the_interpreter_rounds_to_eight_bits_where_the_kernel_does():
    args = in_eight_bits(arguments(**SMALL))
    plan = plan_of(args)
    assert plan.buffers["h"].dtype == plan.buffers["qkv"].dtype == "int8"
    assert_near(run(args, plan), as_seam(interpret(plan, PROGRAM, *args)), 1e-4)


SMALL = dict(layers=2, heads=2, mlp=256, slots=2)
PROGRAM = list(schedule.steps(schedule.program(plan_of(arguments(**SMALL)))))


@pytest.mark.parametrize("shape", [dict(), dict(b=2, g=2, columns=7)])
def test_the_interpreter_equals_the_specification(shape):
    args = arguments(**SMALL, **shape)
    plan = plan_of(args)
    buffers = interpret(plan, PROGRAM, *args)
    ours = as_seam(buffers)
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


def remembering(plan):
    """The plan of a pass of which only keys and values are wanted."""
    return dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, places=1))


def assert_remembers(run, plan_of, dtype, shape, tiles):
    """That a pass ends with the specification's keys and values; gives its plan, the residual
    stream that went in, and the one that came out."""
    args, exact = arguments(dtype, slots=0, **shape), arguments(slots=0, **shape)
    plan = remembering(plan_of(args, **tiles))
    x, *ours = run(args, plan)
    assert_near(ours, jax.jit(denoise_stack)(*exact)[1:], TOLERANCE[dtype])
    return plan, args[0], x


@pytest.mark.parametrize(
    ("dtype", "shape", "tiles"),
    [
        ("float32", dict(b=2, heads=4, mlp=384), dict(group=2, ahead=3)),
        slow("float32", dict(layers=3, g=2), dict()),
        ("bfloat16", dict(rows=3, p=24, layers=1, g=2), dict()),
    ],
)
def test_keys_and_values_that_are_to_be_remembered(dtype, shape, tiles):
    plan, _, _ = assert_remembers(run, plan_of, dtype, shape, tiles)
    last = {
        type(step.instruction)
        for step in schedule.steps(schedule.program(plan))
        if step.layer == plan.shape.layers - 1
    }
    assert schedule.Project in last and not last & {schedule.Attend, schedule.Mlp}


KINDS = sorted({type(s.instruction).__name__ for s in PROGRAM})
TELLING = ("Attend", "Mlp", "Store")
"""Behind these every buffer of a layer has been compared with what it held last."""


@pytest.mark.parametrize(
    ("kind", "shape", "tiles"),
    [(kind, SMALL, dict()) for kind in TELLING]
    + [slow(kind, SMALL, dict()) for kind in KINDS if kind not in TELLING]
    + [("Store", SMALL | dict(slots=0), REMEMBERING), ("Attend", WHOLE, TURNED)]
    + [("Attend", SMALL | dict(columns=7), dict()), slow("Load", WHOLE, TURNED)]
    + [slow(kind, SMALL | dict(slots=0), REMEMBERING) for kind in ("Refill", "Drain")]
    + [slow(kind, SMALL | dict(columns=7), dict()) for kind in ("Load", "Mlp")],
)
def test_kernel_and_interpreter_agree_after_any_instruction(kind, shape, tiles):
    """Stops after the last one of a kind, and compares every buffer that holds something."""
    args = arguments(**shape)
    plan = remembering(plan_of(args)) if tiles is REMEMBERING else plan_of(args, **tiles)
    steps = schedule.steps(schedule.program(plan))
    last = max(i for i, s in enumerate(steps) if type(s.instruction).__name__ == kind)
    stopped = schedule.prefix(plan, schedule.program(plan), last + 1)
    theirs = interpret(plan, stopped, *args)
    names = tuple(plan.buffers)
    ours = jax.jit(
        lambda *args: launch(plan, stopped, *args, interpret=pltpu.InterpretParams(), dump=names)
    )(*args)
    compared = 0
    for name in names:
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        known = np.isfinite(b)
        compared += known.any()
        scale = np.abs(b[known]).max() if known.any() else 1
        assert np.abs(a[known] - b[known]).max(initial=0) <= 1e-4 * scale, name
    assert compared >= (2 if kind == "Fill" else 7)


@pytest.mark.parametrize("fault", ["none", "single_buffer", "missing_wait", "wrong_slot", "beyond"])
def test_a_broken_program_is_caught(fault):
    """In a process of its own: one that waits for a copy that nobody started would never end."""
    seen = noticed("broken.py")[fault]
    healthy = {"raced": False, "nan": False, "error": None}
    assert (seen == healthy) == (fault == "none"), seen
    if fault == "beyond":
        assert "ut of bound" in seen["error"]
