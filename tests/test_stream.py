"""The promises of a stream: one trace, donated state, no clock, no leaks between sessions."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import stream
from lsd_jax.config import StreamConfig
from lsd_jax.data import prompts
from lsd_jax.types import Conditioning

TEXTS = ("make it night", "snow", "an oil painting of the sea")


@pytest.fixture(scope="module")
def live(small_config, small_model):
    """Two passes a frame, compiled for one session and for three."""
    config = dataclasses.replace(small_config, stream=StreamConfig(2, history_level=0.2))
    model = stream.prepare(small_model, config)
    compiled = {b: stream.compile_stream(model, config, b) for b in (1, 3)}
    return SimpleNamespace(config=config, model=compiled[1].model, compiled=compiled)


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 32, 32, 3), np.uint8)


def everywhere(b):
    return np.full((b, 32, 32, 1), 255, np.uint8)


def ask(*texts, reference=None, has_reference=False):
    b = len(texts)
    return Conditioning(
        np.stack([prompts.encode(text, 128) for text in texts]),
        pictures(b) if reference is None else reference,
        np.full(b, has_reference),
    )


def begin(live, texts=TEXTS[:1], seeds=(7,), **asked):
    state = stream.init_state(live.config, jnp.array(seeds))
    change = live.compiled[len(texts)].condition
    return change(live.model, state, ask(*texts, **asked), np.ones(len(texts), bool))


def play(live, frames, state=None, controls=None, model=None):
    """The outputs for `frames [n, b, ...]`, and the last state."""
    b = frames.shape[1]
    state = begin(live) if state is None else state
    outs = []
    for frame in frames:
        state, out = live.compiled[b].step(
            live.model if model is None else model,
            state, frame, everywhere(b) if controls is None else controls,
        )  # fmt: skip
        outs.append(np.asarray(out))
    return np.stack(outs), state


@pytest.mark.parametrize(("eight", "most"), [("int8", 24), ("float8_e4m3", 64)])
def test_blocks_in_eight_bits_stream_nearly_the_same(eight, most, small_config, small_model):
    frames, outs = pictures(6, 1), []
    for weights in ("", eight):
        config = dataclasses.replace(small_config, stream=StreamConfig(weight_dtype=weights))
        model = stream.prepare(small_model, config)
        leaves = zip(*map(jax.tree.leaves, (model, stream.abstract_prepared(config))), strict=True)
        assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in leaves)
        compiled = stream.compile_stream(model, config)
        live = SimpleNamespace(config=config, model=compiled.model, compiled={1: compiled})
        outs.append(play(live, frames)[0].astype(int))
    difference = np.abs(outs[0] - outs[1])
    assert 0 < difference.mean() < most / 24 and difference.max() < most


def size(state):
    return sum(x.nbytes for x in jax.tree.leaves(state))


def test_one_trace_for_a_hundred_frames(live, small_config, small_model):
    """One pass a frame, as plain `jax.jit` sees it, prompt changes and restarts included."""
    model = stream.prepare(small_model, small_config)
    step = jax.jit(stream.frame_step, donate_argnums=1)
    state = begin(live)
    expected = size(state)
    for n in range(100):
        if n == 30:
            state = live.compiled[1].condition(live.model, state, ask("fog"), np.ones(1, bool))
        if n == 60:
            state = stream.restart(state, jnp.ones(1, bool), jnp.array([3]))
        state, out = step(model, state, pictures(1, seed=n), everywhere(1))
        assert size(state) == expected
    assert step._cache_size() == 1
    assert out.dtype == jnp.uint8 and out.shape == (1, 32, 32, 3)
    assert int(state.frame[0]) == 40 and np.asarray(state.kv.age).max() == 3


def test_the_executable_refuses_other_shapes(live):
    with pytest.raises(TypeError, match="compiled"):
        live.compiled[1].step(live.model, begin(live), pictures(1)[:, :16], everywhere(1))
    with pytest.raises(TypeError, match="compiled"):
        live.compiled[3].step(live.model, begin(live), pictures(1), everywhere(1))


@pytest.mark.parametrize("b", [1, 3])
def test_the_state_is_donated(live, b):
    compiled, state = live.compiled[b], begin(live, TEXTS[:b], range(b))
    for executable in (compiled.step, compiled.condition):
        assert executable.memory_analysis().alias_size_in_bytes >= size(state)
    for call in (
        lambda s: compiled.step(live.model, s, pictures(b), everywhere(b))[0],
        lambda s: compiled.condition(live.model, s, ask(*TEXTS[:b]), np.ones(b, bool)),
    ):
        before = jax.tree.leaves(state)
        state = call(state)
        assert all(x.is_deleted() for x in before)


def test_outputs_do_not_depend_on_the_frame_number(live):
    frames = pictures(5, 1)
    ours, _ = play(live, frames)
    state = begin(live)
    theirs, state = play(live, frames, state.replace(frame=state.frame + 10**7))
    np.testing.assert_array_equal(ours, theirs)
    assert int(state.frame[0]) == 10**7 + 5


def test_a_session_in_a_batch_equals_the_session_alone(live):
    """Bit for bit, state included: own prompts, seeds and ages, one restarted midway."""
    frames = pictures(9, 3)
    masks = np.where(np.random.default_rng(1).random((3, 32, 32, 1)) < 0.7, 255, 0)
    masks, references = masks.astype(np.uint8), pictures(3, seed=2)

    def run(rows):
        rows, b = np.array(rows), len(rows)
        asked = jax.tree.map(
            lambda x: x[rows],
            dataclasses.replace(
                ask(*TEXTS, reference=references), has_reference=np.array([True, False, True])
            ),
        )
        state = stream.init_state(live.config, jnp.array(np.array([5, 6, 7])[rows]))
        state = live.compiled[b].condition(live.model, state, asked, np.ones(b, bool))
        first, state = play(live, frames[:5][:, rows], state, masks[rows])
        restarted = rows == 1
        state = stream.restart(state, jnp.asarray(restarted), jnp.full(b, 9))
        state = live.compiled[b].condition(live.model, state, asked, restarted)
        second, state = play(live, frames[5:][:, rows], state, masks[rows])
        return np.concatenate([first, second]), state

    together, states = run([0, 1, 2])
    for row in range(3):
        alone, state = run([row])
        np.testing.assert_array_equal(alone[:, 0], together[:, row])
        np.testing.assert_array_equal(state.key[0], states.key[row])
        np.testing.assert_array_equal(state.kv.age[0], states.kv.age[row])
        for ours, theirs in ((state.kv.k, states.kv.k), (state.kv.v, states.kv.v)):
            np.testing.assert_array_equal(ours[:, 0], np.asarray(theirs)[:, row])


def test_a_prompt_switch_changes_only_the_pinned_slots(live):
    _, state = play(live, pictures(3, 3), begin(live, TEXTS, (1, 2, 3)))
    old = jax.tree.map(np.array, state)
    chosen = np.array([False, True, False])
    new = live.compiled[3].condition(live.model, state, ask("fog", "fog", "fog"), chosen)
    pinned = live.config.model.pinned
    assert np.any(new.kv.k[:, 1, :pinned] != old.kv.k[:, 1, :pinned])
    restored = dataclasses.replace(
        new.kv,
        k=new.kv.k.at[:, 1, :pinned].set(old.kv.k[:, 1, :pinned]),
        v=new.kv.v.at[:, 1, :pinned].set(old.kv.v[:, 1, :pinned]),
    )
    jax.tree.map(np.testing.assert_array_equal, new.replace(kv=restored), old)


def test_the_prompt_matters(live):
    frames = pictures(1, 1)
    night, snow = (play(live, frames, begin(live, (text,)))[0] for text in TEXTS[:2])
    assert np.any(night != snow)


@pytest.mark.parametrize("k", [0, 3])
def test_the_future_never_changes_the_past(live, k):
    frames = pictures(6, 1)
    other = frames.copy()
    other[k + 1 :] = pictures(5 - k, 1, seed=9)
    ours, theirs = play(live, frames)[0], play(live, other)[0]
    np.testing.assert_array_equal(ours[: k + 1], theirs[: k + 1])
    assert np.any(ours[k + 1] != theirs[k + 1])


def test_seeds(live):
    frames = pictures(2, 1)
    one, again, other = (play(live, frames, begin(live, seeds=(s,)))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.any(one[0] != other[0])


def test_outside_the_mask_the_input_is_untouched(live):
    frames, mask = pictures(2, 1), np.zeros((1, 32, 32, 1), np.uint8)
    mask[:, 8:20, 4:24] = 255
    mask[:, 0, 0] = 127  # not half
    outs, _ = play(live, frames, controls=mask)
    outside = mask[0, ..., 0] < 128
    np.testing.assert_array_equal(outs[:, 0, outside], frames[:, 0, outside])
    assert np.mean(outs[:, 0, ~outside] != frames[:, 0, ~outside]) > 0.5


def test_a_reference_matters_only_where_there_is_one(live):
    frames = pictures(1, 1)
    for there in (False, True):
        outs = [
            play(live, frames, begin(live, reference=pictures(1, seed=s), has_reference=there))[0]
            for s in (1, 2)
        ]
        assert np.any(outs[0] != outs[1]) == there


def test_history_level_changes_how_history_is_read(live, small_model):
    """Another model for the same executable, equal on the first frame."""
    config = dataclasses.replace(live.config, stream=StreamConfig(2, history_level=0.9))
    other = dataclasses.replace(live.model, commit=stream.prepare(small_model, config).commit)
    frames = pictures(2, 1)
    ours, theirs = play(live, frames)[0], play(live, frames, model=other)[0]
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.any(ours[1] != theirs[1])


def test_four_passes(live, small_model):
    model = stream.prepare(
        small_model, dataclasses.replace(live.config, stream=StreamConfig(4, history_level=0.2))
    )
    assert (live.model.passes.shape[0], model.passes.shape[0]) == (2, 4)
    step = jax.jit(stream.frame_step, donate_argnums=1)
    _, four = step(model, begin(live), pictures(1, seed=3), everywhere(1))
    two, _ = play(live, pictures(1, 1, seed=3))
    assert np.any(np.asarray(four) != two[0])


def test_three_passes_in_bfloat16(live, small_model):
    config = dataclasses.replace(
        live.config,
        stream=StreamConfig(passes=3, compute_dtype="bfloat16"),
    )
    model = stream.prepare(small_model, config)
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
    compiled = stream.compile_stream(model, config)
    half = SimpleNamespace(config=config, model=compiled.model, compiled={1: compiled})
    outs, state = play(half, pictures(3, 1))
    assert outs.std() > 1 and state.kv.k.dtype == jnp.bfloat16


def test_a_session_that_forgets_goes_on_as_a_cold_one(live):
    frames = pictures(6, 1, seed=5)
    _, state = play(live, frames[:5])
    kept = [np.asarray(x) for x in (state.kv.k, state.kv.v, state.kv.pinned)]
    key = np.asarray(state.key)
    state = live.compiled[1].forget(state, np.ones(1, bool))
    jax.tree.map(np.testing.assert_array_equal, [state.kv.k, state.kv.v, state.kv.pinned], kept)
    after, _ = play(live, frames[5:], state)
    cold = begin(live).replace(key=jnp.asarray(key))
    np.testing.assert_array_equal(after, play(live, frames[5:], cold)[0])


def test_a_stream_says_who_computes_it_and_refuses_who_cannot(small_model, small_config):
    def with_backend(name):
        chosen = dataclasses.replace(small_config.stream, backend=name)
        config = dataclasses.replace(small_config, stream=chosen)
        return stream.compile_stream(stream.prepare(small_model, config), config)

    minor = dict.fromkeys(("commit", "embed", "readout"), "xla")
    unrolled, scanned = {"denoise_stack": "xla-unrolled"}, {"denoise_stack": "xla", "attend": "xla"}
    assert with_backend("auto").backends == unrolled | minor
    assert with_backend("xla").backends == scanned | minor
    with pytest.raises(ValueError, match="no backend 'gpu'; known: auto, xla, pallas"):
        with_backend("gpu")
    with pytest.raises(ValueError, match="backend pallas: "):
        with_backend("pallas")
