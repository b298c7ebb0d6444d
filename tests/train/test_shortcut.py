"""One large step lands where two of the teacher's land, and what is asked of which frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import diffusion, sharding
from lsd_jax.checkpoint import save_weights
from lsd_jax.train import distill, shortcut, stages
from lsd_jax.train.denoising import Seen
from lsd_jax.train.shortcut import shortcut_loss
from lsd_jax.train.step import init_state
from lsd_jax.types import KVBuffer
from tests.marks import slow

ROWS = 24
MESH = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def seen(small_config):
    """Frames that differ, and nothing remembered."""
    keys = jax.random.split(jax.random.key(0), 2)
    clean = jax.random.uniform(keys[0], (ROWS, 8, 8, 3), minval=-0.3, maxval=0.3)
    return Seen(-clean, clean, jnp.zeros((ROWS, 8, 8, 1)), clean, jnp.zeros(ROWS))


@pytest.fixture
def asked(small_model, small_config, small_batch, monkeypatch):
    """`two_in_one` with a teacher that curves: what it sees depends on where and when it looks.

    Its prompt decides too: the buffer of the empty prompt holds zeros.
    """
    questions = []

    def remember(model, batch, seen):
        told = jnp.any(batch.condition.prompt > 0)
        k = jnp.full((1, ROWS, 1, 1, 1), told.astype(jnp.float32))
        none = jnp.zeros((ROWS, 0), jnp.int32)
        return KVBuffer(k, k, jnp.ones((ROWS, 1), bool), none, none)

    def answer(model, part, kv, question):
        questions.append(question)
        wave = 0.1 * jnp.sin(9 * question.t)[:, None, None, None] + 0.1 * question.noisy
        return part.clean + wave + 0.05 * kv.k[0]

    monkeypatch.setattr(shortcut, "remember", remember)
    monkeypatch.setattr(shortcut, "answer", answer)

    def ask(seen, teacher="", **settings):
        config = dataclasses.replace(
            small_config,
            shortcut=dataclasses.replace(small_config.shortcut, **settings),
            distill=dataclasses.replace(small_config.distill, teacher=teacher),
        )
        key = jax.random.key(1)
        found = shortcut.two_in_one(seen, key, config.train, small_model, small_batch, config)
        return found, questions

    return ask


def test_one_step_lands_where_two_of_the_teacher_land(seen, asked):
    found, (first, second) = asked(seen, share=0.5)
    large = np.asarray(found.step) > 0
    assert large.sum() == ROWS / 2
    t, step = found.t[large], found.step[large]
    assert set(np.unique(step)) == set(diffusion.STEP_SIZES)
    np.testing.assert_array_equal(np.mod(t, step), 0)
    assert np.all(t + step <= 1)

    # In the order of the teacher's rows, which are the same ones shuffled.
    order = [int(np.argmin(np.abs(found.noisy - x).sum((1, 2, 3)))) for x in first.noisy]
    t, step, noisy, goal = (
        x[np.array(order)] for x in (found.t, found.step, found.noisy, found.answer)
    )
    clean = seen.clean[np.array(order)]
    x = noisy
    for question in (first, second):
        np.testing.assert_allclose(question.noisy, x, atol=1e-5)
        wave = 0.1 * np.sin(9 * np.asarray(question.t))[:, None, None, None] + 0.1 * x
        x = diffusion.advance(x, clean + wave + 0.05, question.t, step / 2)
        quarter = np.asarray(step) == 0.25
        np.testing.assert_array_equal(question.step, np.where(quarter, 0, step / 2))
    np.testing.assert_allclose(second.t, t + step / 2)
    inside = np.abs(goal).max(axis=(1, 2, 3)) < 1  # the goal is a picture: it is clipped
    assert inside.sum() > 2
    landed = diffusion.advance(noisy, goal, t, step)
    np.testing.assert_allclose(landed[inside], x[inside], atol=1e-5)


def test_the_other_frames_learn_the_flow(seen, asked):
    found, questions = asked(seen, share=0.25)
    flow = np.asarray(found.step) == 0
    assert flow.sum() == ROWS * 3 // 4 and len(questions) == 2
    np.testing.assert_array_equal(found.answer[flow], seen.clean[flow])
    alone, questions = asked(seen, share=0.0)
    assert len(questions) == 2 and not np.any(alone.step)
    np.testing.assert_array_equal(alone.answer, seen.clean)


@pytest.mark.parametrize("teacher", ["", "a checkpoint"])
def test_every_size_of_step_is_guided_once(seen, asked, teacher, monkeypatch):
    """A model that has learned all that it is taught, by itself or by one that learns nothing: a
    table of what it says, told the prompt, by the size of its step. Untold it says 0.01."""
    told, untold, guidance = 0.05, 0.01, 3.0
    learned = dict.fromkeys((0.0, *diffusion.STEP_SIZES), told)
    table = dict(learned) if teacher else learned  # of who teaches

    def answer(model, part, kv, question):
        says = sum(jnp.where(question.step == size, x, 0.0) for size, x in table.items())
        says = jnp.where(kv.k[0] > 0, jnp.asarray(says)[:, None, None, None], untold)
        return jnp.broadcast_to(says, question.noisy.shape)

    monkeypatch.setattr(shortcut, "answer", answer)
    seen = dataclasses.replace(seen, clean=jnp.full_like(seen.clean, told))
    for _ in diffusion.STEP_SIZES:
        found, _ = asked(seen, teacher, share=1.0, guidance=guidance)
        for size in diffusion.STEP_SIZES:
            learned[size] = float(found.answer[np.asarray(found.step) == size].mean())
    for size in diffusion.STEP_SIZES:
        assert (learned[size] - untold) / (told - untold) == pytest.approx(guidance, rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_truth_and_teacher_have_their_shares_of_the_answer(
    seen, small_config, small_model, small_batch, monkeypatch, weight
):
    monkeypatch.setattr(distill, "remember", lambda *_: None)
    monkeypatch.setattr(distill, "answer", lambda *_: jnp.full_like(seen.clean, 0.5))
    key, settings = jax.random.key(0), small_config.train
    goal = distill.taught(seen, key, settings, small_model, small_batch, weight).answer
    np.testing.assert_allclose(goal, seen.clean + weight * (0.5 - seen.clean), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "with_teacher"), [("shortcut", False), slow("shortcut", True), ("distill", True)]
)
def test_a_model_is_distilled(
    name, with_teacher, small_config, small_params, small_batch, shared_step, tmp_path
):
    """From its own running mean, and from a checkpoint of another shape."""
    train = dataclasses.replace(small_config.train, learning_rate=5e-3, steps=8)
    config = dataclasses.replace(small_config, train=train)
    student = config
    if with_teacher:
        save_weights(tmp_path / "teacher", small_params, config)
        smaller = dataclasses.replace(config.model, layers=1, mlp=32)
        chosen = dataclasses.replace(config.distill, teacher=str(tmp_path / "teacher"))
        student = dataclasses.replace(config, model=smaller, distill=chosen)
    stage = stages.prepare(name, student, None, MESH)
    state = init_state(student, MESH, None if with_teacher else small_params)
    run = shared_step(student, stage.loss, MESH)
    batch = jax.device_put(small_batch, jax.NamedSharding(MESH, sharding.BATCH))
    losses = []
    for _ in range(8):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0] and int(state.skipped) == 0


def test_a_teacher_of_other_pictures_is_refused(small_config, small_params, tmp_path):
    save_weights(tmp_path / "teacher", small_params, small_config)
    wide = dataclasses.replace(small_config.model, width=64)
    chosen = dataclasses.replace(small_config.distill, teacher=str(tmp_path / "teacher"))
    config = dataclasses.replace(small_config, model=wide, distill=chosen)
    with pytest.raises(ValueError, match="cannot teach this model: its width is 32, not 64"):
        stages.by_teacher(shortcut_loss, config, MESH)
    with pytest.raises(ValueError, match="nowhere"):
        lost = dataclasses.replace(chosen, teacher="nowhere")
        stages.by_teacher(shortcut_loss, dataclasses.replace(config, distill=lost), MESH)
    with pytest.raises(ValueError, match="one device"):
        stages.by_teacher(shortcut_loss, config, sharding.make_mesh())
    eager = dataclasses.replace(small_config.shortcut, guidance=2.0)
    train = dataclasses.replace(small_config.train, prompt_drop=0.0)
    unready = dataclasses.replace(small_config, shortcut=eager, train=train)
    with pytest.raises(ValueError, match="train.prompt_drop"):
        stages.prepare("shortcut", unready, None, MESH)


def test_old_frames_need_a_memory(small_config):
    train = dataclasses.replace(small_config.train, frames=3, old_frames=1)
    config = dataclasses.replace(small_config, train=train)
    with pytest.raises(ValueError, match="train.old_frames=1 need as many slots"):
        stages.prepare("history", config, None, MESH)
    spoken = dataclasses.replace(small_config.model, external_text_dim=8)
    train = dataclasses.replace(small_config.train, carry_on=0.5)
    config = dataclasses.replace(small_config, model=spoken, train=train)
    with pytest.raises(ValueError, match="set train.carry_on=0"):
        stages.prepare("history", config, None, MESH)


def test_the_command_line_knows_every_stage():
    from lsd_jax.cli.train import STAGES

    assert STAGES == stages.NAMES


def test_what_would_be_trained_to_no_end_is_refused(small_config):
    for change, match in (
        (dict(away=0.5), "set train.old_frames and train.carry_on too"),
        (dict(scene_edits=("remove",), scene_fraction=0.0), "set train.scene_fraction"),
    ):
        train = dataclasses.replace(small_config.train, **change)
        with pytest.raises(ValueError, match=match):
            stages.prepare("history", dataclasses.replace(small_config, train=train), None, MESH)
