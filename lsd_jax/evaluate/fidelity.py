"""How near a stream comes to the truth of what it is asked for, on worlds it has never seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from lsd_jax import stream
from lsd_jax.config import Config
from lsd_jax.data import prompts
from lsd_jax.evaluate import metrics
from lsd_jax.evaluate.held_out import ASKS, CANDIDATES, Ask, Clip, candidates
from lsd_jax.model import Denoiser
from lsd_jax.types import Conditioning

Frames = UInt8[np.ndarray, "b f h w 3"]
Advance = Callable[[Frames], Frames]
Stream = Callable[[Sequence[str], Sequence[np.ndarray | None]], Advance]
"""Opens cold streams, one per prompt and reference (or None); the result takes their next frames,
any number of them, and returns what they become. All that is evaluated has this form."""


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


def model_stream(denoiser: Denoiser, config: Config, batch: int, seed: int) -> Stream:
    """The streams of a model, `batch` at once, through the frame step that users run.

    Compiled here, once. Fewer streams than `batch` are filled up with copies of the last.
    """
    if config.model.external_text_dim:
        raise ValueError("this model takes prompts as embeddings; only text can be evaluated")
    model = stream.prepare(denoiser, config)
    compiled = stream.compile_stream(model, config, batch)
    fresh = jax.jit(partial(stream.init_state, config))
    shape = (config.model.height, config.model.width)
    everywhere = jnp.full((batch, *shape), 255, jnp.uint8)
    controls = stream.control_planes(config.model.controls, everywhere)
    opened = 0

    def fill(x: np.ndarray) -> jax.Array:
        return jnp.asarray(np.concatenate([x, np.repeat(x[-1:], batch - len(x), axis=0)]))

    def start(texts: Sequence[str], references: Sequence[np.ndarray | None]) -> Advance:
        nonlocal opened
        count = len(texts)
        if count > batch:
            raise ValueError(f"{count} streams at once, compiled for {batch}")
        seeds = np.random.default_rng([seed, opened]).integers(1 << 31, size=batch)
        opened += 1
        none = np.zeros((*shape, 3), np.uint8)
        condition = Conditioning(
            prompt=fill(np.stack([prompts.encode(t, config.model.prompt_bytes) for t in texts])),
            reference=fill(np.stack([none if r is None else r for r in references])),
            has_reference=fill(np.array([r is not None for r in references])),
        )
        state = fresh(seeds.astype(np.int32))
        state = compiled.condition(model, state, condition, np.ones(batch, bool))

        def advance(frames: Frames) -> Frames:
            nonlocal state
            shown = []
            for i in range(frames.shape[1]):
                state, out = compiled.step(model, state, fill(frames[:, i]), controls)
                shown.append(np.asarray(out)[:count])
            return np.stack(shown, axis=1)

        return advance

    return start


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
