"""How long a stream stays near the truth: footage edits of held-out worlds, for any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lsd_jax.config import ModelConfig
from lsd_jax.data import edits
from lsd_jax.evaluate import metrics
from lsd_jax.evaluate.held_out import OneOfEach
from lsd_jax.evaluate.streams import Resumable, Stream

STREAMS = len(edits.NAMES)
BINS = 50
SAVE_EVERY_S = 60
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
    count: int = STREAMS,
    work: Path | None = None,
) -> dict:
    """Streams `count` worlds, each under a footage edit of its own, for `frames` frames each.

    Args:
        batch: streams at once.
        done: told the number of frames after each chunk.
        count: how many, at most `STREAMS`.
        work: a directory to keep unfinished streams in; a run that finds its own there goes on
            from it, also to more frames than were asked for then.

    Returns:
        `summarise` of the statistics of every frame.
    """
    worlds = OneOfEach(model, np.random.default_rng([seed, 2]))
    found: Series = {name: np.zeros((count, frames)) for name in AVERAGED}
    for low in range(0, count, batch):
        some = slice(low, min(low + batch, count))
        texts = worlds.texts[some]
        advance = streams(texts, [None] * len(texts))
        kept = Unfinished(work, f"{seed}-{some.start}-{some.stop}", advance, found, some)
        offset, before = kept.restore(frames)
        done(offset * len(texts))
        while offset < frames:
            source, truth = worlds.frames(some, offset, CHUNK)
            left = min(CHUNK, frames - offset)
            shown = advance(source[:, :left])
            out = np.concatenate([shown, np.repeat(shown[:, -1:], CHUNK - left, axis=1)], axis=1)
            if before is None:
                before = np.stack([out[:, 0], truth[:, 0]], axis=1)
            for i in range(len(out)):
                for name, values in _statistics(out[i], truth[i], before[i]).items():
                    found[name][low + i, offset : offset + left] = values[:left]
            before = np.stack([out[:, left - 1], truth[:, left - 1]], axis=1)
            offset += left
            kept.save(offset, before)
            done(out.shape[0] * left)
    return summarise(found)


class Unfinished:
    """Streams of a long run on disk: their states and what was found so far, every minute."""

    def __init__(self, work: Path | None, name: str, advance, found: Series, some: slice):
        self._snapshots = advance if isinstance(advance, Resumable) else None
        self._found, self._some = found, some
        self._saved = time.monotonic()
        if work is not None and self._snapshots is not None:
            self._path = work / f"drift-{self._snapshots.fingerprint()}-{name}.npz"
        else:
            self._path = None

    def restore(self, frames: int) -> tuple[int, np.ndarray | None]:
        """How far the streams were, at most `frames`, and the frames shown last."""
        if self._path is None or self._snapshots is None or not self._path.exists():
            return 0, None
        with np.load(self._path) as kept:
            offset = int(kept["offset"])
            if offset >= frames:
                for name, values in self._found.items():
                    values[self._some] = kept[name][:, :frames]
                return frames, None
            for name, values in self._found.items():
                values[self._some, :offset] = kept[name]
            self._snapshots.restore([kept[f"state_{i}"] for i in range(int(kept["leaves"]))])
            return offset, kept["before"]

    def save(self, offset: int, before: np.ndarray) -> None:
        """Writes beside, then renames; a minute after the last time, or at the end."""
        if self._path is None or self._snapshots is None:
            return
        ended = offset == next(iter(self._found.values())).shape[1]
        if time.monotonic() - self._saved < SAVE_EVERY_S and not ended:
            return
        self._saved = time.monotonic()
        series = {name: values[self._some, :offset] for name, values in self._found.items()}
        leaves = self._snapshots.snapshot()
        arrays: dict[str, Any] = {f"state_{i}": leaf for i, leaf in enumerate(leaves)}
        arrays |= series | {"offset": offset, "before": before, "leaves": len(leaves)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".partial.npz")
        np.savez(beside, **arrays)
        beside.replace(self._path)


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
        nothing = 1e-6  # a black or flat picture has none, early and late
        ours = [series[name][:, part].mean() + nothing for part in (late, early)]
        return float(ours[0] / ours[1])

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
