"""A live session as the front sees it: newest pictures in and out, requests, its end."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from av import VideoFrame

from lsd_jax.runtime import InputError, Mailbox, State
from lsd_jax.serve import convert
from lsd_jax.serve.engines import EngineHandle
from lsd_jax.serve.metrics import Metrics
from lsd_jax.serve.settings import Settings
from lsd_jax.serve.sound import Sound

_log = logging.getLogger("lsd.serve")
MAX_INPUT = 64_000
"""Characters of an input's arguments as JSON; pictures are uploads."""
MAX_JPEG = 2_000_000
"""Bytes of one live picture; a model's input is smaller than a photo."""
MARGIN_S = 0.005
"""By which a picture is to be at its engine before the step ends: it may not wait for one."""
LATE_EVENTS = 64
"""Samples of outputs other than video that may wait for a client; the oldest give way."""


def _nobody(words: str) -> None:
    """Is told of a picture, taken or refused, where no client waits to hear of it."""


@dataclass(frozen=True)
class Picture:
    """One picture on its way in: a decoded frame or a JPEG, with its client's own stamp."""

    data: VideoFrame | bytes
    client_ts_ms: float
    received_s: float


@dataclass(frozen=True)
class Sample:
    """One sample on its way out. For video, the stamps are those of the picture it came of."""

    data: bytes
    output: dict[str, Any]
    client_ts_ms: float
    received_s: float | None
    seq: int


class LiveSession:
    """One client's session in a slot of `engine`.

    The next stage takes from `video`, the mailbox of the first video output, from `sound`, the
    first audio output, once it has set `sounds`, and from `events`. Who knows `secret` may drive
    it; `let_go` is what whoever drives it now does when another takes over.
    """

    def __init__(
        self, id: str, engine: EngineHandle, settings: Settings, metrics: Metrics, seed: int
    ):
        self.id, self.engine, self.seed = id, engine, seed
        self.secret = secrets.token_urlsafe(24)
        self.let_go: Callable[[], None] | None = None
        self.claimed = False  # by a first client
        self._opened = self._ending = self._failed = False
        self._state_moves = False
        self.manifest = engine.manifest
        self._settings, self._metrics = settings, metrics
        self._outputs = {one["name"]: one for one in self.manifest["outputs"]}
        self.video_output = next((o for o in self._outputs.values() if o["kind"] == "video"), None)
        self.video: Mailbox[Sample] = Mailbox()
        self.audio_output = next((o for o in self._outputs.values() if o["kind"] == "audio"), None)
        self.sound = Sound(self.audio_output) if self.audio_output else None
        self.sounds = False  # a transport carries `sound`; else its samples are events
        self.events: deque[Sample] = deque(maxlen=LATE_EVENTS)
        self.events_ready = asyncio.Event()
        self.on_taken: Callable[[str], None] = _nobody  # a picture left for the engine
        self.on_refused: Callable[[str], None] = _nobody  # a picture did not decode
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.opened_s, self.first_frame_s = time.monotonic(), None
        self.input_size: tuple[int, int] | None = None
        self.report: dict[str, Any] = {}
        self.frames_in = self.frames_out = 0
        self._ages_ms: deque[float] = deque(maxlen=128)
        self._unpaused = asyncio.Event()
        self._unpaused.set()
        self._inputs: dict[str, Any] = {one["name"]: one for one in self.manifest["video_inputs"]}
        self._boxes: dict[str, Mailbox[Picture]] = {name: Mailbox() for name in self._inputs}
        self._wanted = {name: asyncio.Event() for name in self._inputs}
        self._due_s = dict.fromkeys(self._inputs, 0.0)
        self._converted_s: deque[float] = deque(maxlen=8)
        self._stamps: dict[float, Picture] = {}
        self._seq = 0
        self._pumps = [asyncio.create_task(self._pump(name)) for name in self._inputs]
        engine.sessions.add(id)
        engine.send({"type": "open", "session": id, "seed": seed})

    @property
    def state(self) -> State:
        """Where it is in its life: READY is one whose client has yet to come."""
        if self.ended.done():
            return State.FAILED if self._failed else State.ENDED
        if self._ending:
            return State.CANCELING
        if not self._opened:
            return State.STARTING
        if not self._unpaused.is_set():
            return State.PAUSED
        return State.RUNNING if self.claimed else State.READY

    @property
    def paused(self) -> bool:
        """Whether it takes no pictures."""
        return not self._unpaused.is_set()

    def hold(self, let_go: Callable[[], None]) -> None:
        """Hands it to a client; the one before lets go of it."""
        self.release()
        self.claimed, self.let_go = True, let_go

    def release(self) -> None:
        """Takes it from its client, if it has one; the stream stays as it is."""
        let_go, self.let_go = self.let_go, None
        if let_go:
            let_go()
        self.on_taken, self.on_refused, self.sounds = _nobody, _nobody, False

    @property
    def dropped(self) -> int:
        """Pictures in and samples out that a newer one has replaced."""
        sound = self.sound.dropped if self.sound else 0
        return self.video.dropped + sound + sum(box.dropped for box in self._boxes.values())

    def offer(self, data: VideoFrame | bytes, client_ts_ms: float, name: str | None = None) -> None:
        """The newest picture of a video input; by default of the first. Raises InputError."""
        name = next(iter(self._inputs), "") if name is None else name
        box = self._boxes.get(name)
        if box is None:
            known = ", ".join(self._boxes) or "none; send no pictures"
            raise InputError("unknown_input", f"no video input {name!r}; this model has: {known}")
        if isinstance(data, bytes) and len(data) > MAX_JPEG:
            raise InputError(
                "too_large",
                f"a picture of {len(data):,} bytes is large; send at most {MAX_JPEG:,}",
            )
        self.frames_in += 1
        self._metrics.frames_in.inc()
        before = box.dropped
        box.put(Picture(data, client_ts_ms, time.perf_counter()))
        if box.dropped > before:
            self._metrics.dropped.labels("in").inc()

    async def call(self, name: str, args: object) -> None:
        """Gives the session an input; returns when it was taken. Raises InputError."""
        size = len(json.dumps(args, ensure_ascii=False))
        if size > MAX_INPUT:
            words = f"arguments of {size:,} characters are too many; send at most {MAX_INPUT:,}"
            raise InputError("too_large", words)
        await self._ask({"type": "input", "name": name, "args": args})

    async def upload(
        self, filename: str, mime_type: str, data: bytes, sha256: str | None = None
    ) -> str:
        """Holds a file for an input, and gives its id. Raises InputError."""
        if self.engine.congested:  # an upload waits for no engine that does not keep up
            raise InputError("queue_full", "the model is busy; upload again in a moment")
        header = {"type": "upload", "filename": filename, "mime_type": mime_type, "sha256": sha256}
        answer, _ = await self._ask(header, data)
        return answer["upload_id"]

    async def pause(self) -> None:
        """Takes no pictures until `resume`."""
        await self._ask({"type": "pause"})
        self._unpaused.clear()

    async def resume(self) -> None:
        """Goes on after `pause`, with pictures that come from now on."""
        await self._ask({"type": "resume"})
        for name, box in self._boxes.items():
            if box.take_nowait() is not None:
                self.on_taken(name)
        self._unpaused.set()

    async def snapshot(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        """Has the stream's whole state sent. Raises InputError."""
        with self._only_state():
            await send((await self._ask({"type": "snapshot"}))[1])

    async def restore(self, state: bytes) -> None:
        """Goes on from a snapshot. Raises InputError."""
        if self.engine.congested:
            raise InputError("queue_full", "the model is busy; restore again in a moment")
        with self._only_state():
            await self._ask({"type": "restore"}, state)

    @contextmanager
    def _only_state(self) -> Iterator[None]:
        """One whole state at a time is held here, until it is sent. Raises InputError."""
        if self._state_moves:
            raise InputError("queue_full", "a snapshot or restore is under way; await its ack")
        self._state_moves = True
        try:
            yield
        finally:
            self._state_moves = False

    async def end(self, reason: str) -> None:
        """Ends the session and frees its slot."""
        if not self.ended.done():
            self._ending = True
            await self._ask({"type": "end", "reason": reason}, check=False)
            self.finish(reason)

    def finish(self, reason: str, failed: bool = False) -> None:
        """Notes that the engine has ended the session, or is gone."""
        if self.ended.done():
            return
        self._failed, self.let_go = failed, None
        self.on_taken, self.on_refused, self.sounds = _nobody, _nobody, False
        self.ended.set_result(reason)
        self.engine.sessions.discard(self.id)
        for pump in self._pumps:
            pump.cancel()
        for box in (self.video, *self._boxes.values()):
            box.close()
        if self.sound:
            self.sound.closed = True
        self.events_ready.set()
        self._stamps.clear()

    def handle(self, header: dict[str, Any], body: bytes) -> None:
        """A message of the engine about this session."""
        match header["type"]:
            case "opened":
                self._opened = True
            case "want":
                self._due_s[header["input"]] = time.perf_counter() + header["in_ms"] / 1e3
                self._wanted[header["input"]].set()
            case "output":
                self._output(header, body)
            case "ended":
                self.finish(header["reason"], header["state"] == State.FAILED.value)

    def _output(self, header: dict[str, Any], body: bytes) -> None:
        output = self._outputs[header["output"]]
        came = self._stamps.pop(header["ts_ms"], None)
        self._seq += 1
        ts_ms = came.client_ts_ms if came else header["ts_ms"]
        sample = Sample(body, output, ts_ms, came.received_s if came else None, self._seq)
        if output is self.audio_output and self.sounds and self.sound:
            self.sound.put(body)
            return
        if output is not self.video_output:
            self.events.append(sample)
            self.events_ready.set()
            return
        if self.first_frame_s is None:
            self.first_frame_s = time.monotonic()
            self._metrics.ttff.observe(self.first_frame_s - self.opened_s)
        if came:
            self._metrics.stage.labels("engine").observe(time.perf_counter() - came.received_s)
        before = self.video.dropped
        self.video.put(sample)
        if self.video.dropped > before:
            self._metrics.dropped.labels("out").inc()

    def note_sent(self, sample: Sample) -> None:
        """Notes that a transport has handed a video sample to its client."""
        self.frames_out += 1
        self._metrics.frames_out.inc()
        if sample.received_s is not None:
            age_s = time.perf_counter() - sample.received_s
            self._ages_ms.append(age_s * 1e3)
            self._metrics.frame_age.observe(age_s)

    @property
    def age_ms_p50(self) -> float | None:
        """Median of the last 128 pictures' time in the server, from received to handed on."""
        return median(self._ages_ms) if self._ages_ms else None

    async def _pump(self, name: str) -> None:
        """Sends the engine the newest picture whenever it wants one, and converts no other; just in
        time, since a picture that waits for the end of a step grows old there."""
        wanted, box = self._wanted[name], self._boxes[name]
        size = self._inputs[name]["width"], self._inputs[name]["height"]
        while True:
            await wanted.wait()
            await self._unpaused.wait()
            lead_s = max(self._converted_s, default=0.0) + MARGIN_S
            await asyncio.sleep(self._due_s[name] - lead_s - time.perf_counter())
            picture = await box.take()
            self.on_taken(name)
            started = time.perf_counter()
            limit = self._settings.max_picture_pixels
            try:
                seen = await asyncio.to_thread(convert.picture_size, picture.data)
                image = await asyncio.to_thread(convert.to_rgb, picture.data, *size, limit)
            except Exception as error:  # decoders raise nearly anything; the next may be better
                _log.debug("a picture was refused: %r", error)
                self._metrics.bad_frames.inc()
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self.on_refused(f"{reason}; send a whole JPEG of at most {limit:,} pixels")
                continue
            self._note_size(seen)
            self._converted_s.append(time.perf_counter() - started)
            self._metrics.stage.labels("decode").observe(self._converted_s[-1])
            wanted.clear()
            ts_ms = picture.received_s * 1e3
            self._stamps[ts_ms] = picture
            while len(self._stamps) > 16:  # of pictures that the model made nothing of
                self._stamps.pop(next(iter(self._stamps)))
            header = {"type": "frame", "session": self.id, "input": name, "ts_ms": ts_ms}
            self.engine.send({**header, "seq": self.frames_in}, image)

    def _note_size(self, size: tuple[int, int]) -> None:
        self.input_size = size
        self._metrics.input_size.labels("width").set(size[0])
        self._metrics.input_size.labels("height").set(size[1])

    async def _ask(
        self, header: dict[str, Any], body: bytes = b"", check: bool = True
    ) -> tuple[dict[str, Any], bytes]:
        if self.ended.done():
            raise InputError("ended", "the session is over; open another")
        answer, data = await self.engine.ask({**header, "session": self.id}, body)
        self._metrics.inputs.labels(answer.get("code", "ok")).inc()
        if check and not answer["ok"]:
            raise InputError(answer["code"], answer["message"])
        return answer, data
