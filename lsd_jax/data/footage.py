"""A folder of users' videos with captions as endless, resumable batches of clips, through Grain.

boat.mp4                  a video to edit; alone, the training pipeline edits it itself
boat.txt                  its caption, which is the prompt
boat.edited.mp4           what the prompt makes of it, frame for frame: a paired example
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import logging
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from lsd_jax.data import containers
from lsd_jax.data.pictures import natural
from lsd_jax.data.prompts import MAX_BYTES, encode

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
EDITED = ".edited"


class Video(NamedTuple):
    """One file, and when each of its frames is shown, in the stream's ticks and in order.

    `keys` says for the frames that decoding can begin at when they are shown and which tick to seek
    to; None stands for the file's start.
    """

    path: str
    pts: tuple[int, ...]
    keys: tuple[tuple[int, int | None], ...]
    fps: float


class Clip(NamedTuple):
    """Consecutive frames of a video, from `start` on, and of its edited twin if there is one."""

    source: Video
    target: Video | None
    prompt: str
    start: int


class FootageSource:
    """Random access to all clips of a folder, in a fixed order; a Grain data source.

    Clips lie end to end: `frames` frames each, so a video of 100 gives 12 clips of 8. Item `i` is
    a dict of `source` and `target` (uint8, `[F, H, W, 3]`; without an edited twin the target
    repeats the source), `prompt` and `paired`. A clip whose frames turn out damaged is replaced by
    the one after it, so that every index gives a clip and the order stays what it was.

    Raises ValueError, with what to do, where the folder holds no video that can be used. Videos
    that are broken or shorter than a clip, and twins whose source or caption is missing or whose
    caption is longer than `prompt_bytes`, are left out with a warning. A twin of another length or
    frame rate is warned of and paired frame for frame, up to the end of the shorter one.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frames: int,
        height: int,
        width: int,
        prompt_bytes: int = MAX_BYTES,
    ):
        self._folder, self._frames = Path(folder), frames
        self._height, self._width, self._prompt_bytes = height, width, prompt_bytes
        if not self._folder.is_dir():
            raise ValueError(f"no folder {str(folder)!r}; give one that holds videos")
        files = self._files()
        twins = {p.stem[: -len(EDITED)]: p for p in files if p.stem.lower().endswith(EDITED)}
        sources = [p for p in files if p not in twins.values()]
        for stem in twins.keys() - {p.stem for p in sources}:
            logging.warning("%s left out: there is no video %s beside it", twins[stem], stem)
        self.clips = [c for p in sources for c in self._clips(p, twins.get(p.stem))]
        if not self.clips:
            raise ValueError(
                f"no video of {frames} frames or more in {str(folder)!r}; it needs some of: "
                f"{', '.join(SUFFIXES)}"
            )

    def _files(self) -> list[Path]:
        found = [
            p
            for p in self._folder.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
        ]
        return sorted(found, key=lambda p: natural(p.name))

    def _clips(self, path: Path, twin: Path | None) -> list[Clip]:
        caption = path.with_suffix(".txt")
        try:
            prompt = caption.read_text(encoding="utf-8-sig").strip() if caption.is_file() else ""
            source = _index(path)
            target = _index(twin) if twin else None
            if target:
                encode(prompt, self._prompt_bytes)  # refuses a missing or an overlong caption
                _warn_of_difference(source, target)
            count = min(len(video.pts) for video in (source, target) if video)
            if count < self._frames:
                raise ValueError(f"{path} has {count} frames, a clip needs {self._frames}")
            starts = range(0, count - self._frames + 1, self._frames)
            clips = [Clip(source, target, prompt, start) for start in starts]
            self._read(clips[0])  # so that at least one clip of each video is sound
        except (ValueError, OSError) as error:
            logging.warning("%s left out: %s", path, error)
            return []
        return clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for step in range(len(self.clips)):
            try:
                return self._read(self.clips[(index + step) % len(self.clips)])
            except ValueError as error:
                logging.warning("clip replaced by the one after it: %s", error)
        raise ValueError(f"every clip in {str(self._folder)!r} is damaged")

    def _read(self, clip: Clip) -> dict[str, Any]:
        shape = (self._frames, self._height, self._width)
        source = read_frames(clip.source, clip.start, *shape)
        target = read_frames(clip.target, clip.start, *shape) if clip.target else source
        paired = clip.target is not None
        return {"source": source, "target": target, "prompt": clip.prompt, "paired": paired}


def footage(
    folder: str | Path,
    *,
    frames: int,
    height: int,
    width: int,
    batch: int,
    seed: int,
    prompt_bytes: int = MAX_BYTES,
    threads: int = 4,
) -> grain.IterDataset:
    """Endless batches of clips from `folder`, shuffled anew in each pass, decoded in threads.

    Each is a dict: `source` and `target` uint8 `[B, F, H, W, 3]`, `prompt` a list of B strings,
    `paired` bool `[B]`. Batch `n` depends on `seed` and `n` alone: an iterator given
    `set_state({"next_index": n})` goes on exactly there.
    """
    source = FootageSource(
        folder, frames=frames, height=height, width=width, prompt_bytes=prompt_bytes
    )
    clips = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    batches = clips.batch(batch, drop_remainder=True, batch_fn=_stack)
    return batches.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads))


def _stack(items: Sequence[Any]) -> dict[str, Any]:
    return {
        "source": np.stack([item["source"] for item in items]),
        "target": np.stack([item["target"] for item in items]),
        "prompt": [item["prompt"] for item in items],
        "paired": np.array([item["paired"] for item in items]),
    }


def _warn_of_difference(source: Video, target: Video) -> None:
    same_length = len(source.pts) == len(target.pts)
    if not same_length or abs(source.fps / target.fps - 1) > 0.02:
        logging.warning(
            "%s has %d frames at %.4g per second, %s has %d at %.4g; the first of both are paired, "
            "as many as the shorter one has",
            *(source.path, len(source.pts), source.fps, target.path, len(target.pts), target.fps),
        )


def _index(path: Path) -> Video:
    """The times of all frames of a file, read from its packets: nothing is decoded."""
    with containers.open_input(str(path)) as container:
        stream = containers.video_stream(container, str(path))
        kind, fps = container.format.name, float(containers.frame_rate(stream))
        timed = containers.is_timed(container, stream)
        try:
            packets = [
                (p.dts if p.pts is None else p.pts, p.dts, p.is_keyframe)
                for p in container.demux(stream)
                if p.size and not p.is_discard
            ]
        except FFmpegError as error:
            raise ValueError(f"{path} is damaged ({containers.reason(error)})") from error
    shown = [time for time, _, _ in packets if time is not None]
    decoded = [time for _, time, _ in packets if time is not None]
    timed = timed and len(set(shown)) == len(packets) > 0
    if not timed or decoded != sorted(decoded):  # as where recordings are joined, each with a clock
        raise ValueError(f"{path} does not say when its frames are shown; convert it to .mp4")
    # MPEG-TS has no index, and is searched by when frames are decoded.
    in_ts = kind == "mpegts"
    keys = [(t, dts if in_ts else t) for t, dts, is_key in packets if is_key and t is not None]
    keys.sort()
    # What comes before the first key frame, where a recording began amid a stream, does not decode.
    times = sorted(t for t in shown if not keys or t >= keys[0][0])
    # MPEG-PS makes times up after a seek, which can be those of other frames.
    keys = [(times[0], None), *(keys[1:] if kind != "mpeg" else [])]
    return Video(str(path), tuple(times), tuple(keys), fps)


def read_frames(
    video: Video, start: int, frames: int, height: int, width: int
) -> UInt8[np.ndarray, "{frames} {height} {width} 3"]:
    """`frames` consecutive frames of `video`, decoded from the key frame before `start`, or from
    the file's start where seeking is not to be trusted (.mpg) or misses.

    Raises ValueError where one of them does not decode.
    """
    wanted = {pts: n for n, pts in enumerate(video.pts[start : start + frames])}
    first, last = video.pts[start], video.pts[start + frames - 1]
    clip = np.empty((frames, height, width, 3), np.uint8)
    reformatter = VideoReformatter()
    key = video.keys[bisect_right(video.keys, first, key=itemgetter(0)) - 1]
    for at in dict.fromkeys((key[1], None)):
        missing = dict(wanted)
        with containers.open_input(video.path) as container:
            stream = containers.video_stream(container, video.path)
            stream.thread_type = "NONE"  # clips are decoded side by side instead
            try:
                if at is not None:
                    container.seek(at, stream=stream, backward=True)
                for frame in _frames_until(container, stream, last):
                    if (n := missing.pop(frame.pts, None)) is not None:
                        clip[n] = containers.to_image(frame, height, width, reformatter)
            except FFmpegError as error:
                logging.debug("%s: %s", video.path, error)
        if not missing:
            return clip
    raise ValueError(f"{video.path} does not decode from frame {start} to {start + frames}")


def _frames_until(container: Any, stream: Any, last: int):
    for frame in container.decode(stream):
        yield frame
        if frame.pts is not None and frame.pts >= last:
            return
