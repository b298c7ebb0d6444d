"""How long a stream stays near the truth: footage edits of held-out worlds, for any time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lsd_jax.config import ModelConfig
from lsd_jax.data import edits, prompts, rendered, textures
from lsd_jax.evaluate import metrics
from lsd_jax.evaluate.fidelity import Stream
from lsd_jax.evaluate.held_out import draw

STREAMS = 8
BINS = 50
CHUNK = 16  # frames of each stream rendered at once


def long_run(
    streams: Stream,
    model: ModelConfig,
    frames: int,
    batch: int,
    seed: int,
    done: Callable[[int], None],
) -> dict:
    """Streams `STREAMS` worlds, each under a footage edit of its own, for `frames` frames each.

    Args:
        batch: streams at once.
        done: told the number of frames after each chunk.

    Returns:
        `summarise` of the PSNR of every frame, and the names of the edits.
    """
    rng = np.random.default_rng([seed, 2])
    names = [edits.NAMES[i] for i in rng.permutation(len(edits.NAMES))[:STREAMS]]
    texts = [prompts.PARAPHRASES[name][0][1] for name in names]
    slots = np.array([edits.slots((name,)) for name in names], np.int32)
    drawn, starts = draw(rng, STREAMS)
    size, bank = (model.height, model.width), textures.bank()
    found = np.zeros((STREAMS, frames))
    for low in range(0, STREAMS, batch):
        some = slice(low, low + batch)
        world = jax.tree.map(lambda x, some=some: x[some], drawn)
        advance = streams(texts[some], [None] * len(texts[some]))
        for offset in range(0, frames, CHUNK):
            source, truth = _render(
                world, slots[some], starts[some] + np.int32(offset), bank, frames=CHUNK, size=size
            )
            left = frames - offset
            source, truth = np.asarray(source)[:, :left], np.asarray(truth)[:, :left]
            out = advance(source)
            for i in range(len(out)):
                errors = np.asarray(metrics.squared_errors(out[i], truth[i][None]), np.float64)[0]
                found[low + i, offset : offset + CHUNK] = metrics.psnr_db(errors)
            done(out.shape[0] * out.shape[1])
    return {"edits": names} | summarise(found)


def summarise(psnr_db: Float[np.ndarray, "streams frames"]) -> dict:
    """Decibels in `BINS` bins (or one per frame), first and last tenth, and the slope.

    The slope is that of the least-squares line through the mean of the streams, per 1000 frames;
    a stream that has not drifted has a slope near 0 and a last tenth like its first.
    """
    streams, frames = psnr_db.shape
    mean = psnr_db.mean(axis=0)
    bins = np.array_split(mean, min(BINS, frames))
    tenth = max(1, frames // 10)
    slope = np.polyfit(np.arange(frames), mean, 1)[0] * 1000 if frames > 1 else 0.0
    return {
        "frames": frames,
        "streams": streams,
        "bin_ends": [int(n) for n in np.cumsum([len(b) for b in bins])],
        "psnr_db_by_bin": [float(b.mean()) for b in bins],
        "first_tenth_db": float(mean[:tenth].mean()),
        "last_tenth_db": float(mean[-tenth:].mean()),
        "slope_db_per_1000_frames": float(slope),
    }


@partial(jax.jit, static_argnames=("frames", "size"))
def _render(drawn, slots, starts, bank, *, frames, size):
    """Input and truth of each world's frames, `[B, F, H, W, 3]` bytes."""
    source = rendered.render_clips(drawn, starts, frames, size, bank)
    index = starts[:, None] + jnp.arange(frames, dtype=jnp.int32)
    edited = jax.lax.map(
        lambda x: edits.compose(x[0][0], x[0][1], x[1], x[2]), (slots, source, index)
    )
    return rendered.to_bytes(source), rendered.to_bytes(edited)
