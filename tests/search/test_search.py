"""The search: its fast path is the planner's, its front is a front, its files are configs."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax.cli.main import main
from lsd_jax.hw import chips
from lsd_jax.hw.memory import held
from lsd_jax.hw.plan import memory_bytes, plan_frame
from lsd_jax.search import fast, front, grid, law, space

BASE = configs.override(configs.load("small"), ["stream.compute_dtype=bfloat16"])
EVERYTHING = space.enumerate_all(BASE)
V6E = chips.load("v6e")


@pytest.fixture
def few(monkeypatch):
    """A space of some thousands: checked types make a search slow."""
    monkeypatch.setattr(space, "DIMS", (128, 256, 512, 768))
    monkeypatch.setattr(space, "RATIOS", (2.0, 4.0))


def some(count, most_dim=1024, seed=0):
    """A random choice of small candidates."""
    numbers = np.flatnonzero((EVERYTHING.dim <= most_dim) & (EVERYTHING.layers <= 12))
    return EVERYTHING.where(np.random.default_rng(seed).choice(numbers, count, replace=False))


def test_the_space_holds_what_was_asked_of_it():
    assert len(EVERYTHING) >= 100_000
    few = some(5)
    for i in range(5):
        config = few.config(i, "x")
        assert few.parameters[i] == pytest.approx(held(config).weights / 2, rel=0.05)
        assert (config.model.window, config.model.height) == (4, 256)
    assert np.array_equal(few.tokens, [few.model(i).tokens for i in range(5)])


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("name", ["v6e", "v5e", "h200"])
def test_the_fast_path_gives_the_planners_figures(name, ranks):
    chip, few = chips.load(name), some(25, seed=1)
    found, shared = fast.frame_ms(few, chip, ranks), few.heads % ranks == 0
    assert np.all(np.isinf(found[~shared])) and 3 < shared.sum() <= len(few)
    some_of_them = few.where(shared)
    configs_of_them = (some_of_them.config(i, "x") for i in range(len(some_of_them)))
    planned = [plan_frame(config, chip, ranks).ms for config in configs_of_them]
    assert found[shared] == pytest.approx(planned, rel=0.03)


@pytest.mark.parametrize(("name", "ranks"), [("v6e", 2), ("trn2", 1), ("cpu", 1)])
def test_keys_are_shared_as_the_base_shares_them(name, ranks):
    shared = configs.override(BASE, ["model.heads=4", "model.kv_heads=2"])
    every = space.enumerate_all(shared)
    assert set(every.per_kv) == {2} and set(every.heads) > {2, 4, 6} and not any(every.heads % 2)
    numbers = np.flatnonzero((every.dim <= 512) & (every.layers <= 4) & (every.patch >= 16))
    few = every.where(np.random.default_rng(0).choice(numbers, 8, replace=False))
    chip = chips.load(name)
    found = fast.frame_ms(few, chip, ranks)
    for i in range(len(few)):
        config = few.config(i, "x")
        assert config.model.kv_heads == config.model.heads // 2 == few.key_heads[i]
        assert few.parameters[i] == pytest.approx(held(config).weights / 2, rel=0.05)
        if config.model.kv_heads % ranks == 0:
            planned = plan_frame(config, chip, ranks).ms
            assert found[i] == pytest.approx(planned, rel=0.2 if name == "trn2" else 0.03)
        else:
            assert np.isinf(found[i])
    assert "-h4by2x" in front.name_of(shared.model, chip)


def test_a_stream_may_be_shared_by_several_cores(few):
    assert front.ranks_of(V6E, 1) == [1] and front.ranks_of(V6E, 12) == [1, 3, 6, 12]
    assert front.ranks_of(chips.load("trn2"), 128)[-1] == space.MOST_HEADS
    assert front.ranks_of(chips.load("cpu"), 4) == [1]
    quality = law.fit(law.load())
    large = configs.override(BASE, ["model.height=1024", "model.width=1024"])
    found = [front.search(large, V6E, quality, 400.0, cores=n) for n in (1, 4)]
    least = [search.front[-1].predicted_loss for search in found]
    assert least[1] < least[0] and found[1].front[-1].plan.ranks > 1


def test_memory_is_counted_as_the_planner_counts_it():
    chip, few = chips.load("v5e"), some(10)
    kept = [held(few.config(i, "x"), 100) for i in range(len(few))]
    fit = [h.weights + h.state <= 0.9 * memory_bytes(chip) for h in kept]
    assert fast.fits(few, chip, 100).tolist() == fit


def test_a_front_has_no_point_that_another_beats():
    rng = np.random.default_rng(0)
    ms, losses = rng.random(200), rng.random(200)
    chosen = front.pareto(ms, losses)
    for i in range(200):
        beaten = np.any((ms[chosen] <= ms[i]) & (losses[chosen] <= losses[i]))
        assert beaten
    assert np.all(np.diff(ms[chosen]) > 0) and np.all(np.diff(losses[chosen]) < 0)
    assert front.pareto(np.array([1.0, 1.0]), np.array([2.0, 1.0])).tolist() == [1]


@pytest.mark.parametrize("name", ["tiny", "base", "lucy_1080p"])
def test_a_written_config_is_read_back_whole(name, tmp_path):
    config = configs.override(configs.load(name), ["model.controls=mask,keypoints"])
    path = front.write(config, tmp_path, "It is one.\n")
    assert configs.load(path) == config
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.py"]


def runs(coefficients, models, noise=0.0):
    """A grid whose errors follow a known law."""
    rng, entries = np.random.default_rng(0), []
    for i, model in enumerate(models):
        sizes = law.Sizes.of(asdict(model))
        logs = law._features(sizes) @ np.asarray(coefficients) + noise * rng.normal()
        one = float(np.exp(logs))
        entries.append({
            "name": str(i), "held_out": i % 4 == 3, "model": asdict(model),
            "error": {"1": one, "2": 1.25 * one},
        })  # fmt: skip
    return {"runs": entries}


def test_the_law_recovers_what_made_the_errors():
    models = [grid._model(dim, layers, patch=p) for dim in (48, 96, 192) for layers in (1, 3, 6)
              for p in (4, 8)]  # fmt: skip
    found = law.fit(runs((-2.0, -0.1, -0.05), models))
    assert found.held_out_error < 0.005 and found.two_passes == pytest.approx(1.25)
    assert found.coefficients[1] == pytest.approx(-0.1, abs=0.02)
    noisy = law.fit(runs((-2.0, -0.1, -0.05), models, noise=0.1))
    assert 0.02 < noisy.held_out_error < 0.3
    with pytest.raises(ValueError, match="finish the grid by lsd search --refit"):
        law.fit(runs((-2.0, -0.1, -0.05), models[:3]))


def test_the_shipped_law_is_that_of_the_grid():
    shipped = law.load()
    assert shipped["kind"] == "measured"
    wanted = {grid.name_of(model): model for model in (*grid.FITTED, *grid.HELD_OUT)}
    assert {entry["name"] for entry in shipped["runs"]} == set(wanted)
    for entry in shipped["runs"]:
        assert configs.section_from_dict("model", entry["model"]) == wanted[entry["name"]]
    found = law.fit(shipped)
    assert found.held_out_error < 0.15 and found.left_out_error < 0.15
    assert found.coefficients[1] < 0  # more parameters, less error


def test_a_finished_grid_is_not_trained_again(tmp_path, capsys):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(law.load()))
    assert main(["search", "--refit", "--grid", str(path), "--runs", str(tmp_path)]) == 0
    assert "the law misses" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["grid.json"]


@pytest.mark.slow
def test_the_grid_trains_what_is_missing_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "TRAIN", replace(grid.TRAIN, batch=2, steps=2, warmup=1))
    few = dict(height=32, width=32, patch=8, text_dim=32, detail_dim=8)  # quick to compile
    models = tuple(replace(grid._model(dim, 1), **few) for dim in (16, 32))
    monkeypatch.setattr(grid, "FITTED", models)
    monkeypatch.setattr(grid, "HELD_OUT", ())
    path = tmp_path / "grid.json"
    first = grid.run(path, tmp_path / "runs", most=1)["runs"]
    both = grid.run(path, tmp_path / "runs")["runs"]
    assert len(first) == 1 and len(both) == 2
    assert both[0] == json.loads(json.dumps(first[0]))
    assert all(0 < entry["error"]["1"] < 4 for entry in both)


def test_a_grid_of_other_settings_is_not_continued(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(
        json.dumps({"kind": "measured", "train": {"steps": 1}, "scored": 1, "runs": []})
    )
    with pytest.raises(ValueError, match="holds runs of other settings"):
        grid.run(path, tmp_path)


def test_the_command_writes_configs_that_plan_takes(few, tmp_path, capsys):
    report, picture, out = (tmp_path / name for name in ("found.json", "found.png", "found"))
    arguments = ["search", "--chip", "v6e", "--fps", "240", "--params-max", "4e7"]
    assert main([*arguments, "-o", str(out), "--json", str(report), "--plot", str(picture)]) == 0
    rows = json.loads(report.read_text())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(rows) >= 3 and rows[0].keys() == {
        "config",
        "ms_per_frame",
        "cores",
        "predicted_loss",
        "params",
    }
    for row in rows:
        assert row["ms_per_frame"] <= 1000 / 240 and row["params"] <= 4e7
        config = configs.load(row["config"])
        assert plan_frame(config, chips.load("v6e")).ms == pytest.approx(row["ms_per_frame"])
        assert config.model.window == configs.load("small").model.window
        assert config.train == configs.load("small").train
        assert law.supported(config.model)
    losses = [row["predicted_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
    again = tmp_path / "again.json"
    assert main([*arguments, "-o", str(out), "--json", str(again)]) == 0
    assert again.read_text() == report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --chip to search for, or --refit"),
        (["--chip", "v9"], "unknown chip 'v9'; known: "),
        (["--chip", "v6e", "--fps", "0"], "--fps 0.0: give more than 0"),
        (["--chip", "v6e", "--sessions", "0"], "--sessions 0: give at least 1"),
        (["--chip", "v6e", "--cores", "0"], "--cores 0: give at least 1"),
        (["--chip", "v6e", "--fps", "1e6"], "nothing holds 1e+06 fps"),
        (["--chip", "v6e", "--params-max", "10"], "nothing of at most 10 parameters fits"),
    ],
)
def test_bad_input_is_refused_in_a_line(few, arguments, message, capsys):
    assert main(["search", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.strip().count("\n") == 0
