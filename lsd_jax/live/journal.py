"""A session on disk: all that its pictures depend on, in the order in which it took effect.

A folder holds `log.jsonl`, a first line about the session and then one per event; `input.mkv`, the
frames that were stepped, without loss (FFV1); and the pictures and snapshots that events name.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from lsd_jax.data import pictures

_log = logging.getLogger("lsd.journal")
FORMAT = 1
LATE = 256
"""Events that may wait for the disk; a session does not wait for it, but is recorded no further."""
MILLISECOND = Fraction(1, 1000)


def digest(image: UInt8[np.ndarray, "h w 3"]) -> str:
    """Of a picture's bytes."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


class Journal:
    """Writes a session into a new folder, in a thread of its own. Calls never block.

    What cannot be written ends the record, not the session; the log says so then.
    """

    def __init__(self, folder: Path, about: dict[str, Any]):
        # FFmpeg takes what is before a colon in a relative path for a protocol.
        self._folder, self._about = folder.absolute(), {"format": FORMAT, **about}
        self._queue: queue.Queue = queue.Queue(LATE)
        self._began, self._files, self._last_ms = time.monotonic(), 0, -1
        self._stopped, self._ending = "", threading.Event()
        self._thread = threading.Thread(target=self._work, name="lsd-journal", daemon=True)
        self._thread.start()
        atexit.register(self.wait)

    def note(self, event: str, **fields: Any) -> None:
        """An event; arrays and bytes among its fields become files."""
        self._put((event, fields))

    def frame(self, image: UInt8[np.ndarray, "h w 3"], shown: UInt8[np.ndarray, "h w 3"]) -> None:
        """A step: what came in, and what came out."""
        elapsed_ms = round((time.monotonic() - self._began) * 1e3)
        self._put(("frame", {"image": image, "shown": shown, "at_ms": elapsed_ms}))

    def close(self) -> None:
        """Ends the record; the thread writes what waits, and ends as well."""
        if not self._stopped:
            self._stop("the session ended")

    def wait(self, timeout_s: float = 10.0) -> None:
        """Ends the record and returns when it is written."""
        self.close()
        self._thread.join(timeout_s)

    def _put(self, item: tuple[str, dict[str, Any]]) -> None:
        if self._stopped:
            return
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._stop("the disk is slower than the session")

    def _stop(self, reason: str) -> None:
        self._stopped = reason
        self._ending.set()

    def _work(self) -> None:
        try:
            self._folder.mkdir(parents=True)
            with (self._folder / "log.jsonl").open("w", encoding="utf-8", buffering=1) as log:
                log.write(json.dumps(self._about) + "\n")
                with av.open(self._folder / "input.mkv", "w") as container:
                    video: Any = None
                    for event, fields in self._events():
                        if event == "frame":
                            video = video or _lossless(container, fields["image"].shape)
                            fields = self._encode(container, video, **fields)
                        kept = {name: self._keep(value) for name, value in fields.items()}
                        log.write(json.dumps({"event": event, **kept}) + "\n")
                    if video is not None:
                        container.mux(video.encode(None))
                log.write(json.dumps({"event": "end", "reason": self._stopped}) + "\n")
        except Exception:  # of the disk or an encoder; the session goes on without
            _log.exception("session %s is recorded no further", self._folder.name)
            self._stopped = self._stopped or "it could not be written"
            while not self._queue.empty():
                self._queue.get_nowait()
        finally:
            atexit.unregister(self.wait)

    def _events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What there is to write, until the record has ended and nothing waits."""
        while not (self._ending.is_set() and self._queue.empty()):
            with contextlib.suppress(queue.Empty):
                yield self._queue.get(timeout=0.1)

    def _encode(self, container: Any, video: Any, image, shown, at_ms: int) -> dict[str, Any]:
        picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="bgr0")
        self._last_ms = max(self._last_ms + 1, at_ms)
        picture.pts, picture.time_base = self._last_ms, MILLISECOND
        container.mux(video.encode(picture))
        return {"shown": digest(shown)}

    def _keep(self, value: Any) -> Any:
        """`value` as JSON; pictures and bytes by the name of the file that they are kept in."""
        if not isinstance(value, np.ndarray | bytes):
            return value
        self._files += 1
        if isinstance(value, bytes):
            name = f"{self._files:04d}.snapshot"
            (self._folder / name).write_bytes(value)
        else:
            name = f"{self._files:04d}.png"
            picture = value if value.ndim == 3 else np.stack([value] * 3, axis=-1)
            pictures.write_image(self._folder / name, picture)
        return name


def _lossless(container: Any, shape: tuple[int, ...]) -> Any:
    stream = container.add_stream("ffv1", 30)
    stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], "bgr0"
    stream.codec_context.time_base = MILLISECOND
    return stream


def read(folder: Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """What the first line of a record says, and its events. Raises ValueError where it is none."""
    path = folder / "log.jsonl"
    if not path.is_file():
        raise ValueError(
            f"no record in {str(folder)!r}; give a folder that lsd serve --record made"
        )
    try:
        about, *events = _lines(path.read_text(encoding="utf-8").splitlines())
        version = about["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); its session cannot be replayed") from error
    if version != FORMAT:
        raise ValueError(f"{path} is of format {version}; this version reads {FORMAT}")
    odd = [about] * (not _is_first(about)) + [found for found in events if not _is_event(found)]
    if odd:
        raise ValueError(f"{path} is damaged ({odd[0]!s:.99}); its session cannot be replayed")
    return about, iter(events)


def _lines(lines: list[str]) -> list[Any]:
    """What the lines hold, but for a last one that a full disk or a kill has cut short."""
    found = [json.loads(line) for line in lines[:-1]]
    with contextlib.suppress(ValueError):
        found += [json.loads(line) for line in lines[-1:]]
    return found


def _is_first(found: Any) -> bool:
    """Whether it has what a replay reads of a record's first line."""
    match found:
        case {"checkpoint": str(), "overrides": [*words], "commit": str() | None}:
            return all(isinstance(word, str) for word in words)
    return False


def _is_event(found: Any) -> bool:
    """Whether it is an event, with what a replay reads of it."""
    match found:
        case {"event": "begin", "seed": int(seed)}:
            return 0 <= seed < 2**31
        case (
            {"event": "condition", "prompt": str(), "reference": str() | None}
            | {"event": "mask", "mask": str()}
            | {"event": "restore", "snapshot": str()}
            | {"event": "frame", "shown": str()}
            | {"event": "reset" | "end"}
        ):
            return True
    return False
