"""The search: its fast path is the planner's, its front is a front, its files are configs."""

import ast
import json
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import linregress

from lsd_jax import config as configs
from lsd_jax.cli.main import main
from lsd_jax.config import section_from_dict
from lsd_jax.hw import chips
from lsd_jax.hw.memory import held
from lsd_jax.hw.plan import memory_bytes, plan_frame
from lsd_jax.search import fast, front, grid, history, law, regression, score, space

BASE = configs.override(configs.load("small"), ["stream.compute_dtype=bfloat16"])
EVERYTHING = space.enumerate_all(BASE)
V6E = chips.load("v6e")
NOTHING = regression.Misses(0.0, 0.0, 0.0)
ONE_HISTORY = ("model.window=3", "model.sinks=1", "model.memory=0")


@pytest.fixture
def few(monkeypatch):
    """A space of some thousands: checked types make a search slow."""
    monkeypatch.setattr(space, "DIMS", (128, 256, 512, 768))
    monkeypatch.setattr(space, "LAYERS", (1, 2, 3, 4, 6, 9, 12, 16, 24))
    monkeypatch.setattr(space, "RATIOS", (2.0, 4.0))
    monkeypatch.setattr(space, "PATCHES", (8, 16))
    monkeypatch.setattr(space, "PER_KV", (1, 2))


def some(count, most_dim=1024, seed=0):
    """A random choice of small candidates, each with a history of its own."""
    numbers = np.flatnonzero((EVERYTHING.dim <= most_dim) & (EVERYTHING.layers <= 12))
    rng = np.random.default_rng(seed)
    found = EVERYTHING.where(rng.choice(numbers, count, replace=False))
    slots = np.array(space.histories(BASE))[rng.integers(45, size=count)].T
    return replace(found, **dict(zip(space.History._fields, slots, strict=True)))


def test_the_space_holds_what_was_asked_of_it():
    assert len(EVERYTHING) >= 100_000
    few = some(5)
    for i in range(5):
        config = few.config(i, "x")
        assert few.parameters[i] == pytest.approx(held(config).weights / 2, rel=0.05)
        assert config.model.height == 256
    for name in ("tokens", "keys"):
        assert np.array_equal(getattr(few, name), [getattr(few.model(i), name) for i in range(5)])
    assert len({(config.window, config.sinks, config.memory) for config in models(few)}) > 2
    assert {name.split(".")[1] for name in space.SEARCHED} <= {
        *vars(BASE.model), *vars(BASE.stream)
    }  # fmt: skip


def models(found):
    """Candidates as configs have them."""
    return [found.model(i) for i in range(len(found))]


def test_histories_have_the_memory_that_is_asked_for():
    assert len(space.histories(BASE)) == 45
    asked = configs.override(BASE, ["model.memory=4", "model.window=8"])
    assert {h.memory for h in space.histories(asked)} == {4}
    kept = space.histories(asked, {"model.window", "stream.passes"})
    assert {h.window for h in kept} == {8} and {h.sinks for h in kept} == {0, 1, 2}
    # Memory slots pool pairs of tokens, which patches of 32 leave none of.
    odd = configs.override(BASE, ["model.height=160"])
    found = space.enumerate_all(odd, (), [space.History(1, 0, 0), space.History(1, 0, 2)])
    assert set(found.patch[found.memory > 0]) == {4, 8, 16}
    assert set(found.patch[found.memory == 0]) == {4, 8, 16, 32}


def test_what_is_to_be_kept_is_not_searched():
    asked = ["model.head_width=40", "model.dim=200", "model.layers=5", "model.mlp=300",
             "model.heads=3", "model.patch=8", "stream.passes=2"]  # fmt: skip
    config = configs.override(BASE, asked)
    found = space.enumerate_all(config, {name.split("=")[0] for name in asked})
    assert [found.config(i, config.name) for i in range(len(found))] == [config]
    wide = space.enumerate_all(config, {"model.mlp"})
    assert set(wide.mlp) == {300} and len(wide) > 1000
    assert front.precisions(BASE, V6E, {"stream.weight_dtype"}) == [BASE]
    assert len(front.precisions(BASE, V6E)) == 2


@pytest.mark.parametrize(("name", "ranks"), [*product(("v6e", "v5e", "h200"), (1, 4)), ("cpu", 1)])
def test_the_fast_path_gives_the_planners_figures(name, ranks):
    chip, few = chips.load(name), some(25 * ranks, seed=1)
    found, shared = fast.frame_ms(few, chip, ranks), few.key_heads % ranks == 0
    assert np.all(np.isinf(found[~shared])) and 3 < shared.sum() <= len(few)
    some_of_them = few.where(shared)
    configs_of_them = (some_of_them.config(i, "x") for i in range(len(some_of_them)))
    planned = [plan_frame(config, chip, ranks).ms for config in configs_of_them]
    assert found[shared] == pytest.approx(planned, rel=0.03)


@pytest.mark.parametrize("name", ["v6e", "trn2", "cpu"])
def test_plain_xla_is_costed_where_it_is_asked_for(name):
    chip, few = chips.load(name), some(8, seed=2)
    asked = replace(few, base=configs.override(few.base, ["stream.backend=xla"]))
    found = fast.frame_ms(asked, chip)
    planned = [plan_frame(asked.config(i, "x"), chip).ms for i in range(len(asked))]
    assert found == pytest.approx(planned, rel=0.03)
    best = fast.frame_ms(few, chip)
    assert np.all(found >= best) and np.any(found > best)


def test_query_heads_share_keys_in_the_space():
    assert set(EVERYTHING.per_kv) == set(space.PER_KV) and not any(
        EVERYTHING.heads % EVERYTHING.per_kv
    )
    config = configs.override(BASE, ["model.head_width=64", "model.heads=10", "model.kv_heads=2"])
    kept = space.enumerate_all(config, {"model.kv_heads"})
    assert set(kept.key_heads) == {2} and {1, 5, 16} <= set(kept.per_kv)
    assert set(space.enumerate_all(config, {"model.heads"}).key_heads) == {10, 5}
    (ten,) = models(space.enumerate_all(config, set(space.SEARCHED)))
    assert ten == config.model
    assert set(space.enumerate_all(BASE, {"model.kv_heads"}).per_kv) == {1}  # as it has: 0


@pytest.mark.parametrize(("name", "ranks"), [("v6e", 2), ("trn2", 1), ("cpu", 1)])
def test_shared_keys_are_costed_as_the_planner_costs_them(name, ranks):
    numbers = np.flatnonzero(
        (EVERYTHING.per_kv > 1) & (EVERYTHING.dim <= 512) & (EVERYTHING.layers <= 4)
        & (EVERYTHING.patch >= 16)
    )  # fmt: skip
    few = EVERYTHING.where(np.random.default_rng(0).choice(numbers, 8, replace=False))
    chip = chips.load(name)
    found = fast.frame_ms(few, chip, ranks)
    assert len(set(few.key_heads)) > 1
    for i in range(len(few)):
        config = few.config(i, "x")
        assert config.model.kv_heads == config.model.heads // few.per_kv[i] == few.key_heads[i]
        assert few.parameters[i] == pytest.approx(held(config).weights / 2, rel=0.05)
        if config.model.kv_heads % ranks == 0:
            planned = plan_frame(config, chip, ranks).ms
            assert found[i] == pytest.approx(planned, rel=0.2 if name == "trn2" else 0.03)
        else:
            assert np.isinf(found[i])
    assert f"by{few.key_heads[0]}x" in front.name_of(few.model(0), chip)


def test_a_stream_may_be_shared_by_several_cores(few):
    assert front.ranks_of(V6E, 1) == [1] and front.ranks_of(V6E, 12) == [1, 3, 6, 12]
    assert front.ranks_of(chips.load("trn2"), 128)[-1] == space.MOST_HEADS
    assert front.ranks_of(chips.load("cpu"), 4) == [1]
    quality = law.fit(law.load())
    large = configs.override(BASE, ["model.height=1024", "model.width=1024", *ONE_HISTORY])
    keep = {name.split("=")[0] for name in ONE_HISTORY}
    found = [front.search(large, V6E, quality, 400.0, cores=n, keep=keep) for n in (1, 4)]
    least = [search.front[-1].predicted_loss for search in found]
    assert least[1] < least[0] and found[1].front[-1].plan.ranks > 1


def test_memory_is_counted_as_the_planner_counts_it():
    chip, few = chips.load("v5e"), some(10)
    kept = [held(few.config(i, "x"), 100) for i in range(len(few))]
    fit = [h.weights + h.state <= 0.9 * memory_bytes(chip) for h in kept]
    assert (fast.held_bytes(few, 100) <= fast.room(chip)).tolist() == fit


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
    asked = ["model.controls=", "model.kv_heads=1", "train.scene_edits=remove"]
    asked.append('distill.teacher=it\'s a \\ or """"\n❄\x1f')
    config = configs.override(configs.load(name), asked)
    path = front.write(config, tmp_path, f"It is one by {asked}.\n")
    assert configs.load(path) == config
    assert ast.get_docstring(ast.parse(path.read_text()), clean=False) == f"It is one by {asked}.\n"
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.py"]


def knowing(**terms):
    """A law of pictures, and of histories with these terms."""
    known = history.HistoryLaw(terms, NOTHING, NOTHING, {})
    return law.Law((-2.0, -0.03, 0.05, 0.0), 1.0, 1.2, NOTHING, known)


def test_a_history_is_searched_where_it_may_be_worth_its_time():
    options = space.histories(BASE)
    assert knowing().history.contenders(options) == [(1, 0, 0)]
    windows = knowing(window=-0.1).history.contenders(options)
    assert windows == [(w, 0, 0) for w in space.WINDOWS]
    assert knowing(window=0.1).history.contenders(options) == [(1, 0, 0)]  # more is worse
    both = knowing(window=-0.1, memory=-0.1).history.contenders(options)
    assert len(both) == len(space.WINDOWS) * len(space.MEMORY)
    one, three = space.History(1, 0, 0), space.History(3, 2, 2)
    assert knowing(window=-0.1).history.factor(one) == 1
    assert knowing(window=-0.1).history.factor(three) == pytest.approx(3**-0.1)
    assert knowing(sinks=0.1).history.factor(three) == pytest.approx(3**0.1)
    ratio = knowing(window=-0.1).predict(some(9)) / knowing().predict(some(9))
    assert ratio == pytest.approx(some(9).window ** -0.1) and np.ptp(ratio) > 0


def streamed(terms, slots, noise, seed=0):
    """A grid of clips whose errors follow a known law of histories."""
    rng, entries = np.random.default_rng(seed), []
    for i, each in enumerate(slots):
        log = np.log(knowing(**terms).history.factor(each)) - 2 + noise * rng.normal()
        entries.append({"held_out": i % 5 == 4, "model": each._asdict(), "error": np.exp(log)})
    return entries


def test_the_law_tells_a_history_from_chance():
    slots = space.histories(BASE)[::2]
    found = history.fit_history(streamed({"window": -0.08, "memory": 0.05}, slots, 0.01))
    assert found.terms.keys() == {"window", "memory"}
    assert found.terms["window"] == pytest.approx(-0.08, abs=0.02)
    assert found.missed.held_out < found.mean_missed.held_out
    assert found.missed.left_out < found.mean_missed.left_out
    by_chance = [history.fit_history(streamed({}, slots, 0.02, seed)).terms for seed in range(40)]
    assert sum(map(bool, by_chance)) <= 8
    with pytest.raises(ValueError, match="finish the grid by lsd search --refit"):
        history.fit_history(streamed({}, slots[:4], 0.02))


def test_chance_is_that_of_a_t_test():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    columns = np.column_stack([np.ones(12), x])
    assert regression.chances(columns, y) == pytest.approx([linregress(x, y)[3]])


def runs(coefficients, models, noise=0.0, seed=0):
    """A grid whose errors follow a known law."""
    rng, entries = np.random.default_rng(seed), []
    for i, model in enumerate(models):
        sizes = law.Sizes.of(asdict(model))
        logs = law._features(sizes) @ np.asarray(coefficients) + noise * rng.normal()
        one = float(np.exp(logs))
        entries.append({
            "name": str(i), "held_out": i % 4 == 3, "model": asdict(model),
            "error": {"1": one, "2": 1.25 * one},
        })  # fmt: skip
    return {"runs": entries, "clips": {"runs": streamed({}, space.histories(BASE)[::2], 0.01)}}


TRUE = (-2.0, -0.1, -0.05, 0.0)


def test_the_law_recovers_what_made_the_errors():
    models = [grid._model(dim, layers, patch=p) for dim in (48, 96, 192) for layers in (1, 3, 6)
              for p in (4, 8)]  # fmt: skip
    found = law.fit(runs(TRUE, models))
    assert found.missed.held_out < 0.005 and found.two_passes == pytest.approx(1.25)
    assert found.coefficients[1] == pytest.approx(-0.1, abs=0.02)
    noisy = law.fit(runs(TRUE, models, noise=0.1))
    assert 0.02 < noisy.missed.held_out < 0.3
    with pytest.raises(ValueError, match="finish the grid by lsd search --refit"):
        law.fit(runs(TRUE, models[:3]))
    with pytest.raises(ValueError, match="finish the grid by lsd search --refit"):
        law.fit({"runs": runs(TRUE, models)["runs"]})  # of before there were clips


def test_the_law_tells_shared_keys_from_chance():
    models = [
        grid._model(dim, layers, heads=8, kv_heads=keys)
        for dim in (64, 256) for layers in (1, 3, 6) for keys in (8, 4, 2)
    ]  # fmt: skip
    found = law.fit(runs((*TRUE[:3], 0.05), models, noise=0.01))
    assert found.sharing < history.LEVEL
    assert found.coefficients[-1] == pytest.approx(0.05, abs=0.02)
    single = [law.Sizes.of(asdict(grid._model(256, 3, heads=8, kv_heads=n))) for n in (8, 2)]
    worse = np.diff([law._features(sizes) @ np.array(found.coefficients) for sizes in single])
    assert worse == pytest.approx(0.05 * np.log(4) + 0.1 * np.log(12 / 10.5), abs=0.03)
    by_chance = [law.fit(runs(TRUE, models, 0.01, seed)) for seed in range(20)]
    assert sum(each.coefficients[-1] != 0 for each in by_chance) <= 4
    assert all((each.coefficients[-1] != 0) == (each.sharing < 0.05) for each in by_chance)
    unshared = law.fit(runs(TRUE, [replace(model, kv_heads=0) for model in models[:9]], 0.01))
    assert unshared.sharing == 1 and unshared.coefficients[-1] == 0


def test_the_shipped_law_is_that_of_the_grid():
    shipped = law.load()
    assert shipped["kind"] == "measured"
    for where, part in grid.parts().items():
        held = shipped[where] if where else shipped
        wanted = {part.name_of(model): model for model in (*part.fitted, *part.held_out)}
        assert {entry["name"] for entry in held["runs"]} == set(wanted)
        for entry in held["runs"]:
            model = wanted[entry["name"]]
            assert section_from_dict("model", entry["model"]) == model
            assert entry["held_out"] == (model in part.held_out)
    found = law.fit(shipped)
    assert found.missed.held_out < 0.15 and found.missed.left_out < 0.15
    assert found.coefficients[1] < 0  # more parameters, less error


def test_the_space_has_no_more_than_the_grid_has_seen():
    assert max(space.PER_KV) <= max(model.per_kv for model in grid.HELD_OUT)
    seen = [model for model in (*grid.HISTORIES, *grid.HISTORIES_HELD_OUT)]
    for kind, slots in (
        ("window", space.WINDOWS),
        ("sinks", space.SINKS),
        ("memory", space.MEMORY),
    ):
        assert max(slots) <= max(getattr(model, kind) for model in seen)


def test_a_finished_grid_is_not_trained_again(tmp_path, capsys):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(law.load()))
    assert main(["search", "--refit", "--grid", str(path), "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the law misses" in said and "a term for shared keys is chance (p = 0." in said
    assert [p.name for p in tmp_path.iterdir()] == ["grid.json"]


@pytest.mark.slow
def test_the_grid_trains_what_is_missing_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "TRAIN", replace(grid.TRAIN, batch=2, steps=2, warmup=1))
    few = dict(height=32, width=32, patch=8, text_dim=32, detail_dim=8)  # quick to compile
    models = tuple(replace(grid._model(dim, 1), **few) for dim in (16, 32))
    monkeypatch.setattr(grid, "FITTED", models)
    monkeypatch.setattr(grid, "HELD_OUT", ())
    monkeypatch.setattr(grid, "HISTORIES", ())
    monkeypatch.setattr(grid, "HISTORIES_HELD_OUT", ())
    path = tmp_path / "grid.json"
    first = grid.run(path, tmp_path / "runs", most=1)["runs"]
    both = grid.run(path, tmp_path / "runs")["runs"]
    assert len(first) == 1 and len(both) == 2
    assert both[0] == json.loads(json.dumps(first[0]))
    assert all(0 < entry["error"]["1"] < 4 for entry in both)


@pytest.mark.slow
def test_a_run_on_clips_is_scored_by_its_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "CLIPS", replace(grid.CLIPS, batch=2, steps=2, warmup=1))
    monkeypatch.setattr(grid, "HISTORIES", (grid._remembering(2, 1, 2),))
    monkeypatch.setattr(grid, "HISTORIES_HELD_OUT", ())
    monkeypatch.setattr(score, "STREAMS", 2)
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({k: v for k, v in law.load().items() if k != "clips"}))
    found = grid.run(path, tmp_path / "runs")
    assert found["runs"] == law.load()["runs"]  # those on pictures are all there
    (entry,) = found["clips"]["runs"]
    assert entry["name"] == "w2-s1-r2" and len(entry["curve"]) == score.FRAMES // score.CHUNK
    late = entry["curve"][len(entry["curve"]) // 2 :]
    assert 0 < entry["error"] < 4 and entry["error"] == pytest.approx(np.mean(late))


@pytest.mark.parametrize(
    "change", ["train", "scored", "clips.train", "clips.history", "clips.frames"]
)
def test_a_grid_of_other_settings_is_not_continued(change, tmp_path):
    path, shipped = tmp_path / "grid.json", law.load()
    part, _, name = change.rpartition(".")
    held = shipped[part] if part else shipped
    changed = {"train": {"steps": 1}, "history": {"corrupted": 0.75}}
    held[name] = changed.get(name, 1)
    path.write_text(json.dumps(shipped))
    with pytest.raises(ValueError, match="holds runs of other settings"):
        grid.run(path, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"runs": 3}', '{"runs": [{"name": 1}]}'])
def test_a_file_without_runs_is_named(content, tmp_path, capsys):
    path = tmp_path / "odd.json"
    path.write_text(content)
    assert main(["search", "--chip", "v6e", "--grid", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said and said.count("\n") == 1
    if content[0] != "{" or content == "{":
        assert main(["search", "--refit", "--grid", str(path), "--runs", str(tmp_path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_the_command_writes_configs_that_plan_takes(few, tmp_path, capsys):
    report, picture, out = (tmp_path / name for name in ("a.json", "b/found.png", "found"))
    arguments = ["search", "--chip", "v6e", "--fps", "240", "--params-max", "4e7"]
    arguments += ["--set", "model.window=3"]
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
        assert config.model.window == 3 and config.model.memory >= 0
        assert f"-w3-s{config.model.sinks}-r{config.model.memory}" in config.name
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
        (["--refit", "-o", "found"], "give --chip as well"),
        (["--refit", "--plot", "front.png"], "give --chip as well"),
        (["--refit", "--chip", "v9"], "unknown chip 'v9'; known: "),  # before it trains anything
        (["--chip", "v9"], "unknown chip 'v9'; known: "),
        (["--chip", "v6e", "--fps", "0"], "--fps 0.0: give more than 0"),
        (["--chip", "v6e", "--fps", "inf"], "--fps inf: give more than 0, and a finite number"),
        (["--chip", "v6e", "--sessions", "1000000000"], "GB more than there are"),
        (["--chip", "v6e", "--sessions", "0"], "--sessions 0: give at least 1"),
        (["--chip", "v6e", "--cores", "0"], "--cores 0: give at least 1"),
        (["--chip", "v6e", "--fps", "1e6"], "nothing holds 1e+06 fps"),
        (["--chip", "v6e", "--params-max", "10"], "nothing of at most 10 parameters fits"),
        (
            ["--chip", "v6e", "--set", "model.layers=1", "--set", "model.dim=512"],
            "the law knows no such proportions of width and depth",
        ),
    ],
)
def test_bad_input_is_refused_in_a_line(few, arguments, message, capsys):
    one = [part for name in ONE_HISTORY for part in ("--set", name)]
    assert main(["search", *arguments, *one]) == 2
    said = capsys.readouterr().err
    assert message in said and said.strip().count("\n") == 0
