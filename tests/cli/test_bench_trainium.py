"""`lsd bench` for Trainium: rows with every figure, refusals in one line, calibration both ways."""

import json
import re

import pytest

from lsd_jax.cli.main import main

KEYS = {"impl", "chip", "kind", "cycles", "us", "floor_us", "mxu_busy", "hbm_bytes", "launches",
        "pe_busy", "act_busy", "dve_busy", "dma_busy", "mfu", "mbu", "us_low", "us_high",
        "table_loads", "instructions"}  # fmt: skip


def test_stack_rows_hold_every_figure(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main(["bench", "stack", "--chip", "trn2", "--config", "tiny", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    served = [row for row in rows if row["us"] is not None]
    assert [(row["impl"], row["cores"]) for row in served] == [
        ("nki", 1),
        ("nki-lnc2", 2),
        ("nki", 2),
    ]
    for row in served:
        assert set(row) >= KEYS and row["kind"] == "modelled" and row["launches"] == 1
        assert row["us_low"] < row["us"] < row["us_high"] and row["floor_us"] < row["us"]
    refused = [row for row in rows if row["us"] is None]
    assert refused and all(set(row) == set(served[0]) | {"refused"} for row in refused)
    assert {row[key] for row in refused for key in KEYS - {"impl", "chip", "kind"}} == {None}
    shown = capsys.readouterr().out
    assert "2 heads do not share 4 ranks; use at most 2" in shown
    path = served[0]["critical_path_us"]
    assert sum(path.values()) == pytest.approx(served[0]["us"])
    most = max(path, key=path.get)
    line = next(line for line in shown.splitlines() if "critical path" in line)
    assert most == "wait" and f"wait {path[most] / served[0]['us']:.0%}" in line
    assert re.search(r" DMA \d\d% ", shown)


def test_calibration_prints_points_and_refits(tmp_path, capsys):
    assert main(["bench", "calibrate", "--chip", "trn2", "--json", str(tmp_path / "p.json")]) == 0
    points = json.loads((tmp_path / "p.json").read_text())["points"]
    assert len(points) == 14 and all(p["holds"] for p in points)
    profile, out = tmp_path / "summary.json", tmp_path / "mine.json"
    profile.write_text(json.dumps({"total_time": 1e-3, "tensor_engine_active_time": 5e-5}))
    command = ["bench", "calibrate", "--chip", "trn2", "--config", "tiny"]
    assert main([*command, "--profile", str(profile), "--out", str(out)]) == 0
    fitted = json.loads(out.read_text())["numbers"]["pe_clock"]
    assert fitted["kind"] == "assumed"
    assert fitted["source"] == "fit of the tensor_engine's busy time to summary.json, tiny"
    assert "pe_clock: 2.4e+09 ->" in capsys.readouterr().out
    rows = tmp_path / "rows.json"
    command = ["bench", "stack", "--chip", str(out), "--config", "tiny", "--json", str(rows)]
    assert main(command) == 0
    assert json.loads(rows.read_text())["rows"][0]["chip"] == "mine"


def test_a_refit_knows_cores_that_act_as_one(tmp_path):
    from lsd_jax.config import load
    from lsd_jax.hw import chips
    from nki_kernels import bench
    from nki_kernels.sim.timeline import schedule

    trn2 = chips.load("trn2")
    shapes = bench.shapes_of(load("tiny").model, trn2, 2, 2)
    pair = schedule([bench.trace(shapes, trn2)], trn2)[0]
    profile, out = tmp_path / "summary.json", tmp_path / "mine.json"
    busy = 2 * pair.busy_ns["pe"] / 1e9
    profile.write_text(json.dumps({"total_time": 1e-3, "tensor_engine_active_time": busy}))
    command = ["bench", "calibrate", "--chip", "trn2", "--config", "tiny", "--lnc", "2"]
    assert main([*command, "--profile", str(profile), "--out", str(out)]) == 0
    assert chips.load(str(out))["pe_clock"] == pytest.approx(1.2e9)


PROFILE = ["--profile", "absent.json", "--out", "y"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chip", "v6e"], "calibrate is for trn1, trn2 and trn3"),
        (["--chip", "trn2", "--profile", "x"], "--profile SUMMARY.json and --out CHIP.json"),
        (["--chip", "trn2", *PROFILE], "absent.json: No such file"),
        (["--chip", "trn1", *PROFILE, "--lnc", "2"], "--lnc 2: at most 1 of trn1's cores act as"),
        (
            ["--chip", "trn2", *PROFILE, "--lnc", "2", "--cores", "4"],
            "--cores 4 --lnc 2: a profile",
        ),
        (["--chip", "trn2", *PROFILE, "--cores", "0"], "--cores 0 --lnc 1: a profile"),
    ],
)
def test_bad_input_is_one_line_and_code_2(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "calibrate", *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
