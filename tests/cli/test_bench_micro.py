"""`lsd bench micro`, `fit` and `compare` from end to end, and what they refuse in one line."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from lsd_jax.cli.main import main
from lsd_jax.hw import chips
from lsd_jax.hw.micro import log, plots
from lsd_jax.hw.micro.report import page


def bench(*arguments: str) -> int:
    return main(["bench", *arguments])


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """A small measured log, its report for machines, and its page."""
    folder = tmp_path_factory.mktemp("micro")
    out, report = folder / "a.jsonl", folder / "a.json"
    command = ["micro", "--suite", "launch", "--quick", "--out", str(out)]
    assert bench(*command, "--json", str(report), "--report", str(folder / "page")) == 0
    return out, json.loads(report.read_text()), folder / "page"


def test_a_measured_log_holds_the_harness_and_the_cases(launches):
    out, report, _ = launches
    found = log.read(out)
    assert [m.op for m in found] == [
        "empty_call", "empty_turn", "repeated_matmul", "launch", "launch", "repeated_matmul",
        "repeated_matmul",
    ]  # fmt: skip
    assert all(m.kind == "measured" and len(m.samples) >= 2 and m.fastest for m in found)
    assert report["measurements"] == 7 and report["refused"] == {}
    assert report["repeatability"] >= 0
    assert {"jax", "jaxlib", "lsd-jax"} <= set(found[0].versions)


def test_the_page_needs_no_other_file(launches):
    out, _, folder = launches
    text = (folder / "index.html").read_text()
    assert "launch f32 args16" in text and "(measured)" not in text.split("<img")[0]
    assert not re.search(r'(src|href)="(?!data:)', text)
    pictures = list(folder.glob("*.png"))
    assert pictures and all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    hostile = [m.__class__(**vars(m) | {"op": "<script>", "chip": "a & b"}) for m in log.read(out)]
    assert "<script>" not in page(hostile) and "a &amp; b" in page(hostile)


def test_a_whole_log_has_every_picture():
    found = log.read("benchmarks/micro/cpu-1.jsonl")
    drawn = plots.pictures(found)
    assert set(drawn) == {"roofline", "products", "memory", "attention"}
    assert plots.pictures([m for m in found if m.suite == "memory"]).keys() == {
        "roofline",
        "memory",
    }
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())


def test_a_finished_log_is_left_as_it_is(launches):
    out, _, _ = launches
    before = out.read_bytes()
    assert bench("micro", "--suite", "launch", "--quick", "--out", str(out)) == 0
    assert out.read_bytes() == before


def test_a_modelled_log(tmp_path, capsys):
    out = tmp_path / "trn2.jsonl"
    assert bench("micro", "--quick", "--chip", "trn2", "--out", str(out)) == 0
    found = {m.name: m for m in log.read(out)}
    assert {m.kind for m in found.values()} == {"modelled"}
    assert "the engines compute no i8" in found["matmul i8 m256 k256 n1024"].refused
    peak = chips.load("trn2")["pe_flops_bf16"]
    product = found["matmul bf16 m256 k256 n1024"]
    assert product.operations / peak < product.p50 < 100 * product.operations / peak
    copies = [m for m in found.values() if m.op == "copy"]
    assert all(a.p50 <= b.p50 for a, b in zip(copies, copies[1:], strict=False))
    whole = copies[-1]
    assert whole.p50 > whole.bytes / chips.load("trn2")["hbm_bandwidth"]
    alone, eight = (found[f"load f32 bytes65536 flight{n}"] for n in (1, 8))
    assert eight.bytes / chips.load("trn2")["hbm_bandwidth"] < eight.p50 < alone.p50 / 2
    assert plots.pictures([alone, eight]).keys() == {"memory"}
    near = [m for m in found.values() if m.suite == "on_chip"]
    assert plots.pictures(near).keys() == {"memory"}  # it is no roof to other cases
    small, large = (m.bytes / m.p50 for m in near)
    assert chips.load("trn2")["hbm_bandwidth"] < small < large
    assert bench("compare", str(out), str(out)) == 0
    assert f"0 of {sum(bool(m.samples) for m in found.values())} cases differ" in (
        capsys.readouterr().out
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is absent")
def test_a_compiled_log(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "v6e.jsonl"
    suites = "matmul,on_chip"
    command = ["micro", "--suite", suites, "--quick", "--chip", "v6e", "--out", str(out)]
    assert bench(*command) == 0
    chip = chips.load("v6e")
    for m in log.read(out):
        assert m.kind == "compiled" and m.cycles and "libtpu" in m.versions
        least = m.operations / 2 / chip["macs_bf16"] / chip["clock"]
        assert m.p50 > least
        assert m.p50 >= 0.9999 * m.cycles / chip["clock"]  # the log has five digits


def test_the_shipped_logs_give_the_shipped_chip(tmp_path):
    out, report = tmp_path / "cpu.json", tmp_path / "report.json"
    logs = sorted(map(str, Path("benchmarks/micro").glob("cpu-*.jsonl")))
    assert bench("fit", *logs, "-o", str(out), "--json", str(report)) == 0
    ours, shipped = chips.load(str(out)), chips.load("cpu")
    assert set(ours.numbers) | {"memory_bytes"} == set(shipped.numbers)
    for name, number in ours.numbers.items():
        if name == "memory_bytes":  # of whatever machine fits
            continue
        assert number.value == pytest.approx(shipped[name], rel=0.02, abs=1e-6), name
    frames = json.loads(report.read_text())["errors"]["frame"].values()
    assert sum(map(abs, frames)) / len(frames) < 0.1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stack"], "stack needs --chip, such as v6e"),
        (["micro"], "micro needs --out FILE.jsonl"),
        (["micro", "a.jsonl"], "micro takes no file: a.jsonl; give --out FILE.jsonl"),
        (["micro", "--devices", "0", "--out", "OUT"], "--devices 0: give at least 1"),
        (["stack", "a.jsonl", "--chip", "v6e"], "stack takes no file: a.jsonl"),
        (
            ["stack", "--chip", "trn1", "-o", "OUT", "--quick", "--suite", "x", "--devices", "0"],
            "stack takes no --devices, --out, --quick, --suite; it takes --chip, --config, --set",
        ),
        (["frame", "--chip", "v6e", "--profile", "x", "--lnc", "0"], "frame takes no --lnc, --pro"),
        (
            ["calibrate", "--chip", "trn2", "--cores", "2", "--config", "tiny"],
            "calibrate without --profile takes no --config, --cores; it takes --chip",
        ),
        (["micro", "--config", "tiny", "--out", "OUT"], "micro takes no --config; it takes --chip"),
        (
            ["micro", "--chip", "trn2", "--devices", "4", "--out", "OUT"],
            "--devices are of the CPU here, which is measured without --chip",
        ),
        (["fit", "LOG", "-o", "OUT", "--report", "OUT"], "fit takes no --report; it takes --out"),
        (
            ["compare", "LOG", "LOG", "--chip", "x", "--set", "x=y", "--out", "OUT"],
            "compare takes no --chip, --out, --set; it takes two logs alone",
        ),
        (["micro", "--suite", "warp", "--out", "OUT"], "--suite warp: known here: matmul"),
        (
            ["micro", "--suite", "launch", "--chip", "trn2", "--out", "OUT"],
            "--suite launch: known here: matmul, elementwise, memory",
        ),
        (["micro", "--suite", "load", "--out", "OUT"], "--suite load: known here: matmul"),
        (["micro", "--chip", "cpu", "--out", "OUT"], "nothing here compiles or models for cpu"),
        (["fit", "LOG"], "write it as: lsd bench fit FILE.jsonl [FILE.jsonl ...] -o CHIP.json"),
        (["fit", "LOG", "-o", "OUT"], "the log lacks copy, frame, matmul"),
        (["fit", "absent.jsonl", "-o", "OUT"], "absent.jsonl: No such file"),
        (["compare", "LOG"], "write it as: lsd bench compare BEFORE.jsonl AFTER.jsonl"),
        (["micro", "--suite", "memory", "--chip", "trn2", "--out", "LOG"], "begun with chip"),
    ],
)
def test_bad_input_gets_one_line(arguments, said, launches, tmp_path, capsys):
    places = {"LOG": str(launches[0]), "OUT": str(tmp_path / "out")}
    before = launches[0].read_bytes()
    assert bench(*(places.get(a, a) for a in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "out").exists() and launches[0].read_bytes() == before
