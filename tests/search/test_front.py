"""What `lsd search` finds: it holds, it fits, and its file says the command that finds it again."""

import ast
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax.cli.main import main
from lsd_jax.hw import capacity, chips
from lsd_jax.hw.plan import plan_frame
from lsd_jax.search import fast, front, law

V6E, QUALITY = chips.load("v6e"), law.fit(law.load())
SIZES = ("model.kv_heads=0", "model.head_width=128", "model.mlp=2048", "model.window=3",
         "model.sinks=1", "model.memory=0", "stream.passes=1", "stream.weight_dtype=")  # fmt: skip
KEPT = {name.split("=")[0] for name in SIZES}


def based_on(name, *more):
    """A config whose dim, layers, heads and patch are searched, but for more that are given."""
    return configs.override(configs.load(name), ["stream.compute_dtype=bfloat16", *SIZES, *more])


def sets(*more):
    """The same for the command."""
    return [part for name in (*SIZES, *more) for part in ("--set", name)]


def test_after_a_refit_it_is_searched_by_that_grid(tmp_path):
    worse, report, out = law.load(), tmp_path / "law.json", tmp_path / "found"
    for entry in worse["runs"]:
        entry["error"] = {passes: 2 * error for passes, error in entry["error"].items()}
    (tmp_path / "grid.json").write_text(json.dumps(worse))
    again = ["search", "--refit", "--runs", str(tmp_path)]
    assert main([*again, "--json", str(report)]) == 0
    refitted, shipped = json.loads(report.read_text()), QUALITY
    assert refitted["grid"] == str(tmp_path / "grid.json") and refitted["kind"] == "measured"
    assert refitted["coefficients"][0] == pytest.approx(shipped.coefficients[0] + np.log(2))
    assert main([*again, "--chip", "v6e", *sets(), "-o", str(out), "--json", str(report)]) == 0
    for row in json.loads(report.read_text()):
        expected = shipped.predict(configs.load(row["config"]).model)
        assert row["predicted_loss"] == pytest.approx(2 * expected, rel=1e-3)
        assert f"--grid {tmp_path / 'grid.json'}" in Path(row["config"]).read_text()


def test_a_found_config_says_the_command_that_found_it(tmp_path):
    path = tmp_path / "my grid.json"
    path.write_text(json.dumps(law.load()))
    given = ["--chip", "v6e", "--config", "small", "--fps", "29.97002997", "--cores", "2"]
    given += ["--sessions", "3", "--params-max", "8123456.0", "--grid", str(path)]
    given += sets("distill.teacher=it's")
    assert main(["search", *given, "-o", str(tmp_path / "found")]) == 0
    for found in (tmp_path / "found").iterdir():
        said = ast.get_docstring(ast.parse(found.read_text()))
        assert shlex.split(said.split("Found by")[1]) == ["lsd", "search", *given]
        assert configs.load(found).distill.teacher == "it's"


@pytest.mark.parametrize("sessions", [1, 4])
def test_what_is_found_fits(sessions):
    """Attention by XLA holds all logits at once, which the fast path knows nothing of."""
    chip, large = chips.load("v5e"), based_on("lucy_1080p")
    found = front.search(large, chip, QUALITY, 0.01, sessions, keep=KEPT).front
    assert found and all(plan_frame(point.config, chip).fits for point in found)
    carried = [capacity.sessions_per_chip(point.config, chip, 0.01) for point in found]
    assert min(carried) >= sessions
    small_patches = configs.override(large, ["model.patch=8"])
    with pytest.raises(ValueError, match="nothing fits on a core of v5e: .* GB more than there"):
        front.search(small_patches, chip, QUALITY, 0.01, sessions, keep={*KEPT, "model.patch"})


def test_what_the_fast_path_promises_in_vain_leaves_its_place_to_others(monkeypatch):
    base, real = based_on("small"), fast.frame_ms
    best = front.search(base, V6E, QUALITY, 400.0, keep=KEPT).front
    monkeypatch.setattr(fast, "frame_ms", lambda *of: 0.5 * real(*of))
    found = front.search(base, V6E, QUALITY, 400.0, keep=KEPT).front
    assert found[-1].predicted_loss <= best[-1].predicted_loss
    assert all(point.plan.ms <= 1000 / 400 for point in found) and len(found) >= len(best) - 1
    said = r"nothing holds .* the fastest takes .* ms, 1\.[2-5]\d times"
    with pytest.raises(ValueError, match=said):
        front.search(base, V6E, QUALITY, 1300 / best[0].plan.ms, keep=KEPT)
