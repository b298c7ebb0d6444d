"""Histories made wrong on purpose: how, how often, and what is told of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import sharding
from lsd_jax.train import corruptions
from lsd_jax.train.history import history_loss, imperfect
from lsd_jax.train.step import init_state

CLIPS, FRAMES, SIZE, GRID = 64, 4, 32, (4, 4)
ALL = ("swap_blocks", "shift", "freeze", "sharpen", "recolour", "add_noise", "missed")


@pytest.fixture(scope="module")
def truth():
    """Smooth pictures, and an input that differs from them everywhere."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-0.8, 0.8, (CLIPS, FRAMES, 4, 4, 3)).astype(np.float32)
    clean = jax.image.resize(jnp.asarray(coarse), (CLIPS, FRAMES, SIZE, SIZE, 3), "cubic")
    return clean, -clean - 0.3


def touched(corrupted, clean):
    """Which frames a corruption changed at all, `[B, F]`."""
    return np.asarray(jnp.any(corrupted != clean, axis=(2, 3, 4)))


def test_recolouring_is_a_straight_line_plus_a_smooth_offset_and_grows(truth, monkeypatch):
    clean = truth[0]
    monkeypatch.setattr(corruptions, "LOCAL_ERROR", 0.0)
    error = np.asarray(corruptions.recolour(clean, 1.0, jax.random.key(0)) - clean)
    for clip in range(8):
        for channel in range(3):
            lines = [
                np.polyfit(np.ravel(clean[clip, f, ..., channel]), np.ravel(e[..., channel]), 1)
                for f, e in enumerate(error[clip])
            ]
            growth = np.arange(1, FRAMES + 1)[:, None] / FRAMES
            np.testing.assert_allclose(lines, growth * lines[-1], atol=1e-4)
    monkeypatch.undo()
    monkeypatch.setattr(corruptions, "COLOUR_ERROR", 0.0)
    local = np.asarray(corruptions.recolour(clean, 1.0, jax.random.key(0)) - clean)
    assert 0.05 < local[:, -1].std() < 0.15
    steps = np.abs(np.diff(local, axis=2)).max()
    assert steps < np.abs(local).max() / 4  # no edges


def test_a_frame_is_shifted_or_held_or_stays(truth):
    clean = truth[0]
    shifted = np.asarray(corruptions.shift(clean, 0.5, jax.random.key(1)))
    changed = touched(shifted, clean)
    assert 0.3 < changed.mean() < 0.6
    for clip, frame in np.argwhere(changed)[:20]:
        original = np.asarray(clean[clip, frame])
        assert any(
            np.array_equal(np.roll(original, (y, x), (0, 1)), shifted[clip, frame])
            for y in (-1, 0, 1)
            for x in (-1, 0, 1)
        )
    held = np.asarray(corruptions.freeze(clean, 0.5, jax.random.key(1)))
    changed = touched(held, clean)
    assert not changed[:, 0].any() and 0.3 < changed[:, 1:].mean() < 0.7
    for clip, frame in np.argwhere(changed)[:20]:
        np.testing.assert_array_equal(held[clip, frame], clean[clip, frame - 1])


def test_blocks_are_exchanged_whole(truth):
    clean, source = truth
    mixed = corruptions.swap_blocks(clean, source, GRID, 0.5, jax.random.key(2))
    from_source, from_clean = (np.asarray(mixed == x).all(-1) for x in (source, clean))
    assert (from_source ^ from_clean).all()
    cells = from_source.reshape(CLIPS, FRAMES, 4, SIZE // 4, 4, SIZE // 4)
    whole = cells.all((3, 5))
    np.testing.assert_array_equal(whole, cells.any((3, 5)))
    frames = whole.any((2, 3))
    assert 0.35 < frames.mean() < 0.6
    assert abs(whole[frames].mean() - corruptions.BLOCKS) < 0.05


def test_softness_noise_and_missed_edits(truth):
    clean, source = truth

    def detail(x):
        return np.asarray(jnp.abs(jnp.diff(x, axis=3)).mean((1, 2, 3, 4)))

    ratio = detail(corruptions.sharpen(clean, 1.0, jax.random.key(3))) / detail(clean)
    assert ratio.min() < 0.999 < 1.001 < ratio.max()
    none = corruptions.sharpen(clean, 0.0, jax.random.key(3))
    np.testing.assert_array_equal(none, clean)
    noise = np.asarray(corruptions.add_noise(clean, 0.5, jax.random.key(4)) - clean)
    deviation = noise.std((2, 3, 4))
    assert 0.3 < np.mean(deviation > 0.01) < 0.6 and deviation.max() < corruptions.NOISE * 1.1
    missed = np.asarray(corruptions.missed(clean, source, 0.25, jax.random.key(5)))
    changed = touched(missed, clean)
    assert 0.15 < changed.mean() < 0.35
    np.testing.assert_array_equal(missed[changed], np.asarray(source)[changed])


@pytest.mark.parametrize("name", ALL)
def test_every_corruption_is_among_all(truth, monkeypatch, name):
    """It changes some frames where the others do nothing."""
    clean, source = truth
    for other in ALL:
        if other != name:
            monkeypatch.setattr(corruptions, other, lambda x, *_: x)
    changed = touched(corruptions.corrupt(clean, source, GRID, jax.random.key(7)), clean)
    assert 0.01 < changed.mean() < 0.9


@pytest.mark.parametrize("told", [False, True])
def test_a_share_of_the_clips_is_wrong_and_the_level_says_how_much(truth, small_config, told):
    clean, source = truth
    settings = dataclasses.replace(small_config.history, corrupted=0.4, level_input=told)
    config = dataclasses.replace(small_config, history=settings)
    past, level = imperfect(clean, source, jax.random.key(6), None, config)
    wrong = touched(past, clean)
    assert 0.2 < wrong.any(1).mean() < 0.6 and 0.5 < wrong[wrong.any(1)].mean()
    rms = np.sqrt(np.square(np.asarray(past - clean)).mean((2, 3, 4)))
    np.testing.assert_allclose(level, np.minimum(rms, 1) if told else 0 * rms, atol=1e-6)


@pytest.mark.slow  # test_rollouts teaches the stage with all that it may have each time
def test_corruptions_alone_teach(small_config, small_params, small_batch, shared_step):
    settings = dataclasses.replace(small_config.train, learning_rate=5e-3, steps=12)
    history = dataclasses.replace(small_config.history, corrupted=1.0, level_input=True)
    config = dataclasses.replace(small_config, train=settings, history=history)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    state = init_state(config, mesh, small_params)
    run = shared_step(config, history_loss, mesh)
    batch = jax.device_put(small_batch, jax.NamedSharding(mesh, sharding.BATCH))
    losses = []
    for _ in range(12):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
