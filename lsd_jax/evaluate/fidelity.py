"""How near a stream comes to the truth of what it is asked for, on worlds it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from lsd_jax.evaluate import metrics
from lsd_jax.evaluate.held_out import ASKS, CANDIDATES, Ask, Clip, candidates
from lsd_jax.evaluate.streams import Stream


@dataclass(frozen=True)
class Outcome:
    """What one stream came to."""

    ask: Ask
    prompt: str
    psnr_db: Float[np.ndarray, " f"]
    identity_db: Float[np.ndarray, " f"]  # had it returned its input
    nearest: str  # of the candidates, by squared error over the whole clip
    texture: tuple[float, float]  # energy of the output and of the truth
    last: UInt8[np.ndarray, "3 h w 3"]  # input, output and truth of the last frame

    @property
    def right(self) -> bool:
        """Whether what was asked for is nearest."""
        return self.nearest == self.ask.name


def measure(
    streams: Stream, clips: Iterable[Clip], batch: int, done: Callable[[int], None]
) -> Iterator[Outcome]:
    """Every ask of every clip, in order, `batch` streams at a time.

    Args:
        done: told the number of frames after each batch.
    """
    for clip in clips:
        for start in range(0, len(ASKS), batch):
            asks, texts = ASKS[start : start + batch], clip.prompts[start : start + batch]
            wanted = [clip.reference if a.name.endswith("from_reference") else None for a in asks]
            source = np.broadcast_to(clip.source, (len(asks), *clip.source.shape))
            shown = streams(texts, wanted)(source)
            for ask, text, out in zip(asks, texts, shown, strict=True):
                yield _judge(ask, text, clip, out)
            done(source.shape[0] * source.shape[1])


def _judge(ask: Ask, prompt: str, clip: Clip, out: UInt8[np.ndarray, "f h w 3"]) -> Outcome:
    asked = CANDIDATES.index(ask.name)
    errors = np.asarray(metrics.squared_errors(out, clip.truths), np.float64)  # [C, F]
    identity = metrics.squared_errors(clip.source, clip.truths[asked : asked + 1])
    truth = clip.truths[asked]
    nearest = metrics.nearest(errors[candidates(ask)].mean(axis=1), asked)
    return Outcome(
        ask=ask,
        prompt=prompt,
        psnr_db=metrics.psnr_db(errors[asked]),
        identity_db=metrics.psnr_db(np.asarray(identity, np.float64)[0]),
        nearest=CANDIDATES[nearest],
        texture=(float(metrics.texture_energy(out)), float(metrics.texture_energy(truth))),
        last=np.stack([clip.source[-1], out[-1], truth[-1]]),
    )
