"""How long a stream stays near the truth: edits of held-out worlds, for any time."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lsd_jax.config import ModelConfig
from lsd_jax.data import edits
from lsd_jax.data.worlds import OBJECT_EDITS
from lsd_jax.evaluate import metrics
from lsd_jax.evaluate.held_out import OneOfEach
from lsd_jax.evaluate.streams import Advance, Resumable, Stream
from lsd_jax.files import replacing

STREAMS = len(edits.NAMES) + len(OBJECT_EDITS)
BINS = 50
SAVE_EVERY_S = 60
CHUNK = 16  # frames of each stream rendered at once
ANEW = 10  # chunks at the end that cold streams are shown too
AVERAGED = (
    "psnr_db", "edited_db", "ssim", "features", "brightness", "contrast", "texture", "flicker",
)  # fmt: skip

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
    """Streams `count` worlds, each under an edit of its own, for `frames` frames each.

    At the end, cold streams are shown the last frames too: what differs is drift, the rest is
    what there is to see in these frames.

    Args:
        batch: streams at once.
        done: told the number of frames after each chunk.
        count: how many, at most `STREAMS`.
        work: a directory to keep unfinished streams in; a run that finds its own there goes on
            from it, also to more frames than were asked for then.

    Returns:
        `summarise` of the statistics of every frame.
    """
    worlds = OneOfEach(model, np.random.default_rng([seed, 2]), OBJECT_EDITS)
    found: Series = {name: np.zeros((count, frames)) for name in AVERAGED}
    last = slice(frames - min(frames, ANEW * CHUNK), frames)
    anew = np.zeros((count, last.stop - last.start))
    for low in range(0, count, batch):
        some = slice(low, min(low + batch, count))
        texts, references = worlds.texts[some], worlds.references[some]
        advance = streams(texts, references)
        kept = Unfinished(work, _name(seed, some, texts, references), advance, found, some)
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
                seen = _statistics(out[i], truth[i], before[i], source[i])
                for name, values in seen.items():
                    found[name][low + i, offset : offset + left] = values[:left]
            before = np.stack([out[:, left - 1], truth[:, left - 1]], axis=1)
            offset += left
            kept.save(offset, before)
            done(out.shape[0] * left)
        anew[some] = cold(streams(texts, references), worlds, some, last)
    return summarise(found, anew, worlds.names)


def cold(advance: Advance, worlds: OneOfEach, some: slice, last: slice) -> Float[np.ndarray, "b f"]:
    """PSNR of cold streams over the frames `last`."""
    curves = []
    for offset in range(last.start, last.stop, CHUNK):
        left = min(CHUNK, last.stop - offset)
        source, truth = (x[:, :left] for x in worlds.frames(some, offset, CHUNK))
        out = advance(source)
        curves.append([metrics.frame_psnr_db(*clip) for clip in zip(out, truth, strict=True)])
    return np.concatenate(curves, axis=1)


def _name(seed: int, some: slice, texts: list[str], references: list) -> str:
    """Of what is asked, and of what is found: no other run goes on from these files."""
    asked = repr((AVERAGED, CHUNK, texts)).encode()
    pictures = [r.tobytes() for r in references if r is not None]
    digest = hashlib.sha256(b"".join([asked, *pictures])).hexdigest()[:8]
    return f"{seed}-{some.start}-{some.stop}-{digest}"


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
        """How far the streams were, at most `frames`, and the frames shown last. Raises ValueError
        for a damaged file."""
        if self._path is None or self._snapshots is None or not self._path.exists():
            return 0, None
        try:
            with self._path.open("rb") as opened, np.load(opened) as file:
                offset = int(file["offset"])
                series = {name: file[name][:, :frames] for name in self._found}
                state, before = [], None
                if offset < frames:  # else nobody wants the states, which are most of the file
                    state = [file[f"state_{i}"] for i in range(int(file["leaves"]))]
                    before = file["before"]
            offset = min(offset, frames)
            for name, values in self._found.items():
                values[self._some, :offset] = series[name]
            if state:
                self._snapshots.restore(state)
        except (ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self._path} is damaged; remove it to stream these anew") from error
        return offset, before

    def save(self, offset: int, before: np.ndarray) -> None:
        """Keeps what was found; a minute after the last time, or at the end."""
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
        with replacing(self._path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)


def _statistics(out, truth, before, source) -> dict[str, np.ndarray]:
    found = metrics.statistics(out, truth, before)
    edited = metrics.edited_mse(out, truth, source)
    errors = {"psnr_db": found.pop("mse"), "edited_db": edited}
    decibels = {k: metrics.psnr_db(np.asarray(v, np.float64)) for k, v in errors.items()}
    return decibels | {k: np.asarray(v, np.float64) for k, v in found.items()}


def summarise(series: Series, anew: Float[np.ndarray, "b f"], names: Sequence[str]) -> dict:
    """The figures of a long run.

    Early is from a hundredth of the run to a tenth, past the cold start; late is its last tenth.

    Returns:
        `early_db` and `late_db`: mean PSNR; `worst_stream_drop_db`: the most that a stream falls
        from early to late; `brightness_ratio` and `contrast_ratio`: output over truth, late over
        early, 1 where nothing shifts; `slope_db_per_1000_frames`; `flicker`: bytes;
        `identity`: early and late PSNR of the edited objects alone; `cold`: over the frames that
        cold streams were shown too, how far the mean and the worst stream are behind them, dB;
        `by_edit`: early and late PSNR of each stream; `curves`: the mean of the streams, and of
        the worst of them the PSNR, in `BINS` bins that end at `bin_ends`.
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
    whole = {name: values for name, values in series.items() if name != "edited_db"}
    curves = {name: [float(values[:, b].mean()) for b in bins] for name, values in whole.items()}
    mean = psnr.mean(axis=0)
    slope = np.polyfit(np.arange(frames), mean, 1)[0] * 1000 if frames > 1 else 0.0
    worst = int(np.argmax(start - end))
    behind = (anew - psnr[:, frames - anew.shape[1] :]).mean(axis=1)
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
        "identity": identity(series["edited_db"][len(edits.NAMES) :], early, late),
        "cold": {
            "frames": anew.shape[1],
            "behind_db": float(behind.mean()),
            "worst_behind_db": float(behind.max()),
        },
        "by_edit": {
            name: {"early_db": float(a), "late_db": float(b)}
            for name, a, b in zip(names, start, end, strict=False)
        },
        "bin_ends": [int(b[-1]) + 1 for b in bins],
        "curves": curves | {"worst_psnr_db": [float(psnr[worst, b].mean()) for b in bins]},
    }


def identity(psnr: Float[np.ndarray, "b f"], early: slice, late: slice) -> dict | None:
    """Early and late PSNR of the edited objects, of the frames that show one; None where none is
    seen early or late."""
    parts = {"early_db": psnr[:, early], "late_db": psnr[:, late]}
    seen = {name: part[np.isfinite(part)] for name, part in parts.items()}
    if not all(x.size for x in seen.values()):
        return None
    return {name: float(x.mean()) for name, x in seen.items()}
