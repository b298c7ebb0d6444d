"""How long a reaction takes, read from curves and from streams whose reaction is known."""

import numpy as np
import pytest

from lsd_jax.config import ModelConfig
from lsd_jax.evaluate import reactions
from lsd_jax.evaluate.reactions import settled

MODEL = ModelConfig(height=32, width=32, patch=8)


@pytest.mark.parametrize(
    ("curve", "frames"),
    [([20, 20, 20], 0), ([10, 19.6, 20], 1), ([20, 19, 20], 2), ([10, 11, 12], None)],
)
def test_a_curve_settles_when_it_never_falls_behind_again(curve, frames):
    assert settled(np.array(curve, float), np.full(3, 20.0)) == frames


class Known:
    """Streams that know the truth, and show garbage for a while after each disturbance."""

    batch = 8

    def __init__(self, answers, ill, slow):
        self.answers, self.ill, self.slow = answers, ill, slow
        self.events = []

    def __call__(self, texts, references):
        return Running(self, texts)


class Running:
    def __init__(self, streams, texts):
        self.streams, self.texts, self.wrong = streams, texts, 0

    def __call__(self, frames):
        shown = []
        for text, clip in zip(self.texts, frames, strict=True):
            truth = self.streams.answers(text, clip)
            bad = np.arange(len(clip)) < self.wrong
            shown.append(np.where(bad[:, None, None, None], 128, truth).astype(np.uint8))
        self.wrong = 0
        return np.stack(shown)

    def ask(self, texts, references):
        assert all(a != b for a, b in zip(texts, self.texts, strict=True))
        self.texts, self.wrong = texts, self.streams.slow

    def misremember(self, frames, shown):
        assert shown.shape == frames.shape and frames.shape[1] == reactions.GARBAGE
        self.wrong = self.streams.ill


def test_reactions_of_known_length(monkeypatch):
    known = {}
    frames = reactions.OneOfEach.frames

    def remembering(*args):
        source, truth = frames(*args)
        for clip, edited in zip(source, truth, strict=True):
            for frame, shown in zip(clip, edited, strict=True):
                known[frame.tobytes()] = shown
        return source, truth

    monkeypatch.setattr(reactions.OneOfEach, "frames", remembering)
    streams = Known(lambda _, clip: np.stack([known[f.tobytes()] for f in clip]), ill=7, slow=2)
    told = []
    found = reactions.measure(streams, MODEL, 0, told.append)
    assert found["recovery_frames"] == 7 and found["prompt_response_frames"] == 2
    assert sum(told) == reactions.FRAMES
    assert len(found["reactions"]["garbage_psnr_db"]) == reactions.AFTER
