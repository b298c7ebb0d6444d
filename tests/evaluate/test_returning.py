"""The proof of a long memory, on streams that are known to remember or to forget."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lsd_jax.config import Config, ModelConfig
from lsd_jax.data.prompts import CARRY_ON
from lsd_jax.data.worlds import OBJECT_EDITS
from lsd_jax.evaluate import returning
from lsd_jax.evaluate.returning import BACK, FRAMES, GONE, SEEN, TURNING
from lsd_jax.evaluate.streams import ModelStreams
from lsd_jax.model import abstract_model
from lsd_jax.pretrained import load_model

MODEL = ModelConfig(height=32, width=32, patch=8, memory=2)


@pytest.fixture(scope="module")
def visits():
    return list(returning.draw(MODEL, 1, 2, seed=0))


def test_the_object_is_gone_in_between_and_nothing_else_changes(visits):
    """Where it is gone, input and truth are the same; both seen and back, they are not."""
    assert [v.kinds for v in visits] == [["recolour", "reshape"], ["object_from_reference"]]
    gone = slice(SEEN + TURNING, SEEN + TURNING + GONE)
    for v in visits:
        assert v.source.shape == v.truth.shape == (len(v.texts), FRAMES, 32, 32, 3)
        np.testing.assert_array_equal(v.source[:, gone], v.truth[:, gone])
        for there in (slice(0, SEEN), slice(FRAMES - BACK, FRAMES)):
            assert np.any(v.source[:, there] != v.truth[:, there], axis=(1, 2, 3, 4)).all()
    assert visits[0].references == [None, None] and visits[1].references[0].shape == (32, 32, 3)
    assert GONE > MODEL.window + 8 and SEEN + TURNING + GONE + TURNING < 5 * MODEL.memory_every


def test_likeness_is_the_psnr_of_what_the_edit_changes(visits):
    v = visits[0]
    np.testing.assert_allclose(returning.likeness(v.truth, v), 60)
    np.testing.assert_allclose(returning.likeness(v.truth, replace(v, source=v.truth)), np.nan)
    off = np.where(np.arange(FRAMES)[:, None, None, None] < FRAMES - BACK, 0, v.truth)
    np.testing.assert_allclose(returning.likeness(off, v), 60)  # before, nothing counts
    wrong = np.where(v.truth > 127, v.truth - 51, v.truth + 51).astype(np.uint8)
    np.testing.assert_allclose(returning.likeness(wrong, v), -20 * np.log10(0.2), rtol=1e-5)


class Streams(ModelStreams):
    """Know the truth until their prompt is taken back, and then only if they remember."""

    def __init__(self, visits, remembers):
        self.truths, self.remembers = {v.texts[0]: v for v in visits}, remembers
        self.config, self.batch = Config("x", model=MODEL), 2

    def __call__(self, texts, references):
        return Running(self, texts)


class Running:
    def __init__(self, streams, texts):
        self.streams, self.visits, self.at = streams, streams.truths[texts[0]], 0
        self.knows = True

    def __call__(self, frames):
        at = slice(self.at, self.at + frames.shape[1])
        self.at = at.stop
        return (self.visits.truth if self.knows else self.visits.source)[:, at]

    def ask(self, texts, references):
        assert set(texts) == {CARRY_ON} and not any(r is not None for r in references)
        assert self.at == SEEN
        self.knows = self.streams.remembers


def test_what_streams_remember_is_what_is_reported(visits, monkeypatch):
    def opened(denoiser, config, batch, seed):
        return Streams(visits, remembers=config.model.memory > 0)

    monkeypatch.setattr(returning, "ModelStreams", opened)
    monkeypatch.setattr(returning, "build", lambda config, weights: None)
    counted = []
    remembering = Streams(visits, remembers=True)
    found, seen = returning.measure(abstract_model(MODEL), remembering, 1, 0, counted.append)
    assert found["with"] == found["told"] == 60 and found["without"] == found["input"] < 20
    assert set(found["by_edit"]) == set(OBJECT_EDITS)
    assert all(row["with"] == 60 > row["without"] for row in found["by_edit"].values())
    assert sum(counted) == 3 * FRAMES * len(OBJECT_EDITS)
    assert set(seen) == {"input", "with", "without", "told", "truth"}
    np.testing.assert_array_equal(seen["with"], seen["truth"])


@pytest.mark.slow
def test_the_shipped_memory_brings_an_edit_back():
    """A minute: objects of held-out worlds, by the weights that docs/recipes.md speaks of."""
    path = Path(__file__).parent.parent.parent / "checkpoints" / "recall"
    model, config = load_model(path, [])
    streams = ModelStreams(model, config, 8, 0)
    found, _ = returning.measure(model, streams, 16, 0, lambda frames: None, ["recolour"])
    assert found["with"] > found["without"] + 6 and found["with"] > found["told"] - 4
    assert found["nearer"] > 0.8 and found["told"] > found["input"] + 10
