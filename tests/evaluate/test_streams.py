"""The streams of a model, side by side: alone or not, asked anew, made to misremember."""

import dataclasses

import numpy as np
import pytest

from lsd_jax.evaluate.streams import ModelStreams


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)


def test_a_stream_does_not_depend_on_the_others_nor_on_how_frames_come(
    small_model, small_config, frames
):
    """Three streams in a batch of four; then in two portions."""
    texts, references = ["night", "use the reference", "fog"], [None, frames[0, 0], None]
    streams = ModelStreams(small_model, small_config, 4, seed=0)
    whole = streams(texts, references)(frames)
    assert whole.shape == frames.shape and whole.dtype == np.uint8
    streams = streams.anew()
    advance = streams(texts, references)
    parts = [advance(frames[:, :1]), advance(frames[:, 1:])]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    with pytest.raises(ValueError, match="compiled for 4"):
        streams(["fog"] * 5, [None] * 5)
    of_two = streams.of(2)
    assert streams.of(4) is streams and streams.of(2) is of_two and of_two.batch == 2
    np.testing.assert_array_equal(of_two(texts[:2], references[:2])(frames[:2]), whole[:2])
    np.testing.assert_array_equal(
        streams.anew().of(2)(texts[:2], references[:2])(frames[:2]), whole[:2]
    )


def test_what_is_shown_is_what_is_remembered(small_model, small_config, frames):
    """To misremember what was shown anyway changes nothing; to misremember noise does."""
    outs = {}
    for kind in ("as it was", "same", "garbage"):
        running = ModelStreams(small_model, small_config, 3, seed=0)(["fog"] * 3, [None] * 3)
        shown = running(frames[:, :3])
        if kind != "as it was":
            past = shown if kind == "same" else 255 - shown
            running.misremember(frames[:, :3], past)
        outs[kind] = running(frames[:, 3:])
    # A window of three is overwritten whole; the sink of this model keeps its first frame.
    difference = np.abs(outs["same"].astype(int) - outs["as it was"])
    assert difference.max() <= 1
    assert np.any(outs["garbage"] != outs["same"])


def test_another_prompt_starts_from_no_history(small_model, small_config, frames):
    """As a session does: the same as a cold stream of that prompt but for the noise it draws."""
    streams = ModelStreams(small_model, small_config, 3, seed=0)
    running = streams(["fog"] * 3, [None] * 3)
    running(frames[:, :2])
    ages = np.asarray(running._state.kv.age)
    running.ask(["night"] * 3, [None] * 3)
    assert np.any(ages != -1) and np.all(np.asarray(running._state.kv.age) == -1)
    cold = streams(["night"] * 3, [None] * 3)
    for state in (running._state, cold._state):
        assert state.kv.pinned.shape == (3, 8)
    pinned = small_config.model.pinned
    np.testing.assert_array_equal(
        running._state.kv.k[:, :, :pinned], cold._state.kv.k[:, :, :pinned]
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streams_go_on_from_a_snapshot(small_model, small_config, frames, dtype, tmp_path):
    """On disk, too, where NumPy knows no bfloat16."""
    stream = dataclasses.replace(small_config.stream, compute_dtype=dtype)
    small_config = dataclasses.replace(small_config, stream=stream)
    streams = ModelStreams(small_model, small_config, 3, seed=0)
    running = streams(["fog"] * 3, [None] * 3)
    running(frames[:, :2])
    np.savez(tmp_path / "kept.npz", *running.snapshot())
    with np.load(tmp_path / "kept.npz") as file:
        kept = list(file.values())
    expected = running(frames[:, 2:])
    other = streams(["night"] * 3, [None] * 3)
    other.restore(kept)
    np.testing.assert_array_equal(other(frames[:, 2:]), expected)
    same = ModelStreams(small_model, small_config, 3, seed=0)
    assert same.fingerprint == streams.fingerprint
    assert ModelStreams(small_model, small_config, 3, seed=1).fingerprint != streams.fingerprint
