"""How fast a stream reacts: to another prompt, and to a history that is garbage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lsd_jax.config import ModelConfig
from lsd_jax.data import edits
from lsd_jax.evaluate import metrics
from lsd_jax.evaluate.held_out import OneOfEach

BEFORE, AFTER = 12, 36  # frames streamed before the event and from it on
STEADY = 12  # frames at the end whose mean is the steady quality
GARBAGE = 4  # frames of white noise put into the memory
CLOSE_DB = 0.5
FRAMES = len(edits.NAMES) * 3 * (BEFORE + AFTER)  # streamed in all


@runtime_checkable
class Reacting(Protocol):
    """`ModelStreams`, or what opens streams that can be disturbed as theirs can."""

    batch: int

    def __call__(self, texts: Sequence[str], references: Sequence[np.ndarray | None]) -> Any: ...


def measure(streams: Reacting, model: ModelConfig, seed: int, done: Callable[[int], None]) -> dict:
    """Each footage edit in a world of its own, undisturbed, disturbed, and asked for in the middle.

    Returns:
        `recovery_frames`: after `GARBAGE` frames of noise in place of the newest memories, the
        number of frames until the streams' mean PSNR stays within `CLOSE_DB` of the undisturbed
        streams'; `prompt_response_frames`: after the prompt before was another one, until it
        stays so near to its own steady value; 0 means from the first frame on, `None` never. And
        the curves that these are read from.
    """
    runs = {"undisturbed": [], "garbage": [], "prompt": []}
    for source, truth, texts, others in _worlds(streams.batch, model, seed):
        noise = np.random.default_rng([seed, 4]).integers(
            0, 256, (len(texts), GARBAGE, *source.shape[2:]), dtype=np.uint8
        )
        none = [None] * len(texts)
        for name, curves in runs.items():
            running = streams(others if name == "prompt" else texts, none)
            running(source[:, :BEFORE])
            if name == "garbage":
                running.misremember(source[:, BEFORE - GARBAGE : BEFORE], noise)
            elif name == "prompt":
                running.ask(texts, none)
            out = running(source[:, BEFORE:])
            curves += [
                metrics.frame_psnr_db(*clip) for clip in zip(out, truth[:, BEFORE:], strict=True)
            ]
            done(source.shape[0] * source.shape[1])
    mean = {name: np.mean(curves, axis=0) for name, curves in runs.items()}
    steady = np.full(AFTER, mean["prompt"][-STEADY:].mean())
    return {
        "recovery_frames": settled(mean["garbage"], mean["undisturbed"]),
        "prompt_response_frames": settled(mean["prompt"], steady),
        "reactions": {"garbage_frames": GARBAGE, "within_db": CLOSE_DB}
        | {f"{name}_psnr_db": curve.tolist() for name, curve in mean.items()},
    }


def settled(curve: Float[np.ndarray, " f"], goal: Float[np.ndarray, " f"]) -> int | None:
    """The first frame from which on the curve is never `CLOSE_DB` or more below its goal."""
    behind = np.flatnonzero(goal - curve >= CLOSE_DB)
    first = int(behind[-1]) + 1 if len(behind) else 0
    return first if first < len(curve) else None


def _worlds(batch: int, model: ModelConfig, seed: int) -> Iterator[tuple]:
    """Of up to `batch` worlds at once: input, truth, prompts, and as many other prompts."""
    worlds = OneOfEach(model, np.random.default_rng([seed, 3]))
    texts = worlds.texts
    others = texts[len(texts) // 2 :] + texts[: len(texts) // 2]
    for low in range(0, len(texts), batch):
        some = slice(low, low + batch)
        yield *worlds.frames(some, 0, BEFORE + AFTER), texts[some], others[some]
