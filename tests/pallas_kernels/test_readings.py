"""The cost model's readings against the compiled stacks that they were fitted to, and some that
they were not."""

import itertools
import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import readings_tpu
from lsd_jax.hw import chips
from pallas_kernels.tpu.cost import read, total
from pallas_kernels.tpu.planner import SPARE_BYTES, limit_bytes
from pallas_kernels.tpu.schedule import program

V6E, V5E = chips.load("v6e"), chips.load("v5e")
LOGS = Path(readings_tpu.__file__).parent / "stacks"
FITTED, OTHERS = {}, {}
for chip in (V6E, V5E):
    rows = json.loads((LOGS / f"{chip.name}.json").read_text())["rows"]
    FITTED[chip], OTHERS[chip] = readings_tpu.split(rows)


def missed(rows, chip, **other):
    return np.abs(readings_tpu.errors(rows, chip, replace(read(chip), **other)))


def test_stacks_that_were_not_fitted_are_missed_by_little():
    """None of a v5e's was: its readings are those of a v6e."""
    every = FITTED[V5E] + OTHERS[V5E]
    for chip, rows, count, worst in ((V6E, OTHERS[V6E], 20, 0.16), (V5E, every, 37, 0.17)):
        off = missed(rows, chip)
        assert len(off) >= count and off.mean() < 0.06 and off.max() < worst


OFF = (V6E, "push"), (V6E, "vector"), *itertools.product((V6E, V5E), ("attended_push", "block"))
"""On a v5e the matrix unit hides the vector unit's work, and the entry of weights."""


@pytest.mark.parametrize(("chip", "name"), OFF, ids=lambda of: getattr(of, "name", of))
def test_a_reading_that_is_off_misses_them_by_more(chip, name):
    off = missed(FITTED[chip], chip, **{name: 2 * getattr(read(chip), name)})
    assert off.mean() > 1.15 * missed(FITTED[chip], chip).mean()


def test_the_fit_finds_the_readings_again_from_others():
    """From modelled cycles, so that the truth is known; of few stacks, to be quick."""
    truth = replace(read(V6E), push=2 * read(V6E).push, block=0.7 * read(V6E).block)
    zero = [row | {"cycles": 1.0} for row in FITTED[V6E][-24:]]
    made = 1 + readings_tpu.errors(zero, V6E, truth)
    rows = [row | {"cycles": cycles} for row, cycles in zip(zero, made, strict=True)]
    found = readings_tpu.fit(rows, V6E)
    assert np.abs(readings_tpu.errors(rows, V6E, found)).max() < 0.01
    assert found.push == pytest.approx(truth.push, rel=0.05)


@pytest.mark.parametrize("chip", [V6E, V5E], ids=lambda chip: chip.name)
def test_stacks_are_drawn_by_their_number_and_fit(chip):
    drawn = [readings_tpu.draw(random.Random(f"0 {i}"), chip) for i in range(6)]
    assert drawn == [readings_tpu.draw(random.Random(f"0 {i}"), chip) for i in range(6)]
    assert len({plan.shape for plan in drawn}) == 6
    room = limit_bytes(chip) - SPARE_BYTES
    assert all(plan.vmem_bytes <= room for plan in drawn)
    cycles = [float(total(program(plan), plan, chip).compute_cycles) for plan in drawn]
    assert max(cycles) <= readings_tpu.WORSE * readings_tpu.LONGEST


def test_the_large_layers_of_a_log_are_those_that_would_be_compiled_today():
    """Whatever has become of the configs that they came from."""
    for chip in (V5E, V6E):
        rows = json.loads((LOGS / f"{chip.name}.json").read_text())["rows"]
        for number in range(len(readings_tpu.LARGE)):
            assert asdict(readings_tpu.large(number, chip).shape) == rows[number]["shape"]


def test_keys_that_fill_no_whole_registers_are_not_drawn_for_a_v5e():
    """Its profiler stops at them."""
    narrow, wide = (
        {readings_tpu.draw(random.Random(f"0 {i}"), chip).shape for i in range(12)}
        for chip in (V5E, V6E)
    )
    assert all(shape.tokens % 128 == shape.ageless % 128 == 0 for shape in narrow)
    assert any(shape.tokens % 128 or shape.ageless % 128 for shape in wide)


def test_a_log_that_is_there_is_not_compiled_again(tmp_path, monkeypatch):
    compiled = []

    class Found:
        cycles, no_profile = 1000, None

    def compile_for(chip, case, options):
        compiled.append(options)
        return Found

    monkeypatch.setattr(readings_tpu.aot, "compile_for", compile_for)
    monkeypatch.setattr(readings_tpu.aot, "libtpu_version", lambda: "0")
    log = tmp_path / "new" / "v6e.json"
    few = readings_tpu.compiled(V6E, 1, 0, log)
    assert len(few) == len(compiled) == len(readings_tpu.LARGE) + 1
    more = readings_tpu.compiled(V6E, 3, 0, log)
    assert more[: len(few)] == few and len(compiled) == len(more) == len(few) + 2
    assert [readings_tpu.plan_of(row).vmem_bytes for row in more]
    log.write_text(json.dumps(json.loads(log.read_text()) | {"rows": few}))
    assert readings_tpu.compiled(V6E, None, 0, log) == more  # begun for three
    monkeypatch.setattr(readings_tpu.aot, "libtpu_version", lambda: "1")
    assert readings_tpu.compiled(V6E, 3, 0, log) == more
    with pytest.raises(ValueError, match="of another chip, seed or libtpu; name another --log"):
        readings_tpu.compiled(V6E, 4, 0, log)
