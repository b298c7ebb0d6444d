"""What is cut, what is kept, that the rest is what it was, and that zeros stay where they were."""

import argparse
import dataclasses
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lsd_jax import config as configs
from lsd_jax.checkpoint import save_weights
from lsd_jax.cli import prune as command
from lsd_jax.hw import chips
from lsd_jax.hw.plan import plan_frame
from lsd_jax.model import Denoiser, abstract_params, build
from lsd_jax.pretrained import load_model
from lsd_jax.prune import budget, two_four
from lsd_jax.prune.score import Scores, importance
from lsd_jax.prune.structured import cut
from lsd_jax.search import fast
from lsd_jax.train.history import history_loss


@pytest.fixture(scope="module")
def scores(small_config):
    """Of two layers with two heads and 64 channels: the last of each matter most."""
    model = small_config.model
    return Scores(
        layers=jnp.array([1.0, 2.0]),
        heads=jnp.tile(jnp.arange(model.heads, dtype=jnp.float32), (2, 1)),
        mlp=jnp.stack([jnp.arange(64.0), jnp.arange(64.0)[::-1]]),
    )


def forward(config, params):
    """`denoise` and `remember` of random pictures before a random memory."""
    from lsd_jax import ring

    rng = np.random.default_rng(0)
    picture = lambda c: jnp.asarray(rng.normal(size=(1, 32, 32, c)), jnp.float32)  # noqa: E731

    @jax.jit
    def both(params, source, noisy, controls):
        model = build(config, params)
        kv = ring.empty(config, 1, jnp.float32)
        level = model.modulation(jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
        k, v = model.remember(source, noisy, controls, kv, level)
        kv = ring.commit(kv, k, v, config)
        return model.denoise(source, noisy, controls, kv, level)

    return np.asarray(both(params, picture(3), picture(3), picture(1)))


def test_a_part_that_adds_nothing_can_go(small_config, small_params, scores):
    """Silence what the scores name least; then cutting it changes no output."""
    stack = small_params["stack"]
    out = stack["out"].at[:, 0].set(0)
    down = stack["down"].at[0, :32].set(0).at[1, 32:].set(0)
    params = small_params | {"stack": stack | {"out": out, "down": down}}
    model, smaller = cut(small_config.model, params, scores, {"heads": 1, "mlp": 32})
    assert (model.heads, model.mlp, model.head_dim) == (1, 32, small_config.model.head_dim)
    shapes = jax.tree.map(lambda x: x.shape, smaller)
    assert shapes == jax.tree.map(lambda x: x.shape, abstract_params(model))
    before, after = forward(small_config.model, params), forward(model, smaller)
    np.testing.assert_allclose(after, before, atol=1e-5)
    np.testing.assert_array_equal(smaller["stack"]["up"][1], stack["up"][1][:, :32])


def test_layers_go_whole(small_config, small_params, scores):
    model, smaller = cut(small_config.model, small_params, scores, {"layers": 1})
    for name, x in smaller["stack"].items():
        np.testing.assert_array_equal(x[0], small_params["stack"][name][1])
    np.testing.assert_array_equal(
        smaller["modulation"]["leave"][0], small_params["modulation"]["leave"][1]
    )
    text = smaller["conditioner"]["text"]["blocks"]
    np.testing.assert_array_equal(text, small_params["conditioner"]["text"]["blocks"])
    assert model.layers == 1 and np.isfinite(forward(model, smaller)).all()


def test_heads_that_share_keys_go_together(small_config, scores):
    config = dataclasses.replace(small_config.model, heads=4, kv_heads=2)
    create = jax.jit(lambda key: Denoiser(config, key))
    params = nnx.to_pure_dict(nnx.state(create(jax.random.key(0)), nnx.Param))
    out = params["stack"]["out"].at[:, 0].set(0)
    params = params | {"stack": params["stack"] | {"out": out}}
    model, smaller = cut(config, params, scores, {"heads": 2})
    assert (model.heads, model.kv_heads, model.head_dim) == (2, 1, config.head_dim)
    shapes = jax.tree.map(lambda x: x.shape, smaller)
    assert shapes == jax.tree.map(lambda x: x.shape, abstract_params(model))
    before, after = forward(config, params), forward(model, smaller)
    np.testing.assert_allclose(after, before, atol=1e-5)
    with pytest.raises(ValueError, match="heads=3: 2 of them at a time share .* multiple of 2"):
        cut(config, params, scores, {"heads": 3})
    every = budget.keeps(dataclasses.replace(small_config, model=config), 32)
    assert set(every.heads) == {2, 4} and set(every.key_heads) == {1, 2}
    lost = budget.lost_by(scores, every)
    for i in range(len(every)):
        kept = (int(getattr(every, name)[i]) for name in ("layers", "key_heads", "mlp"))
        assert lost[i] == pytest.approx(lost_one_by_one(scores, *kept), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("keep", "message"),
    [({"tokens": 3}, "cannot prune 'tokens'"), ({"mlp": 65}, "mlp=65: give 1 to 64"),
     ({"layers": 0}, "layers=0")],
)  # fmt: skip
def test_impossible_cuts_are_refused(small_config, small_params, scores, keep, message):
    with pytest.raises(ValueError, match=message):
        cut(small_config.model, small_params, scores, keep)


def test_scores_foretell_the_change_of_the_loss(small_config, small_params, small_batch):
    """Of a part scaled by 1 - h, the loss changes by h times the root of its score."""
    history = dataclasses.replace(small_config.history, corrupted=0.0)
    config = dataclasses.replace(small_config, history=history)
    found = importance(config, small_params, [small_batch])
    key, step = jax.random.key(1), 0.02

    @jax.jit
    def loss(stack):
        model = build(config.model, small_params | {"stack": stack})
        return history_loss(model, model, small_batch, key, config)[0]

    stack = small_params["stack"]
    head = int(np.argmax(found.heads[0]))
    channel = int(np.argmax(found.mlp[1]))
    changes = {
        "heads": ("out", (0, head), found.heads[0, head]),
        "mlp": ("down", (1, channel), found.mlp[1, channel]),
    }
    for name, at, score in changes.values():
        more, less = (stack | {name: stack[name].at[at].mul(1 + s)} for s in (step, -step))
        slope = (float(loss(more)) - float(loss(less))) / (2 * step)
        assert slope**2 == pytest.approx(float(score), rel=0.1)
    with pytest.raises(ValueError, match="no batch"):
        importance(config, small_params, [])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=8, max_size=8))
def test_two_of_four_stay_and_they_are_the_larger(values):
    x = jnp.asarray(values, jnp.float32).reshape(1, 8, 1)
    kept = np.asarray(two_four.pattern(x, (1,)))[0, :, 0].reshape(2, 4)
    sizes = np.abs(np.asarray(values, float)).reshape(2, 4)
    assert (kept.sum(1) == 2).all()
    for group, keep in zip(sizes, kept, strict=True):
        assert group[keep].min() >= group[~keep].max()


def test_the_pattern_lies_along_what_is_summed(small_config, small_params):
    sparse = two_four.sparsify(small_params)["stack"]
    for name, axes in two_four.SUMMED.items():
        x = np.moveaxis(np.asarray(sparse[name]), axes, range(-len(axes), 0))
        groups = x.reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all()
    with pytest.raises(ValueError, match="groups of four"):
        two_four.pattern(jnp.ones((1, 6, 1)), (1,))


def lost_one_by_one(scores, kept_layers, kept_heads, kept_mlp):
    """What `budget.lost_by` says, by hand."""
    order = np.argsort(-np.asarray(scores.layers), kind="stable")
    gone = order[kept_layers:]
    lost = sum(np.asarray(x)[gone].sum() for x in jax.tree.leaves(scores))
    for parts, kept in ((scores.heads, kept_heads), (scores.mlp, kept_mlp)):
        for layer in order[:kept_layers]:
            lost += np.sort(np.asarray(parts)[layer])[::-1][kept:].sum()
    return lost / sum(np.asarray(x).sum() for x in jax.tree.leaves(scores))


def test_a_chip_has_the_least_important_cut_until_it_holds_the_rate():
    config, chip = configs.load("base"), chips.load("v6e")
    model, rng = config.model, np.random.default_rng(0)
    sizes = (model.layers,), (model.layers, model.heads), (model.layers, model.mlp)
    scores = Scores(*(jnp.asarray(rng.exponential(size=size), jnp.float32) for size in sizes))
    every = budget.keeps(config, 512)
    lost, ms = budget.lost_by(scores, every), fast.frame_ms(every, chip)
    for i in rng.choice(len(every), 20, replace=False):
        kept = (int(getattr(every, name)[i]) for name in ("layers", "heads", "mlp"))
        assert lost[i] == pytest.approx(lost_one_by_one(scores, *kept), rel=1e-4, abs=1e-6)
    whole = plan_frame(config, chip).ms
    found = budget.cut_for(config, scores, chip, 1000 / (0.7 * whole), 512)
    assert found.before_ms == whole and found.after_ms <= 0.7 * whole
    assert found.lost == pytest.approx(lost[ms <= 0.7 * whole].min())
    with pytest.raises(ValueError, match="nothing matters by these scores"):
        budget.cut_for(config, jax.tree.map(jnp.zeros_like, scores), chip, 30.0, 512)
    assert budget.cut_for(config, scores, chip, 0.9 * 1000 / whole, 512).lost == 0  # nothing to do
    with pytest.raises(ValueError, match="no cut of base holds 100000 fps on a v6e: the smallest"):
        budget.cut_for(config, scores, chip, 1e5, 512)


def arguments(*given):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json")
    return parser.parse_args([str(x) for x in given])


@pytest.mark.slow  # scores on streams of the model, most of a minute of compiling
def test_the_command_writes_a_checkpoint_that_loads(
    small_config, small_params, tmp_path, monkeypatch, capsys
):
    from lsd_jax import reports

    monkeypatch.setattr(reports, "provenance", lambda: {})
    save_weights(tmp_path / "whole", small_params, small_config)
    command.run(
        arguments(tmp_path / "whole", "--keep", "mlp=32,heads=1", "--two-four", "--multiple", 32,
                  "--batches", 2, "-o", tmp_path / "cut", "--json", tmp_path / "report.json")
    )  # fmt: skip
    _, config = load_model(tmp_path / "cut", [])
    assert (config.model.mlp, config.model.heads, config.train.keep_zeros) == (32, 1, True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert "--stage distill" in capsys.readouterr().out


def test_the_command_cuts_for_a_chip(
    small_config, small_params, scores, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command, "score", lambda *_: scores)
    save_weights(tmp_path / "whole", small_params, small_config)
    command.run(
        arguments(tmp_path / "whole", "--chip", "cpu", "--fps", 1, "--multiple", 32,
                  "-o", tmp_path / "held still", "--json", tmp_path / "report.json")
    )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["kept"]["mlp"] == small_config.model.mlp and report["after_ms"] <= 1000
    said = capsys.readouterr().out
    assert "0.0% of the importance went" in said
    held, whole = (str(tmp_path / name) for name in ("held still", "whole"))
    assert shlex.split(said.split("recovers by\n")[1]) == [
        "lsd", "train", held, "--stage", "distill", "--init", held, "--out", f"{held}-recovered",
        "--set", f"distill.teacher={whole}",
    ]  # fmt: skip
    assert load_model(held, [])[1].model.layers == small_config.model.layers
    command.run(
        arguments(tmp_path / "whole", "--keep", "mlp=32,heads=1", "--two-four", "--multiple", 32,
                  "-o", tmp_path / "cut")
    )  # fmt: skip
    _, config = load_model(tmp_path / "cut", [])
    assert (config.model.mlp, config.model.heads, config.train.keep_zeros) == (32, 1, True)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ((), "nothing to prune"),
        (("--chip", "v6e"), "--chip and --fps go together"),
        (("--fps", "30", "--keep", "heads=1"), "--chip and --fps go together"),
        (("--chip", "v6e", "--fps", "0"), "--fps is more than 0"),
        (("--chip", "v6e", "--fps", "30", "--keep", "heads=1"), "not both"),
        (("--chip", "v9", "--fps", "30"), "unknown chip"),
        (("--chip", "cpu", "--fps", "30", "--two-four", "--multiple", 3), "a multiple of 4"),
        (("--keep", "mlp=700"), "no multiple of 128"),
        (("--keep", "width=3"), "write layers=N"),
        (("--two-four", "--batches", 0), "--batches 0"),
        (("--keep", "mlp=768", "--multiple", 0), "--multiple 0"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, extra, message):
    with pytest.raises(ValueError, match=message) as error:
        command.run(arguments(tmp_path / "whole", *extra, "-o", tmp_path / "cut"))
    assert "\n" not in str(error.value)


def test_where_no_result_can_go_nothing_is_scored(small_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "score", lambda *_: pytest.fail("scored"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    cut = ("--keep", "layers=1", "-o")
    with pytest.raises(ValueError, match="notes exists and is no checkpoint"):
        command.run(arguments(small_checkpoint, *cut, tmp_path / "notes"))
    with pytest.raises(ValueError, match="inside of the checkpoint"):
        command.run(arguments(small_checkpoint, *cut, f"{small_checkpoint}/cut"))
    with pytest.raises(ValueError, match="no cut of small holds 1e.09 fps on a cpu"):
        command.run(
            arguments(small_checkpoint, "--chip", "cpu", "--fps", 1e9, "-o", tmp_path / "cut")
        )
    with pytest.raises(OSError, match="mine.txt"):
        command.run(arguments(small_checkpoint, *cut, tmp_path / "notes" / "mine.txt" / "cut"))
