"""The loss, that it teaches, and that a clip is trained on as a stream will live it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import diffusion, ring
from lsd_jax.codec import PixelCodec
from lsd_jax.conditioning import taken_back
from lsd_jax.config import ModelConfig
from lsd_jax.model import Denoiser, Modulation, abstract_params, build, cast
from lsd_jax.train.denoising import denoising_loss, history, pinned_history
from lsd_jax.train.forcing import CLEAN_HISTORY, forcing_loss, noised

FRAMES = 6
PIN = jax.jit(Denoiser.pin)


def clips(batch, count, frames):
    """A batch of fewer clips of more frames."""
    longer = np.arange(frames) % batch.source.shape[1]
    return jax.tree.map(lambda x: x[:count, longer] if x.ndim == 5 else x[:count], batch)


@pytest.mark.parametrize("memory", [0, 2])
def test_training_sees_the_history_that_a_stream_holds(
    small_model, small_config, small_batch, memory
):
    """`denoise` of every frame, from the training form and from a ring filled frame by frame."""
    batch = clips(small_batch, 2, FRAMES)
    model = dataclasses.replace(small_config.model, memory=memory)
    codec, zero = PixelCodec(), jnp.zeros(1)
    clean_history = small_model.modulation(jnp.ones(1), zero, zero)
    first_pass = small_model.modulation(zero, zero, jnp.ones(1))
    source, shown = (codec.encode(x) for x in (batch.source, batch.target))
    controls = batch.controls.astype(jnp.float32) / 255
    noise = jax.random.normal(jax.random.key(1), source.shape)
    remember = jax.jit(lambda *args: small_model.remember(*args, clean_history))
    denoise = jax.jit(lambda *args: small_model.denoise(*args, first_pass))
    commit = jax.jit(partial(ring.commit, config=model))

    def rows(x):
        return x.reshape(-1, *x.shape[2:])

    kv = jax.jit(pinned_history)(small_model, batch)
    k, v = remember(rows(source), rows(shown), rows(controls), kv)
    kv = jax.jit(partial(history, frames=FRAMES, config=model))(kv, k, v)
    at_once = denoise(rows(source), rows(noise), rows(controls), kv)
    at_once = at_once.reshape(2, FRAMES, *at_once.shape[1:])

    held = ring.pin(
        ring.empty(model, 2, jnp.float32), *PIN(small_model, batch.condition), jnp.ones(2, bool)
    )
    for n in range(FRAMES):
        now = denoise(source[:, n], noise[:, n], controls[:, n], held)
        np.testing.assert_allclose(at_once[:, n], now, rtol=1e-4, atol=2e-5)
        k, v = remember(source[:, n], shown[:, n], controls[:, n], held)
        held = commit(held, k, v)
    cold = ring.clear(held, jnp.ones(2, bool))
    alone = denoise(source[:, -1], noise[:, -1], controls[:, -1], cold)
    assert np.abs(alone - now).max() > 1e-3


def test_history_by_hand():
    """Each key says which clip, frame and token wrote it."""
    frames, window, tokens = 5, 2, 2
    names = np.arange(2 * frames * tokens, dtype=np.float32).reshape(1, 2 * frames, tokens, 1, 1)
    empty = jnp.zeros((1, 2 * frames, 0, 1, 1))
    none = jnp.zeros((2 * frames, 0), jnp.int32)
    pinned = ring.KVBuffer(empty, empty, none.astype(bool), none, none)
    model = ModelConfig(window=window)
    kv = history(pinned, jnp.asarray(names), jnp.asarray(-names), frames, model)
    np.testing.assert_array_equal(kv.k, -np.asarray(kv.v))
    for row in range(2 * frames):
        for slot in range(window):
            age = int(kv.age[row, slot])
            assert age == (slot + 1 if row % frames > slot else ring.EMPTY)
            if age > 0:
                seen = kv.k[0, row, slot * tokens : (slot + 1) * tokens, 0, 0]
                np.testing.assert_array_equal(seen, names[0, row - age, :, 0, 0])


def test_the_loss_is_the_velocity_error(small_model, small_config, small_batch, monkeypatch):
    """With a model off the truth by a known amount, that notes what it is given."""
    clean = PixelCodec().encode(small_batch.target.reshape(-1, 32, 32, 3))
    rows, calls = clean.shape[0], {}
    error = jnp.linspace(-0.4, 0.5, rows)[:, None, None, None]

    def pin(self, condition):
        empty = jnp.zeros((1, 8, 0, 1, 1))
        return empty, empty, jnp.zeros((8, 0), bool)

    def remember(self, source, past, controls, kv, levels):
        calls["remember"] = (past, *levels)
        return jnp.zeros((1, rows, 1, 1, 1)), jnp.zeros((1, rows, 1, 1, 1))

    def denoise(self, source, noisy, controls, kv, levels):
        calls["denoise"] = (noisy, *levels)
        return clean + error

    for function in (pin, remember, denoise):
        monkeypatch.setattr(Denoiser, function.__name__, function)
    monkeypatch.setattr(Modulation, "__call__", lambda self, *levels: levels)
    told = jnp.arange(rows, dtype=jnp.float32).reshape(small_batch.source.shape[:2]) / rows

    def remembered(truth, source, key):
        np.testing.assert_array_equal(truth.reshape(clean.shape), clean)
        np.testing.assert_array_equal(source, PixelCodec().encode(small_batch.source))
        return truth + 1, told

    loss, metrics = denoising_loss(
        small_model, small_batch, jax.random.key(0), small_config.train, remembered
    )

    noisy, t, history_level, step = calls["denoise"]
    assert set(np.unique(step)) <= {0.0, *diffusion.STEP_SIZES}
    assert len(np.unique(t[t > 0])) > rows // 4 and 0.2 < np.mean(t == 0) < 0.8
    assert not np.any(history_level)
    weight = np.asarray(diffusion.loss_weight(t))
    squares = np.square(error[:, 0, 0, 0])
    assert float(loss) == pytest.approx(np.mean(weight * squares), rel=1e-4)
    assert float(metrics["mse"]) == pytest.approx(squares[np.asarray(t) == 0].mean(), rel=1e-4)

    noise = noisy - t[:, None, None, None] * clean  # noised to the level that is told
    deviation = np.asarray(noise.std((1, 2, 3)) / (1 - t))[np.asarray(t) < 0.9]
    np.testing.assert_allclose(deviation, 1, atol=0.1)

    past, shown_t, level, _ = calls["remember"]
    np.testing.assert_array_equal(past, clean + 1)
    np.testing.assert_array_equal(shown_t, 1)
    np.testing.assert_array_equal(level, told.ravel())


def test_forcing_noises_the_history_and_says_how_much():
    clean = jax.random.uniform(jax.random.key(1), (50, 4, 8, 8, 3), minval=-1)
    past, level = (np.asarray(x) for x in noised(clean, -clean, jax.random.key(0)))
    untouched = level == 0
    assert abs(untouched.mean() - CLEAN_HISTORY) < 0.1 and level.max() <= 1
    np.testing.assert_array_equal(past[untouched], np.asarray(clean)[untouched])
    share = level[~untouched][:, None, None, None]
    noise = (past[~untouched] - (1 - share) * np.asarray(clean)[~untouched]) / share
    deviation = noise.std((1, 2, 3))
    np.testing.assert_allclose(deviation.mean(), 1, atol=0.02)
    assert len(np.unique(level)) > 80


def test_bfloat16_loss_has_float32_gradients(small_config, small_batch):
    def objective(params):
        model = cast(build(small_config.model, params), jnp.bfloat16)
        return forcing_loss(model, model, small_batch, jax.random.key(0), small_config)[0]

    grads = jax.eval_shape(jax.grad(objective), abstract_params(small_config.model))
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_a_prompt_is_heard_until_it_is_taken_back(small_model, small_batch):
    """And so is a reference: the pinned keys of each frame, against those of either request."""
    clips, frames = small_batch.source.shape[:2]
    carried = jnp.arange(clips) % (frames + 1)
    batch = dataclasses.replace(small_batch, carried=carried)
    kv = jax.jit(pinned_history)(small_model, batch)
    said = PIN(small_model, batch.condition)
    back = PIN(small_model, taken_back(batch.condition))
    assert not np.allclose(said[0], back[0]) and np.any(said[2] != back[2])
    for clip in range(clips):
        for frame in range(frames):
            k, v, valid = back if frame >= carried[clip] else said
            row = clip * frames + frame
            np.testing.assert_array_equal(kv.pinned[row], valid[clip])
            seen = np.flatnonzero(valid[clip])
            np.testing.assert_allclose(kv.k[:, row, seen], k[:, clip, seen], atol=1e-5)
            np.testing.assert_allclose(kv.v[:, row, seen], v[:, clip, seen], atol=1e-5)


def test_old_frames_are_in_the_memory_alone(small_config):
    """Each key says which frame wrote it: two old frames, then three that follow one another; and a
    clip without old ones, whose first frame the memory has kept."""
    model = dataclasses.replace(small_config.model, memory=2, sinks=0, window=2)
    shape = (1, 10, model.tokens, 1, 1)
    numbers = jnp.broadcast_to(jnp.tile(jnp.arange(5.0), 2)[None, :, None, None, None], shape)
    none = jnp.zeros((10, 0), jnp.int32)
    pinned = ring.KVBuffer(numbers[:, :, :0], numbers[:, :, :0], none.astype(bool), none, none)
    kv = history(pinned, numbers, numbers, 5, model, old=jnp.array([2, 0]))
    per_slot = [model.memory_tokens] * 2 + [model.tokens] * 2
    starts = np.cumsum([0, *per_slot[:-1]])
    held = np.where(ring.bias(kv)[:, starts] == 0, kv.k[0, :, starts, 0, 0].T, -1)
    np.testing.assert_array_equal(
        held[:5], [[-1, -1, -1, -1], [0, -1, -1, -1], [1, 0, -1, -1], [1, 0, 2, -1], [1, 0, 3, 2]]
    )
    np.testing.assert_array_equal(
        held[5:], [[-1, -1, -1, -1], [0, -1, 0, -1], [0, -1, 1, 0], [0, -1, 2, 1], [0, -1, 3, 2]]
    )
