"""Fits: a chip whose prices are known is found again, from its clock's readings alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsd_jax import config as configs
from lsd_jax.config import override
from lsd_jax.hw import chips, cpu
from lsd_jax.hw.micro import fit
from lsd_jax.hw.micro.case import Measurement
from lsd_jax.hw.micro.suites import frames
from lsd_jax.hw.micro.work import WORK, work_of
from lsd_jax.hw.plan import plan_frame
from lsd_jax.hw.work import frame_work

PRODUCTS = [(m, k, n) for m in (16, 256) for k, n in ((64, 64), (256, 1000), (900, 33))]
PICTURES = [(s, i, o) for s in (16, 64) for i, o in ((32, 32), (40, 64), (64, 16))]
SEEN = [(t, *sizes) for t in (64, 256) for sizes in ((0, 2, 64), (3, 4, 128), (2, 2, 32))]
SIZES = {
    "matmul": [dict(zip("mkn", sizes, strict=True)) for sizes in PRODUCTS],
    "conv3x3": [dict(zip("sio", sizes, strict=True)) for sizes in PICTURES],
    "copy": [{"bytes": 1 << p} for p in (8, 12, 20)],
    "layer": [{"n": 1 << p} for p in (10, 18)],
    "transpose": [{"n": 64}, {"n": 1024}],
    "add": [{"n": 8}, {"n": 4096}, {"n": 1 << 20}],
    "multiply_add": [{"n": 4096}],
    "gelu": [{"n": 4096}, {"n": 1 << 18}],
    "exp": [{"n": 1 << 14}],
    "softmax": [{"t": 64, "d": 256}],
    "residual": [{"t": 64, "d": 256}],
    "steer": [{"s": 64}],
    "decode": [{"s": 64}],
    "noise": [{"s": 32}, {"s": 128}],
    "recolour": [{"s": 32}, {"s": 64}],
    "upsample": [{"g": 8, "f": 64, "c": 265}],
    "attention": [dict(zip("tshd", sizes, strict=True)) for sizes in SEEN],
    "launch": [{"args": 1}],
    "frame": [dict(zip(frames._LETTERS, sizes, strict=True)) for sizes in frames.FITTED],
}  # fmt: skip
SUITE = {"frame": "frame", "launch": "launch"}


def on(prices: dict[str, float], op: str, shapes: dict[str, int]) -> Measurement:
    """What a clock on a chip of these prices reads."""
    method = {"frame": "step", "launch": "call"}.get(op, "loop")
    has = cpu.amounts(WORK[op](**shapes), int(method != "loop"))
    seconds = 1e-9 * sum(prices[name] * has[name] for name in prices)
    about = ("measured", "a made-up chip", {"jax": "1"}, None)
    return Measurement(
        SUITE.get(op, op), op, shapes, "f32", 1, 1, method, *about, (seconds,), seconds
    )


@pytest.fixture(scope="module")
def prices() -> dict[str, float]:
    rng = np.random.default_rng(1)
    return {name: float(10 ** rng.uniform(-2, 1)) for name in cpu.PRICES}


@pytest.fixture(scope="module")
def readings(prices):
    return [on(prices, op, shapes) for op, some in SIZES.items() for shapes in some]


def test_known_prices_are_found_again(prices, readings):
    found = fit.fit(readings, "made-up", "a made-up chip")
    assert found.mean_error < 1e-4
    for name in ("matmul_mac", "batched_mac", "tiny_product", "noise", "layer_byte", "launch"):
        assert found.chip[name] == pytest.approx(prices[name], rel=0.01), name
    number = found.chip.numbers["matmul_mac"]
    assert number.kind == "measured" and "missed by 0%" in number.source
    assert chips.parse("made-up", found.chip.to_json()) == found.chip
    for name in ("tiny", "micro", "small"):  # never fitted
        config = configs.load(name)
        ops = [op for stage in frame_work(config) for op in stage.ops]
        truth = 1e-9 * sum(prices[n] * x for n, x in cpu.amounts(ops, 1).items())
        looped = cpu.frame_seconds(override(config, ["stream.backend=xla"]), found.chip)
        assert looped == pytest.approx(truth, rel=0.01)
        copies = [op for op in ops if op.name in cpu.LAYERS]
        saved = 1e-9 * sum(
            prices[n] * x for n, x in cpu.amounts(copies, 1).items() if n != "launch"
        )
        assert len(copies) == 4 and saved > 0
        apart = cpu.frame_seconds(config, found.chip)
        assert looped - apart == pytest.approx(saved, rel=0.05)


def test_cases_that_were_disturbed_hardly_matter(prices, readings):
    rng = np.random.default_rng(2)
    disturbed = rng.random(len(readings)) < 0.15
    shaken = [
        on({k: 3 * v for k, v in prices.items()}, m.op, m.shapes) if bad else m
        for m, bad in zip(readings, disturbed, strict=True)
    ]
    config = configs.load("tiny")
    calm, found = (fit.fit(r, "x", "x").chip for r in (readings, shaken))
    assert cpu.frame_seconds(config, found) == pytest.approx(
        cpu.frame_seconds(config, calm), rel=0.1
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 20))
def test_exact_times_are_met_exactly(seed, prices, more):
    rng = np.random.default_rng(seed)
    amounts = rng.uniform(0, 1, (prices + more, prices)) * 10 ** rng.uniform(-3, 3, prices)
    truth = rng.uniform(0.1, 1, prices)
    found = fit.solve(amounts, amounts @ truth, np.ones(len(amounts)))
    assert np.all(found >= 0)
    assert amounts @ found == pytest.approx(amounts @ truth, rel=1e-6)


def test_what_cannot_be_fitted_is_refused(readings):
    with pytest.raises(ValueError, match="lacks frame: run the suites"):
        fit.fit([m for m in readings if m.op != "frame"], "x", "x")
    single = [m for m in readings if m.op != "attention" and m.shapes.get("h", 1) == 1]
    with pytest.raises(ValueError, match="no case in the log shows what batched_start costs"):
        fit.fit(single, "x", "x")
    modelled = [dataclasses.replace(m, kind="modelled") for m in readings]
    with pytest.raises(ValueError, match="and these are modelled"):
        fit.fit(modelled, "x", "x")


@pytest.mark.parametrize(
    ("op", "shapes"),
    [("matmul", {"zz": 1}), ("frame", {"zz": 1}), ("copy", {}), ("frame", {"s": 64, "i": 9})],
)
def test_a_case_of_other_sizes_than_its_operation_has_is_named(op, shapes, readings):
    odd = dataclasses.replace(readings[0], op=op, shapes=shapes)
    with pytest.raises(ValueError, match=f"{odd.name}: {op} has no such sizes; measure it again"):
        fit.fit([*readings, odd], "x", "x")


def test_rates_are_of_cases_that_have_the_size(readings):
    blank = dataclasses.replace(readings[0], dtype="bf16", shapes={"zz": 1})
    odd = [dataclasses.replace(blank, op="copy")]
    odd += [dataclasses.replace(blank, suite="elementwise", op="round", dtype="f32")]
    assert fit.fit([*readings, *odd], "x", "x").chip == fit.fit(readings, "x", "x").chip


def test_a_frame_of_the_log_is_all_that_the_frame_does():
    shapes = dict(zip(frames._LETTERS, frames.FITTED[0], strict=True))
    m = on(dict.fromkeys(cpu.PRICES, 1.0), "frame", shapes)
    work = [op for stage in frame_work(frames.config_of(shapes)) for op in stage.ops]
    assert work_of(m) == tuple(work)


def test_sessions_of_a_cpu_take_their_turns():
    chip, config = chips.load("cpu"), configs.load("tiny")
    stages = {stage.name: stage.total for stage in cpu.frame_times(config, chip)}
    assert {"encode", "pass 0: stack", "decode", "remember: stack", "commit"} <= set(stages)
    assert sum(stages.values()) == pytest.approx(cpu.frame_seconds(config, chip))
    one, three = (cpu.frame_seconds(config, chip, n) for n in (1, 3))
    assert three == pytest.approx(3 * one - 2 * stages["launch"])


def test_a_plan_says_that_prices_are_of_float32():
    chip, config = chips.load("cpu"), configs.load("tiny")
    half = configs.override(config, ["stream.compute_dtype=bfloat16"])
    assert plan_frame(config, chip).notes == ()
    assert plan_frame(half, chip).notes == ("prices are of float32, not of bfloat16",)


def test_a_chip_without_prices_says_so():
    with pytest.raises(ValueError, match="chip v6e has no number"):
        cpu.frame_seconds(configs.load("tiny"), chips.load("v6e"))


def test_predictions_are_checked_on_frames_that_were_not_fitted():
    from benchmarks.prediction_cpu import CHECKED

    assert not set(CHECKED) & set(frames.FITTED)
    assert len(set(CHECKED)) >= 12
