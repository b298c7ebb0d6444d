"""The KV buffer against the full history, written out: ages, sinks, pins, restarts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import ring
from lsd_jax.config import ModelConfig
from lsd_jax.ops.denoise_stack import add_age, attend

WINDOW, LAYERS, BATCH = 3, 2, 2
FRAMES = 3 * WINDOW + 2
commit = jax.jit(ring.commit, static_argnames="config")


def config(sinks: int) -> ModelConfig:
    return ModelConfig(
        height=16, width=16, patch=8, dim=16, heads=2, layers=LAYERS, window=WINDOW, sinks=sinks,
        prompt_tokens=3, reference_tokens=2,
    )  # fmt: skip


def normals(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.cache
def stream(sinks: int, restart_at: int = -1):
    """Every frame's keys, and the buffer before each frame; session 1 may restart midway."""
    model = config(sinks)
    shape = (LAYERS, BATCH, model.tokens, model.heads, model.head_dim)
    pinned = (LAYERS, BATCH, model.pinned, model.heads, model.head_dim)
    valid = jnp.arange(model.pinned) < jnp.array([[4], [2]])
    kv = ring.pin(
        ring.empty(model, BATCH, jnp.float32),
        normals(*pinned, seed=1), normals(*pinned, seed=2), valid, jnp.ones(BATCH, bool),
    )  # fmt: skip
    history, buffers = [], []
    for n in range(FRAMES):
        if n == restart_at:
            kv = ring.clear(kv, jnp.array([False, True]))
        buffers.append(kv)
        history.append((normals(*shape, seed=10 + n), normals(*shape, seed=100 + n)))
        kv = commit(kv, *history[-1], config=model)
    return history, [*buffers, kv]


@pytest.mark.parametrize("sinks", [0, 1, 2])
def test_attention_equals_that_over_the_full_history(sinks):
    model = config(sinks)
    history, buffers = stream(sinks)
    ages = [normals(WINDOW + 1, model.heads, model.head_dim, seed=s) for s in (3, 4)]
    q = normals(BATCH, model.tokens, model.heads, model.head_dim, seed=5)
    for n, kv in enumerate(buffers):
        ours = attend(
            q,
            add_age(kv.k[1], ages[0], kv.age, model.tokens),
            add_age(kv.v[1], ages[1], kv.age, model.tokens),
            ring.bias(kv),
        )
        seen = [(frame, 0) for frame in range(min(n, sinks))]
        seen += [(frame, n - frame) for frame in range(max(0, n - WINDOW), n)]
        for b in range(BATCH):
            pinned = np.flatnonzero(kv.pinned[b])
            keys, values = (
                np.concatenate(
                    [np.asarray(buffer)[1, b, pinned]]
                    + [np.asarray(history[f][i][1, b] + ages[i][age]) for f, age in seen]
                )
                for i, buffer in enumerate((kv.k, kv.v))
            )
            logits = np.einsum("thk,nhk->htn", q[b], keys) * model.head_dim**-0.5
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            expected = np.einsum("htn,nhk->thk", weights, values)
            np.testing.assert_allclose(ours[b], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sinks", [0, 2])
def test_ages_and_what_they_stand_for(sinks):
    model = config(sinks)
    history, buffers = stream(sinks)
    for n, kv in enumerate(buffers):
        slots = kv.k[:, :, model.pinned :].reshape(LAYERS, BATCH, model.slots, model.tokens, -1)
        for s, age in enumerate(np.asarray(kv.age[0])):
            frame = s if s < sinks else n - age
            if age == ring.EMPTY:
                assert n < WINDOW + sinks
                continue
            assert age == 0 if s < sinks else 1 <= age <= WINDOW
            expected = history[frame][0].reshape(LAYERS, BATCH, model.tokens, -1)
            np.testing.assert_array_equal(slots[:, :, s], expected)
        live = sorted(a for a in kv.age[0, sinks:].tolist() if a != ring.EMPTY)
        assert live == list(range(1, min(n, WINDOW) + 1))
        np.testing.assert_array_equal(kv.age[0], kv.age[1])


@pytest.mark.parametrize("sinks", [0, 1])
def test_a_restarted_session_is_as_a_fresh_one(sinks):
    """Its slots, sorted by age, hold what the frames since then wrote; its neighbour's go on."""
    model, at = config(sinks), 5
    history, buffers = stream(sinks, at)
    assert not np.any(buffers[at].pinned[1]) and np.all(buffers[at].age[1] == ring.EMPTY)
    assert np.all(buffers[at].age[0] != ring.EMPTY)
    _, undisturbed = stream(sinks)
    for n in range(at, FRAMES + 1):
        kv = buffers[n]
        leaves = map(jax.tree.leaves, (ring.SESSION, kv, undisturbed[n]))
        for axis, ours, theirs in zip(*leaves, strict=True):
            np.testing.assert_array_equal(*(np.moveaxis(x, axis, 0)[0] for x in (ours, theirs)))
        slots = kv.v[0, 1, model.pinned :].reshape(model.slots, model.tokens, -1)
        for s, age in enumerate(np.asarray(kv.age[1])):
            if age != ring.EMPTY:
                frame = at + s if s < sinks else n - age
                assert frame >= at
                expected = history[frame][1][0, 1].reshape(model.tokens, -1)
                np.testing.assert_array_equal(slots[s], expected)


def test_pin_writes_the_chosen_sessions_pinned_slots_only():
    _, buffers = stream(1)
    old, model = buffers[-1], config(1)
    shape = (LAYERS, BATCH, model.pinned, model.heads, model.head_dim)
    k, v = normals(*shape, seed=7), normals(*shape, seed=8)
    valid = jnp.zeros((BATCH, model.pinned), bool).at[:, 0].set(True)
    new = ring.pin(old, k, v, valid, jnp.array([True, False]))
    for ours, theirs, fresh in ((new.k, old.k, k), (new.v, old.v, v)):
        np.testing.assert_array_equal(ours[:, 0, : model.pinned], fresh[:, 0])
        np.testing.assert_array_equal(ours[:, 0, model.pinned :], theirs[:, 0, model.pinned :])
        np.testing.assert_array_equal(ours[:, 1], theirs[:, 1])
    np.testing.assert_array_equal(new.pinned, np.stack([valid[0], old.pinned[1]]))
    np.testing.assert_array_equal(new.age, old.age)


def test_bias_marks_exactly_what_is_filled():
    model = config(1)
    _, buffers = stream(1)
    bias = np.asarray(ring.bias(buffers[1]))  # one frame: the sink and a window slot
    valid = np.concatenate(
        [buffers[1].pinned, np.repeat(buffers[1].age != ring.EMPTY, model.tokens, axis=1)], axis=1
    )
    np.testing.assert_array_equal(bias == 0, valid)
    assert bias.dtype == np.float32 and np.all(bias[~valid] <= -1e8)
    assert valid[:, model.pinned :].sum() == BATCH * 2 * model.tokens
    assert not np.any(ring.bias(buffers[-1])[:, model.pinned :])


def test_a_buffer_of_another_dtype_keeps_it():
    model = config(0)
    kv = ring.empty(model, BATCH, jnp.bfloat16)
    new = normals(LAYERS, BATCH, model.tokens, model.heads, model.head_dim)
    kv = commit(kv, new, new, config=model)
    assert kv.k.dtype == kv.v.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        kv.k[:, :, model.pinned : model.pinned + model.tokens], new.astype(jnp.bfloat16)
    )


def test_memory_reaches_back_over_times_that_grow():
    """Each frame's keys are its number: what each slot holds, after any time."""
    model = dataclasses.replace(config(1), memory=3, memory_every=2)
    kv = ring.empty(model, BATCH, jnp.float32)
    shape = (LAYERS, BATCH, model.tokens, model.heads, model.head_dim)
    held, step = [], jax.jit(lambda kv, n: ring.commit(kv, *[jnp.full(shape, n)] * 2, model))
    for n in range(150):
        kv = step(kv, jnp.float32(n))
        keys = kv.k[:, :, model.pinned : -model.slots * model.tokens]
        keys = keys.reshape(LAYERS, BATCH, 3, model.memory_tokens, -1)
        np.testing.assert_array_equal(keys, jnp.broadcast_to(keys[:1, :1, :, :1, :1], keys.shape))
        np.testing.assert_array_equal(kv.k, kv.v)
        valid = ring.bias(kv)[0, model.pinned :][: 3 * model.memory_tokens] == 0
        np.testing.assert_array_equal(valid, kv.memory[0] != ring.EMPTY)
        frames = np.where(kv.memory[0] == ring.EMPTY, -1, keys[0, 0, :, 0, 0])
        held.append(frames.astype(int).tolist())
    # The first slot: every second frame. What it loses goes on only when the next one is due.
    expected = [[0, -1, -1], [2, 0, -1], [4, 0, -1], [6, 0, -1]]
    np.testing.assert_array_equal(held[:8], np.repeat(expected, 2, axis=0))
    age = np.arange(150)[:, None] - np.array(held)
    for slot, (low, high) in enumerate(((0, 1), (2, 9), (10, 41))):
        assert age[60:, slot].min() == low and age[60:, slot].max() == high
        assert model.memory_period(slot) == high - low + 1


@pytest.mark.parametrize("sessions", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_memory_hands_on_what_it_held_when_it_is_compiled(sessions, dtype):
    """XLA on a CPU read what it had just written, for one session of this many keys."""
    model = ModelConfig(
        height=128, width=64, patch=8, dim=128, layers=2, heads=2, window=2, prompt_tokens=8,
        reference_tokens=8, memory=3, memory_every=2,
    )  # fmt: skip
    shape = (model.layers, sessions, model.tokens, model.heads, model.head_dim)
    ours = exact = ring.empty(model, sessions, dtype)
    for n in range(10):
        k, v = (normals(*shape, seed=10 * n + i).astype(dtype) for i in range(2))
        ours = commit(ours, k, v, config=model)
        with jax.disable_jit():
            exact = ring.commit(exact, k, v, config=model)
        np.testing.assert_allclose(
            ours.k.astype(jnp.float32), exact.k.astype(jnp.float32), atol=1e-6
        )


def test_memory_pools_neighbours_and_is_forgotten_with_the_frames():
    model = dataclasses.replace(config(0), memory=1, height=32, width=16)  # 4 by 2 tokens
    kv = ring.empty(model, BATCH, jnp.float32)
    rows, columns = np.divmod(np.arange(model.tokens), 2)
    shape = (LAYERS, BATCH, model.tokens, model.heads, model.head_dim)
    new = jnp.broadcast_to((rows * 10.0 + columns)[None, None, :, None, None], shape)
    kv = ring.commit(kv, new, -new, model)
    kept = slice(model.pinned, model.pinned + 2)
    np.testing.assert_array_equal(kv.k[0, 0, kept, 0, 0], [5.5, 25.5])
    np.testing.assert_array_equal(kv.v[0, 0, kept, 0, 0], [-5.5, -25.5])
    assert np.all(ring.bias(kv)[:, kept] == 0)
    kv = ring.forget(kv, jnp.array([True, False]))
    np.testing.assert_array_equal(ring.bias(kv)[:, kept] == 0, [[False] * 2, [True] * 2])


def test_a_memory_needs_tokens_in_pairs():
    with pytest.raises(ValueError, match="memory pools 2x2 tokens, and 3x2"):
        dataclasses.replace(config(0), memory=1, height=24)


def test_a_frame_of_any_number_of_tokens_is_masked_whole():
    model = dataclasses.replace(config(1), height=40, width=40)  # 25 tokens
    kv = ring.empty(model, BATCH, jnp.float32)
    bias = ring.bias(kv)
    assert bias.shape == (BATCH, kv.k.shape[2]) and np.all(bias < 0)
    new = normals(LAYERS, BATCH, 25, model.heads, model.head_dim)
    assert (ring.bias(ring.commit(kv, new, new, model)) == 0).sum() == BATCH * 2 * 25
