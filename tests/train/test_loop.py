"""The loop: exact resume, signals, steps that fail, and what it leaves behind."""

import dataclasses
import itertools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from lsd_jax import sharding
from lsd_jax.checkpoint import CheckpointError, Checkpoints, load_weights, save_weights
from lsd_jax.model import abstract_params
from lsd_jax.pretrained import load_model
from lsd_jax.quantize import quantize
from lsd_jax.train import loop
from lsd_jax.train.step import abstract_state, init_state

STEPS = 6


def toy_loss(model, teacher, batch, key, config):
    """Depends on every weight, the batch and the key; not finite where a batch is all black."""
    goal = jnp.mean(batch.source.astype(jnp.float32)) / 255 + 0.1 * jax.random.normal(key)
    parts = [jnp.mean(jnp.square(leaf - goal)) for leaf in jax.tree.leaves(model)]
    poison = jnp.where(jnp.any(batch.source > 0), 0.0, jnp.nan)
    loss = sum(parts) / len(parts) + poison
    return loss, {"loss": loss}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def start(small_config, small_params, tmp_path_factory):
    """Weights to start from."""
    path = tmp_path_factory.mktemp("start") / "weights"
    save_weights(path, small_params, small_config)
    return path


@pytest.fixture(scope="module")
def config(small_config):
    """One for all tests, so that one step is compiled for all of them."""
    return dataclasses.replace(
        small_config, train=dataclasses.replace(small_config.train, steps=STEPS, sample_every=STEPS)
    )


@pytest.fixture
def train(config, small_batch, shared_step, mesh, start, monkeypatch):
    """The loop, with a step that compiles once for all tests."""
    monkeypatch.setattr(loop, "make_step", shared_step)

    def run(directory, batches=None, deadline_s=None, make=None, stage="", config=config):
        return loop.train(
            config, toy_loss, batches or batch_of(small_batch), directory, mesh, start, deadline_s,
            make, stage,
        )  # fmt: skip

    return run


def batch_of(batch):
    """A batch that depends on the step's number."""
    return lambda step: dataclasses.replace(batch, source=batch.source ^ np.uint8(step))


def black(batch):
    return dataclasses.replace(batch, source=jnp.zeros_like(batch.source))


def lines(directory):
    with open(directory / "metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def weights(directory, config):
    return load_weights(directory / "weights", abstract_params(config.model), config.model)[0]


def test_resume_is_exact(train, config, small_batch, tmp_path, mesh):
    """Losses, weights and the optimiser's state, bit for bit, and the data's position."""
    whole, parts, asked = tmp_path / "whole", tmp_path / "parts", []

    def stop_after_three(step):
        if step == 3:  # asked for while step 2 runs
            os.kill(os.getpid(), signal.SIGINT)
        return batch_of(small_batch)(step)

    def noted(step):
        asked.append(step)
        return batch_of(small_batch)(step)

    assert train(whole) == STEPS
    done = train(parts, stop_after_three)
    assert 0 < done < STEPS
    assert train(parts, noted) == STEPS and asked[0] == done
    ours, theirs = (
        [(x["step"], x["loss"], x["grad_norm"]) for x in lines(d)] for d in (whole, parts)
    )
    assert ours == theirs and [step for step, *_ in ours] == list(range(1, STEPS + 1))
    assert len({loss for _, loss, _ in ours}) == STEPS
    timed = [x["step"] for x in lines(whole) if "clips_per_s" in x]
    assert timed == list(range(2, STEPS + 1))  # the first step of a run compiles
    states = [
        Checkpoints(d / "checkpoints").restore(abstract_state(config, mesh)) for d in (whole, parts)
    ]
    assert [step for _, step, _ in states] == [STEPS, STEPS]
    jax.tree.map(np.testing.assert_array_equal, states[0][0], states[1][0])
    final = [weights(d, config) for d in (whole, parts)]
    jax.tree.map(np.testing.assert_array_equal, *final)
    jax.tree.map(np.testing.assert_array_equal, final[0], states[0][0].ema)


@pytest.mark.parametrize(
    "tail", ['{"step": 2, "loss": 0.5}\n{"step": 3, "lo', '{"st\n{"step": 2}\n']
)
def test_the_log_has_each_step_once(train, tmp_path, tail):
    """Also where a run was killed, so that steps behind its last checkpoint are done again, while
    it wrote a line."""
    assert train(tmp_path, deadline_s=0.0) == 1
    first = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert train(tmp_path) == STEPS
    found = lines(tmp_path)
    assert [x["step"] for x in found] == list(range(1, STEPS + 1)) and found[:1] == first


EARLY, LATE = ([f'{{"step": {n}, "loss": 0.5}}' for n in some] for some in ((1, 2, 3), (4, 5.0)))
TORN = ["", '{"st', "\0\0"]
FOREIGN = ["5", "[]", '"step"', '{"step": null}', '{"step": "9"}', '{"a": 1}']


@given(
    st.lists(st.sampled_from([*EARLY, *LATE, *TORN, *FOREIGN]), max_size=8),
    st.sampled_from(["", '{"step": 1, "lo']),
)
def test_a_log_is_cut_where_the_steps_to_come_begin(tmp_path_factory, log, end):
    """Whatever else stands in it: but for what is torn right in front of these, or at the end."""
    path = tmp_path_factory.getbasetemp() / "some.jsonl"
    path.write_text("".join(f"{line}\n" for line in log) + end)
    kept = path.read_text()[: loop._length(path, 3)]
    front = list(itertools.takewhile(lambda line: line not in LATE, log))
    lines = kept.split("\n")[:-1]
    assert kept == "".join(f"{line}\n" for line in lines)
    assert lines == front[: len(lines)] and set(front[len(lines) :]) <= set(TORN)


def test_a_finished_run_is_left_as_it_is(train, config, tmp_path, capsys):
    """Also by a request for fewer steps, of another configuration."""

    def files():
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    assert train(tmp_path) == STEPS
    before = files()
    fewer = dataclasses.replace(config.train, steps=2, learning_rate=0.5)
    for asked in (config, dataclasses.replace(config, name="other", train=fewer)):
        capsys.readouterr()
        assert train(tmp_path, config=asked) == STEPS
        assert "nothing is left to do" in capsys.readouterr().out
        assert files() == before


def test_a_finished_run_without_its_weights_is_given_them(train, config, tmp_path):
    assert train(tmp_path) == STEPS
    before = weights(tmp_path, config)
    shutil.rmtree(tmp_path / "weights")
    for _ in range(2):
        assert train(tmp_path) == STEPS
        jax.tree.map(np.testing.assert_array_equal, weights(tmp_path, config), before)
        older = jax.tree.map(lambda x: x + 1, before)
        save_weights(tmp_path / "weights", older, config)  # of an earlier checkpoint


def test_another_stage_does_not_go_on_from_it(train, tmp_path):
    assert train(tmp_path / "old", deadline_s=0.0) == 1  # from before stages were kept
    assert train(tmp_path / "old", deadline_s=0.0, stage="history") == 2
    assert train(tmp_path / "run", deadline_s=0.0, stage="forcing") == 1
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for run in ("old", "run"):
        with pytest.raises(ValueError, match="of the stage .*, not distill; give another --out"):
            train(tmp_path / run, stage="distill")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert train(tmp_path / "run", stage="forcing") == STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_with_everything_saved(train, config, small_batch, tmp_path, mesh, number):
    handler = signal.getsignal(number)

    def batches(step):
        if step == 2:
            os.kill(os.getpid(), number)
        return batch_of(small_batch)(step)

    done = train(tmp_path, batches)
    assert 1 <= done <= 4
    _, step, _ = Checkpoints(tmp_path / "checkpoints").restore(abstract_state(config, mesh))
    assert step == done == lines(tmp_path)[-1]["step"]
    assert jax.tree.leaves(weights(tmp_path, config))
    assert signal.getsignal(number) == handler


def test_the_deadline_stops_with_everything_saved(train, tmp_path):
    assert train(tmp_path, deadline_s=0.0) == 1
    assert Checkpoints(tmp_path / "checkpoints").steps() == [1]
    assert (tmp_path / "weights" / "digests.json").exists()


def test_a_step_that_is_not_finite_changes_nothing(
    config, small_params, small_batch, shared_step, mesh
):
    state = init_state(config, mesh, small_params)
    run = shared_step(config, toy_loss, mesh)
    place = jax.NamedSharding(mesh, sharding.BATCH)
    for _ in range(2):
        state, _ = run(state, jax.device_put(small_batch, place))
    before = jax.tree.map(np.array, state)
    for n in (1, 2):
        state, metrics = run(state, jax.device_put(black(small_batch), place))
        assert int(metrics["skipped"]) == n and np.isnan(metrics["loss"])
    undone = dataclasses.replace(state, step=state.step - 2, skipped=before.skipped)
    jax.tree.map(np.testing.assert_array_equal, undone, before)
    state, metrics = run(state, jax.device_put(small_batch, place))
    assert int(metrics["skipped"]) == 0 and int(state.step) == 5
    assert np.any(np.asarray(state.params["embed"]) != before.params["embed"])


def test_training_gives_up_where_nothing_is_finite(train, small_batch, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "PATIENCE", 3)

    def batches(step):
        return black(small_batch) if step >= 1 else small_batch

    with pytest.raises(ValueError, match="no finite gradient for 3 steps.*lower"):
        train(tmp_path, batches)
    assert lines(tmp_path)[-1]["step"] == 1 + 3
    assert Checkpoints(tmp_path / "checkpoints").steps()


def test_another_architecture_is_refused(train, small_config, mesh, start, tmp_path):
    other = dataclasses.replace(
        small_config, model=dataclasses.replace(small_config.model, mlp=128)
    )
    with pytest.raises(CheckpointError, match="mlp: 128 != 64"):  # to start from
        loop.train(other, toy_loss, lambda step: None, tmp_path, mesh, start)
    train(tmp_path, deadline_s=0.0)
    with pytest.raises(ValueError, match="mlp: 128 != 64; set these back"):  # to go on from
        loop.train(other, toy_loss, lambda step: None, tmp_path, mesh)


def test_whatever_loads_for_a_stream_can_be_started_from(
    config, small_config, small_params, mesh, tmp_path
):
    """Eight bits, and a step of a run, whose running mean is taken: see `load_model`."""
    save_weights(tmp_path / "int8", quantize(small_params, "int8"), small_config)
    begun = init_state(config, mesh, small_params)
    begun = dataclasses.replace(begun, ema=jax.tree.map(lambda x: x + 1, begun.ema))
    with Checkpoints(tmp_path / "run") as saved:
        saved.save(7, begun, small_config)
    nothing = Checkpoints(tmp_path / "nothing")
    for path in (tmp_path / "int8", tmp_path / "run" / "7"):
        state = loop.first_state(config, nothing, mesh, path)
        model, _ = load_model(path, [])
        loaded = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        jax.tree.map(np.testing.assert_array_equal, state.params, loaded)
        assert int(state.step) == 0
    with pytest.raises(CheckpointError, match="no whole checkpoint; give .*run/7"):
        loop.first_state(config, nothing, mesh, tmp_path / "run")


def test_one_run_at_a_time_writes_to_a_directory(train, small_batch, tmp_path):
    refused = []

    def batches(step):
        if step == 2:
            with pytest.raises(ValueError, match="another run is writing to .*another --out"):
                train(tmp_path)
            refused.append(step)
        return batch_of(small_batch)(step)

    assert train(tmp_path, batches) == STEPS and refused
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, STEPS + 1))
    assert train(tmp_path) == STEPS  # the lock went with the run


def test_a_checkpoint_is_not_trained_into(train, start, tmp_path):
    place = shutil.copytree(start, tmp_path / "tiny")
    with pytest.raises(CheckpointError, match="inside of the checkpoint .*tiny; give another"):
        train(place)
    load_weights(place)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / "lifted.txt").touch()
    with pytest.raises(CheckpointError, match="weights exists and is no checkpoint"):
        train(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["weights"]


def test_what_cannot_be_started_from_leaves_nothing(config, mesh, tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        loop.train(config, toy_loss, lambda step: None, tmp_path / "run", mesh, tmp_path / "none")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_result_is_saved_waits(train, config, tmp_path, monkeypatch, number):
    def interrupted(*given):
        os.kill(os.getpid(), number)
        save_weights(*given)

    monkeypatch.setattr(loop, "save_weights", interrupted)
    assert train(tmp_path) == STEPS
    assert jax.tree.leaves(weights(tmp_path, config))


def test_going_on_is_said(train, start, tmp_path, capsys):
    train(tmp_path, deadline_s=0.0)
    assert "going on" not in capsys.readouterr().out
    train(tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "going on from step 1 of" in said and "not from" in said


@pytest.mark.parametrize("other", [0, 1])
def test_hosts_with_different_batches_are_told(small_batch, monkeypatch, other):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    gather = lambda mine: np.stack([mine, mine + np.uint32(other)])  # noqa: E731
    monkeypatch.setattr(loop.multihost_utils, "process_allgather", gather)
    if not other:
        return loop._check_alike(small_batch)
    with pytest.raises(ValueError, match="give all the same settings and videos"):
        loop._check_alike(small_batch)


def test_samples_are_drawn(train, config, tmp_path):
    """Input, output and truth, one above the other, for all eight clips."""
    from PIL import Image

    train(tmp_path)
    with Image.open(tmp_path / "samples" / f"{STEPS:07d}.png") as picture:
        assert picture.size == (8 * config.model.width, 3 * config.model.height)


def test_a_stage_makes_its_batches_of_the_mean_of_that_step(
    train, small_config, small_batch, small_params, tmp_path
):
    """Each batch passes through it, with its step and weights that move; what it returns is what
    is trained on."""
    seen = []

    def make(step, weights, batch):
        seen.append((step, np.asarray(weights["embed"])))
        return dataclasses.replace(batch, source=batch_of(small_batch)(step + 1).source)

    assert train(tmp_path / "shown", make=make) == STEPS
    assert [step for step, _ in seen] == list(range(STEPS))
    np.testing.assert_array_equal(seen[0][1], small_params["embed"])
    assert all(np.any(a[1] != b[1]) for a, b in zip(seen[2:], seen[3:], strict=False))
    ahead = train(tmp_path / "ahead", batches=lambda step: batch_of(small_batch)(step + 1))
    assert ahead == STEPS
    shown, plain = ([x["loss"] for x in lines(tmp_path / d)] for d in ("shown", "ahead"))
    assert shown == plain
