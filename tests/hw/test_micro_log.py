"""Logs of measurements: whole, continued when interrupted, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsd_jax.hw.micro import harness, log
from lsd_jax.hw.micro.case import Case, Measurement
from lsd_jax.hw.micro.compare import compare, holm

VERSIONS = {"jax": "1.0"}
SECONDS = st.floats(1e-9, 10, allow_nan=False)
TEXT = st.text(min_size=1, max_size=20)


def measured(op="matmul", samples=(1.0, 2.0), **fields) -> Measurement:
    blank = Measurement(
        "s", op, {"n": 2}, "f32", 8, 12, "loop", "measured", "chip", VERSIONS, "abc", samples
    )
    return dataclasses.replace(blank, **fields)


def case(op: str) -> Case:
    return Case("s", op, {"n": 2}, "f32", 8, 12, lambda: None, ())


@given(
    st.fixed_dictionaries(
        {
            "op": TEXT,
            "samples": st.lists(SECONDS).map(tuple),
            "shapes": st.dictionaries(TEXT, st.integers(0, 1 << 40), max_size=4),
            "refused": st.none() | TEXT,
            "cycles": st.none() | st.integers(0, 1 << 60),
            "commit": st.none() | TEXT,
        }
    )
)
def test_a_line_survives_a_round_trip(fields):
    measurement = measured(**fields)
    text = log.line(measurement)
    assert "\n" not in text
    assert log.parse(text) == measurement
    assert json.loads(text)["name"] == measurement.name


@given(st.lists(SECONDS, min_size=1, max_size=300))
def test_percentiles_are_of_all_samples(samples):
    m = measured(samples=tuple(samples))
    assert m.max == max(samples)
    assert sum(s <= m.p99 for s in samples) >= 0.99 * len(samples)
    assert m.p99 in samples and min(samples) <= m.p50 <= m.p99 <= m.max


@given(st.text())
def test_a_file_that_is_no_log_is_refused_by_its_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    path.write_text(log.line(measured()) + "\n" + text.replace("\r", " ") + "\n{", "utf-8")
    with pytest.raises(ValueError, match=r"a.jsonl, line \d+ is no measurement"):
        log.read(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("shapes", {"n": "x"}, "shapes are not all whole numbers"),
        ("fastest", "x", "fastest is no int | float | None"),
        ("fastest", -1.0, "fastest, operations and bytes want finite numbers of at least 0"),
        ("operations", float("nan"), "fastest, operations and bytes want finite numbers"),
        ("samples", [1.0, float("inf")], "samples are not all finite numbers"),
        ("samples", [True, "x"], "samples are not all finite numbers"),
        ("dtype", None, "dtype is no str"),
        ("commit", 3, "commit is no str | None"),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_line(field, value, said, tmp_path):
    path = tmp_path / "a.jsonl"
    good = log.line(measured(fastest=1.0))
    path.write_text(f"{good}\n{json.dumps(json.loads(good) | {field: value})}\n")
    with pytest.raises(ValueError, match=re.escape(f"a.jsonl, line 2 is no measurement: {said}")):
        log.read(path)


def test_a_log_of_two_chips_or_kinds_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    for other in ({"chip": "b"}, {"kind": "modelled"}):
        path.unlink(missing_ok=True)
        log.append(path, measured())
        log.append(path, measured(**other))
        with pytest.raises(ValueError, match="mixes"):
            log.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no measurement"):
        log.read(path)


def run(path, ops, engine, **about):
    about = {"kind": "measured", "chip": "chip", "versions": VERSIONS} | about
    return harness.run([case(op) for op in ops], engine, commit="abc", out=path, **about)


def test_a_run_is_continued_where_it_was_interrupted(tmp_path):
    path, seen = tmp_path / "a.jsonl", []

    def engine(case):
        seen.append(case.op)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return {"samples": (1.23456789,), "fastest": 1.0}

    with pytest.raises(KeyboardInterrupt):
        run(path, "abcd", engine)
    with open(path, "a") as file:
        file.write('{"name": "half a li')
    found = run(path, "abcd", engine)
    assert seen == ["a", "b", "c", "c", "d"]
    assert [m.op for m in found] == ["a", "b", "c", "d"]
    assert log.read(path) == found
    assert found[0].samples == (1.2346,)
    assert run(path, "abcd", engine) == found and len(seen) == 5


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"chip": "another"}, "begun with chip chip, and this is another: give another --out"),
        ({"kind": "compiled"}, "begun with kind measured, and this is compiled"),
        ({"versions": {"jax": "2.0"}}, "begun with versions jax 1.0, and this is jax 2.0"),
    ],
)
def test_a_log_of_another_machine_is_not_continued(tmp_path, other, said):
    path = tmp_path / "a.jsonl"
    run(path, "a", lambda case: {"samples": (1.0,), "fastest": 1.0})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        run(path, "ab", lambda case: {"samples": (1.0,), "fastest": 1.0}, **other)
    assert path.read_bytes() == before


def test_a_case_that_cannot_run_says_why_and_the_others_go_on(tmp_path):
    def engine(case):
        if case.op == "a":
            raise NotImplementedError("no such\nunit")
        return {"samples": (1.0,), "fastest": 1.0}

    first, second = run(tmp_path / "a.jsonl", "ab", engine)
    assert first.refused == "no such unit" and first.samples == ()
    assert second.refused is None and second.p50 == 1


def test_the_spread_is_that_of_the_repeated_case():
    again = [measured("repeated_matmul", (s,)) for s in (1.0, 1.1, 1.05)]
    assert harness.spread(again) == pytest.approx(0.1)
    assert harness.spread(again[:1]) is None


def spread_out(middle: float) -> tuple[float, ...]:
    return tuple(middle + 0.001 * i for i in range(-10, 11))


def test_a_slower_case_is_found_among_the_others():
    before = [measured(op, spread_out(1)) for op in "abcdefgh"]
    after = [measured(op, spread_out(1.1 if op == "c" else 1.0001)) for op in "abcdefgh"]
    found = compare(before, after)
    assert [(c.name[0], c.significant) for c in found][:2] == [("c", True), ("h", False)] or (
        found[0].name[0] == "c" and not any(c.significant for c in found[1:])
    )
    assert found[0].ratio == pytest.approx(1.1)


def test_a_median_that_is_lost_in_noise_is_compared_with_nothing():
    """A sample is a difference of two loops, which may be nothing, or less."""
    lost = [measured("a", (0.0, 0.0, 1.0)), measured("b", (-1.0, 2.0, -1.0)), measured("c")]
    whole = [measured(op) for op in "abc"]
    for before, after in ((lost, whole), (whole, lost)):
        assert [(c.name[0], c.ratio) for c in compare(before, after)] == [("c", 1)]
    with pytest.raises(ValueError, match="no case in common whose times are above 0"):
        compare(lost[:2], whole)


def test_computed_figures_differ_without_chance():
    one = [measured(kind="compiled", samples=(1.0,))]
    other = [measured(kind="compiled", samples=(1.01,))]
    assert [c.significant for c in compare(one, other)] == [True]
    assert [c.significant for c in compare(one, one)] == [False]


def test_logs_of_one_chip_go_together_by_the_fastest_run():
    one = [measured("a", fastest=2.0), measured("b", fastest=1.0), measured("c", refused="no")]
    other = [measured("b", fastest=3.0), measured("a", fastest=1.5), measured("c", fastest=9.0)]
    assert {m.op: m.fastest for m in log.merged([one, other])} == {"a": 1.5, "b": 1.0, "c": 9.0}
    with pytest.raises(ValueError, match="the logs differ in chip, 'b' and 'chip'"):
        log.merged([one, [measured("a", chip="b")]])


def test_what_cannot_be_compared_is_refused():
    for other, said in (
        ({"chip": "b"}, "differ in chip"),
        ({"kind": "modelled"}, "differ in kind"),
    ):
        with pytest.raises(ValueError, match=said):
            compare([measured()], [measured(**other)])
    with pytest.raises(ValueError, match="no case in common"):
        compare([measured("a")], [measured("b")])


def test_holm_rejects_as_published():
    # Four at 5 %: 0.005 < 0.05 / 4 and 0.01 < 0.05 / 3 hold, 0.03 > 0.05 / 2 ends it.
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == 0.01
    assert holm([0.5, 0.2], 0.05) == -1
