"""Video in and out: files, folders of images and cameras, decoded and encoded in the background."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import queue
import shutil
import threading
import uuid
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from lsd_jax.data import containers, pictures, writers

QUEUE = 8  # frames decoded ahead, and frames waiting to be encoded
_END = object()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class VideoSource:
    """The frames of a video file, a folder of images or a camera, at the model's size.

    Iterating, which can be done once, yields `(image, time_s)`: contiguous RGB of
    `[height, width, 3]` and the seconds since the video's start. Decoding runs ahead in a thread
    by at most `QUEUE` frames; of a camera only the newest frame is kept.

    Args:
        path: a file, a folder of images (read in natural order), or a camera: `camera:0`,
            `/dev/video0`.
        height, width: what frames are stretched to.

    Attributes:
        size: height and width that the video is meant to be shown at, turned as its metadata says.
        fps: mean frame rate.
        frames: how many frames are expected, or None where that is not known.
        duration_s: their length in seconds, or None.

    Raises ValueError, with what to do, where there is nothing to read.
    """

    def __init__(self, path: str | Path, height: int, width: int):
        self._path, self._height, self._width = str(path), height, width
        self.live = containers.camera(self._path) is not None
        self._queue: queue.Queue = queue.Queue(1 if self.live else QUEUE)
        self._stop, self._thread, self._container = threading.Event(), None, None
        try:
            if Path(path).is_dir():
                self._open_folder(Path(path))
            else:
                self._open_file()
        except BaseException:
            self.close()
            raise

    def _open_folder(self, folder: Path) -> None:
        files = pictures.image_files(folder)
        if not files:
            known = ", ".join(pictures.SUFFIXES)
            raise ValueError(f"no images in the folder {str(folder)!r}; it needs some of: {known}")
        first = pictures.read_image(files[0])
        self.size: tuple[int, int] = first.shape[0], first.shape[1]
        self.fps: Fraction = containers.DEFAULT_FPS
        self.frames: int | None = len(files)
        self.duration_s: float | None = float(len(files) / self.fps)
        images = itertools.chain([first], map(pictures.read_image, files[1:]))
        self._images = (
            (pictures.resize(image, self._height, self._width), float(index / self.fps))
            for index, image in enumerate(images)
        )

    def _open_file(self) -> None:
        self._container = containers.open_input(self._path)
        stream = containers.video_stream(self._container, self._path)
        decoded = containers.decode(self._container, stream, self._path)
        first = next(decoded, None)
        if first is None:
            raise ValueError(f"{self._path} has no frame that decodes; give a video that plays")
        self.size = containers.shown_size(first, stream)
        self.fps = containers.frame_rate(stream)
        length = None if self.live else containers.duration_s(self._container, stream)
        self.frames = stream.frames or (round(length * self.fps) if length else None)
        self.duration_s = length or (float(self.frames / self.fps) if self.frames else None)
        start = first.time if self.live else containers.start_s(stream)
        self._images = self._convert(itertools.chain([first], decoded), start or 0.0)

    def _convert(self, frames: Iterator[Any], start: float) -> Iterator[tuple[np.ndarray, float]]:
        """Images at the model's size and their times, which never go back."""
        reformatter, period = VideoReformatter(), float(1 / self.fps)
        last_s, end_s, offset_s = -period, 0.0, -start
        for frame in frames:
            time_s = last_s + period if frame.time is None else frame.time + offset_s
            if time_s < last_s - containers.JUMP_S:  # a joined recording, with a clock of its own
                offset_s += last_s + period - time_s
                time_s = last_s + period
            last_s = max(time_s, last_s, 0.0)
            length = frame.duration * frame.time_base if frame.time_base else 0
            end_s = last_s + (float(length) or period)
            yield containers.to_image(frame, self._height, self._width, reformatter), last_s
        expected = self.duration_s
        if expected and end_s < min(expected * 0.9, expected - 2 * period):
            where = f"{end_s:.1f} of about {expected:.1f} seconds"
            logging.warning("%s ends after %s; it may be cut short", self._path, where)

    def _fill(self) -> None:
        try:
            for item in self._images:
                if not self._put(item, newest=self.live):
                    return
            self._put(_END)
        except Exception as error:  # raised again where the frames are read
            self._put(error)

    def _put(self, item, newest: bool = False) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0 if newest else 0.1)
                return True
            except queue.Full:
                if newest:
                    with contextlib.suppress(queue.Empty):
                        self._queue.get_nowait()
        return False

    def __iter__(self) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], float]]:
        if self._thread is not None or self._stop.is_set():
            raise ValueError(f"{self._path} was read already; open it again for another pass")
        self._thread = threading.Thread(target=self._fill, name="lsd-read", daemon=True)
        self._thread.start()
        try:
            while (item := self._queue.get()) is not _END:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stops the reading thread and closes the file; further calls do nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            if self._thread.is_alive():  # a camera that hangs: leave it to the process's end
                return
        if self._container is not None:
            self._container.close()
            self._container = None
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(_END)


class VideoSink:
    """Writes frames to a video file, or as PNGs to a folder, encoding in a thread.

    All is written beside `path` under a hidden name and takes its place on a clean close, so that
    nothing half-written ever bears that name. Leaving the `with` block by an exception removes
    it; by Ctrl-C, or after `keep_partial()`, what was done is finished and kept.

    Args:
        path: a file, whose suffix (one of `writers.FORMATS`) says its kind, or a folder: a name
            without a suffix or with a trailing slash.
        size: height and width to write; odd ones are rounded up in a file.
        fps: frame rate, for frames that come without a time.
        audio_from: a file whose audio is passed through; one without any is fine.

    Raises ValueError, with what to do, where `path` cannot be written; a full disk does so from
    `write` or from the close.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int],
        fps: Fraction,
        audio_from: str | Path | None = None,
    ):
        self.path, self.frames = Path(path), 0
        self._fps, self._time_s = Fraction(fps).limit_denominator(1001), float(-1 / fps)
        self._keep, self._closed, self._error = False, False, None
        self._queue: queue.Queue = queue.Queue(QUEUE)
        self._writer: Any = None
        self._thread = threading.Thread(target=self._drain, name="lsd-write", daemon=True)
        hidden = f".{self.path.stem}.{uuid.uuid4().hex[:8]}.partial{self.path.suffix}"
        self._hidden, self._file = self.path.absolute().with_name(hidden), None
        try:
            if writers.check_target(path):
                self._hidden.mkdir()
                self._writer = writers.FolderWriter(self._hidden, size)
            else:
                self._file = self._hidden.open("xb")
                has_audio = audio_from is not None and Path(audio_from).is_file()
                audio = str(audio_from) if has_audio else None
                suffix = self.path.suffix.lower()
                self._writer = writers.FileWriter(self._file, suffix, size, self._fps, audio)
        except BaseException as error:
            self._remove()
            raise self._explained(error) from error
        self._thread.start()

    def write(self, image: UInt8[np.ndarray, "h w 3"], time_s: float | None = None) -> None:
        """Takes one frame, shown at `time_s` seconds, or one frame's time after the last."""
        if self._closed:
            raise ValueError(f"{self.path} is closed already")
        if self._error is not None:
            raise self._explained(self._error)
        self._time_s = self._time_s + float(1 / self._fps) if time_s is None else time_s
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image))  # a copy
        self._queue.put((frame, self._time_s))
        self.frames += 1

    def _drain(self) -> None:
        while (item := self._queue.get()) is not _END:
            if self._error is None:  # after an error frames are dropped until the close
                try:
                    self._writer.add(*item)
                except Exception as error:
                    self._error = error

    def keep_partial(self) -> None:
        """From here on, what was written is kept even if an exception ends the `with` block."""
        self._keep = True

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, kind, *_) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if kind is None or interrupted or self._keep:
            self.close(whole=kind is None)
        else:
            self.abort()

    def close(self, whole: bool = True) -> None:
        """Finishes the file and gives it its name; `whole=False` clips the audio at the last frame.

        With no frame written there is nothing to keep: a ValueError, unless not `whole`.
        """
        if self._closed:
            return
        try:
            self._join()
            if self._error is not None:
                raise self._error
            if not self.frames:
                if whole:
                    raise ValueError(f"no frames came, so {self.path} was not written")
                logging.warning("no frames came, so %s was not written", self.path)
                return
            self._writer.finish(whole and not self._keep)
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
            elif self.path.is_dir():
                self.path.rmdir()  # it is empty, or the rename below says so
            os.replace(self._hidden, self.path)
        except (OSError, FFmpegError) as error:
            raise self._explained(error) from error
        finally:
            self._remove()

    def abort(self) -> None:
        """Stops and removes all that was written."""
        if not self._closed:
            try:
                self._join()
            finally:
                self._remove()

    def _join(self) -> None:
        self._closed = True
        self._queue.put(_END)
        self._thread.join()

    def _remove(self) -> None:
        if self._writer is not None and not self._thread.is_alive():
            self._writer.abort()
        with contextlib.suppress(OSError):  # a full disk speaks up again as buffers are flushed
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):  # a name that is too long could not be made either
            if self._hidden.is_dir():
                shutil.rmtree(self._hidden, ignore_errors=True)
            self._hidden.unlink(missing_ok=True)

    def _explained(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError | FFmpegError):
            return error
        do = (
            "make room or give another place"
            if error.errno in _FULL
            else "give another name or kind"
        )
        return ValueError(f"{self.path} cannot be written ({containers.reason(error)}); {do}")
