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
from lsd_jax.evaluate.held_out import draw
from lsd_jax.evaluate.streams import Stream

STREAMS = len(edits.NAMES)
BINS = 50
CHUNK = 16  # frames of each stream rendered at once
AVERAGED = ("psnr_db", "ssim", "features", "brightness", "contrast", "texture", "flicker")

Series = dict[str, Float[np.ndarray, "streams frames"]]


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
        `summarise` of the statistics of every frame.
    """
    rng = np.random.default_rng([seed, 2])
    texts = [prompts.PARAPHRASES[name][0][1] for name in edits.NAMES]
    slots = np.array([edits.slots((name,)) for name in edits.NAMES], np.int32)
    drawn, starts = draw(rng, STREAMS)
    size, bank = (model.height, model.width), textures.bank()
    found: Series = {name: np.zeros((STREAMS, frames)) for name in AVERAGED}
    for low in range(0, STREAMS, batch):
        some = slice(low, low + batch)
        world = jax.tree.map(lambda x, some=some: x[some], drawn)
        advance = streams(texts[some], [None] * len(texts[some]))
        before = None
        for offset in range(0, frames, CHUNK):
            source, truth = render(
                world, slots[some], starts[some] + np.int32(offset), bank, frames=CHUNK, size=size
            )
            source, truth = np.asarray(source), np.asarray(truth)
            left = min(CHUNK, frames - offset)
            shown = advance(source[:, :left])
            out = np.concatenate([shown, np.repeat(shown[:, -1:], CHUNK - left, axis=1)], axis=1)
            if before is None:
                before = np.stack([out[:, 0], truth[:, 0]], axis=1)
            for i in range(len(out)):
                for name, values in _statistics(out[i], truth[i], before[i]).items():
                    found[name][low + i, offset : offset + left] = values[:left]
            before = np.stack([out[:, -1], truth[:, -1]], axis=1)
            done(out.shape[0] * left)
    return summarise(found)


def _statistics(out, truth, before) -> dict[str, np.ndarray]:
    found = {
        k: np.asarray(v, np.float64) for k, v in metrics.statistics(out, truth, before).items()
    }
    return {"psnr_db": metrics.psnr_db(found.pop("mse")), **found}


def summarise(series: Series) -> dict:
    """The figures of a long run.

    Early is from a hundredth of the run to a tenth, past the cold start; late is its last tenth.

    Returns:
        `early_db` and `late_db`: mean PSNR; `worst_stream_drop_db`: the most that a stream falls
        from early to late; `brightness_ratio` and `contrast_ratio`: output over truth, late over
        early, 1 where nothing shifts; `slope_db_per_1000_frames`; `flicker`: bytes; `by_edit`:
        early and late PSNR of each stream; `curves`: the mean of the streams, and of the worst of
        them the PSNR, in `BINS` bins that end at `bin_ends`.
    """
    psnr = series["psnr_db"]
    streams, frames = psnr.shape
    early = slice(frames // 100, max(1, frames // 10))
    late = slice(frames - max(1, frames // 10), frames)
    start, end = psnr[:, early].mean(axis=1), psnr[:, late].mean(axis=1)

    def ratio(name: str) -> float:
        return float(series[name][:, late].mean() / series[name][:, early].mean())

    bins = np.array_split(np.arange(frames), min(BINS, frames))
    curves = {name: [float(values[:, b].mean()) for b in bins] for name, values in series.items()}
    mean = psnr.mean(axis=0)
    slope = np.polyfit(np.arange(frames), mean, 1)[0] * 1000 if frames > 1 else 0.0
    worst = int(np.argmax(start - end))
    return {
        "frames": frames,
        "streams": streams,
        "early_db": float(start.mean()),
        "late_db": float(end.mean()),
        "worst_stream_drop_db": float((start - end)[worst]),
        "brightness_ratio": ratio("brightness"),
        "contrast_ratio": ratio("contrast"),
        "slope_db_per_1000_frames": float(slope),
        "flicker": float(series["flicker"].mean()),
        "by_edit": {
            name: {"early_db": float(a), "late_db": float(b)}
            for name, a, b in zip(edits.NAMES[:streams], start, end, strict=True)
        },
        "bin_ends": [int(b[-1]) + 1 for b in bins],
        "curves": curves | {"worst_psnr_db": [float(psnr[worst, b].mean()) for b in bins]},
    }


@partial(jax.jit, static_argnames=("frames", "size"))
def render(drawn, slots, starts, bank, *, frames, size):
    """Input and truth of each world's frames, `[B, F, H, W, 3]` bytes."""
    source = rendered.render_clips(drawn, starts, frames, size, bank)
    index = starts[:, None] + jnp.arange(frames, dtype=jnp.int32)
    edited = jax.lax.map(
        lambda x: edits.compose(x[0][0], x[0][1], x[1], x[2]), (slots, source, index)
    )
    return rendered.to_bytes(source), rendered.to_bytes(edited)
