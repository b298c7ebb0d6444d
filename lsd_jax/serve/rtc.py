"""WebRTC: a session's pictures in, its pictures and sound out, over one peer connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import candidate_from_sdp
from av import VideoFrame

from lsd_jax.serve import convert, rtc_compat
from lsd_jax.serve.metrics import Metrics
from lsd_jax.serve.sdp import MAX_CANDIDATES, answer_sdp, check_sdp
from lsd_jax.serve.sessions import LiveSession
from lsd_jax.serve.settings import Settings
from lsd_jax.serve.sound import SoundTrack

_log = logging.getLogger("lsd.rtc")
_CLOCK = Fraction(1, 90_000)
NEGOTIATION_S = 5.0
CONNECTION_S = 20.0
MAX_FAILED = 8


class NewestTrack(VideoStreamTrack):
    """The newest pictures of a session, for the encoder to take as soon as it can."""

    def __init__(self, session: LiveSession, note_sent: Callable[[float], None]):
        super().__init__()
        self._session, self._note_sent = session, note_sent
        self._started = time.perf_counter()
        self._given_s: float | None = None

    async def recv(self) -> VideoFrame:
        """The newest picture that was not sent yet."""
        if self._given_s is not None:
            self._note_sent(time.perf_counter() - self._given_s)
        try:
            sample = await self._session.video.take()
        except EOFError:
            self.stop()
            raise MediaStreamError from None
        frame = await asyncio.to_thread(convert.to_frame, sample.data, sample.output)
        frame.pts = round((time.perf_counter() - self._started) * 90_000)
        frame.time_base = _CLOCK
        self._session.note_sent(sample)
        self._given_s = time.perf_counter()
        return frame


class Peer:
    """One peer connection of `session`, which answers as many as `offers` offers or makes one.
    `close` may be called at any time, more than once."""

    def __init__(self, session: LiveSession, settings: Settings, metrics: Metrics, offers: int = 1):
        rtc_compat.install()
        self._session, self._metrics = session, metrics
        self._tasks: set[asyncio.Task] = set()
        self._named: set[str] = set()  # candidates in descriptions
        self._trickled = self._failed = 0
        self._closed = False
        self._connection, self._offers, self.used = self._connect(), offers, False

    def _connect(self) -> RTCPeerConnection:
        self._camera: MediaStreamTrack | None = None
        self._receiving: asyncio.Task | None = None
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.on("connectionstatechange", lambda: self._on_state(connection))
        return connection

    async def answer(self, sdp: str, sends: bool = True) -> str:
        """The answer to an offer; without `sends`, only the camera is taken. Raises ValueError,
        with what to do."""
        if not self._offers:
            raise ValueError("this session has answered an offer already; open another session")
        self._check(sdp, "offer")
        self._offers, self.used = self._offers - 1, True
        try:
            async with asyncio.timeout(NEGOTIATION_S):
                offer = RTCSessionDescription(sdp=sdp, type="offer")
                await self._connection.setRemoteDescription(offer)
                self._direct(sends)
                await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # parsers of SDP raise nearly anything
            broken, self._connection = self._connection, self._connect()
            self._failed += 1
            if self._failed < MAX_FAILED:  # the next offer may be better
                self._offers, self.used = self._offers + 1, False
            await _close(broken)
            raise _not_understood("offer", error) from error
        sent = [t.sender.track for t in self._connection.getTransceivers()]
        self._session.sounds |= any(track is not None and track.kind == "audio" for track in sent)
        self._spawn(self._expect_connection(self._connection))
        return answer_sdp(self._connection.localDescription.sdp, sdp)

    async def offer(self) -> str:
        """An offer of the session's pictures, and of its sound where it has some."""
        self.used = True
        for track in self._tracks().values():
            self._connection.addTransceiver(track, "sendonly")
            self._session.sounds |= track.kind == "audio"
        await self._connection.setLocalDescription(await self._connection.createOffer())
        self._spawn(self._expect_connection(self._connection))
        return self._connection.localDescription.sdp

    async def accept(self, sdp: str) -> None:
        """Takes the answer to our offer. Raises ValueError, with what to do."""
        self._check(sdp, "answer")
        try:
            async with asyncio.timeout(NEGOTIATION_S):
                answer = RTCSessionDescription(sdp=sdp, type="answer")
                await self._connection.setRemoteDescription(answer)
        except Exception as error:  # parsers of SDP raise nearly anything
            raise _not_understood("answer", error) from error

    def _check(self, sdp: str, what: str) -> None:
        """Raises ValueError for a description that is none of a browser's, or has more candidates
        than there may be with those before; a later offer tells the same ones again."""
        found = check_sdp(sdp, what)
        named = self._named.union(found)
        if max(len(found), len(named) + self._trickled) > MAX_CANDIDATES:
            raise ValueError(
                f"the {what} brings more than {MAX_CANDIDATES} candidates; send a browser's"
            )
        self._named = named

    async def _expect_connection(self, connection: RTCPeerConnection) -> None:
        await asyncio.sleep(CONNECTION_S)
        if connection.connectionState != "connected":
            await self._session.end("connection_timeout")

    def _tracks(self) -> dict[str, MediaStreamTrack]:
        """What there is to send, by kind."""
        tracks: dict[str, MediaStreamTrack] = {"video": NewestTrack(self._session, self._note_sent)}
        if sound := self._session.sound:
            tracks["audio"] = SoundTrack(sound)
        return tracks

    def _note_sent(self, seconds: float) -> None:
        """The picture before was encoded and sent in so many `seconds`."""
        for sender in self._connection.getSenders():
            found = rtc_compat.encoding(sender)
            if found is not None and sender.kind == "video":
                self._metrics.bwe.set(found.target_bps)
                self._metrics.stage.labels("encode").observe(found.encode_s)
                self._metrics.stage.labels("send").observe(max(0.0, seconds - found.encode_s))

    def _direct(self, sends: bool) -> None:
        """Settles what each section that was offered is for: the first camera comes in, our
        pictures and sound go out where they would be taken, and nothing else goes anywhere."""
        out = self._tracks() if sends else {}
        camera, watches = None, bool(self._session.manifest["video_inputs"])
        for transceiver in self._connection.getTransceivers():
            ours, kind = rtc_compat.offered_direction(transceiver), transceiver.kind
            arrives = watches and kind == "video" and ours in ("sendrecv", "recvonly")
            if camera is None and arrives:
                camera = transceiver
            if ours in ("sendrecv", "sendonly") and kind in out:
                transceiver.sender.replaceTrack(out.pop(kind))
                transceiver.direction = "sendrecv" if transceiver is camera else "sendonly"
            else:
                transceiver.direction = "recvonly" if transceiver is camera else "inactive"
        if "video" in out:
            raise ValueError("it receives no video; add a video transceiver")
        if camera is not None:
            self._watch(camera.receiver.track)

    def _watch(self, track: MediaStreamTrack) -> None:
        """Takes the pictures of this camera, and no longer those of the one before it."""
        if track is self._camera:
            return
        if self._receiving is not None:
            self._receiving.cancel()
        self._camera, self._receiving = track, self._spawn(self._receive(track))

    async def add_candidate(self, candidate: dict[str, Any] | None) -> None:
        """A trickled candidate of the peer's; one that cannot be understood is ignored, and so are
        those after the first 64, of which descriptions may have had some."""
        text = str((candidate or {}).get("candidate", "")).partition(":")[2]
        known = len(self._named) + self._trickled
        if not text or len(text) > 1000 or known >= MAX_CANDIDATES:
            return
        self._trickled += 1
        try:
            found = candidate_from_sdp(text)
            index = (candidate or {}).get("sdpMLineIndex")
            found.sdpMid = str((candidate or {}).get("sdpMid", ""))
            found.sdpMLineIndex = index if isinstance(index, int) else 0
            async with asyncio.timeout(NEGOTIATION_S):
                await self._connection.addIceCandidate(found)
        except Exception as error:  # parsers of candidates raise nearly anything
            _log.debug("a candidate was ignored: %r", error)

    async def close(self) -> None:
        """Lets go of the connection, whatever state it is in; the session goes on without it."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await _close(self._connection)

    async def _receive(self, track: Any) -> None:
        dropped = 0
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            new, dropped = rtc_compat.dropped(track) - dropped, rtc_compat.dropped(track)
            self._metrics.dropped.labels("decoded").inc(new)
            self._session.offer(frame, time.time() * 1e3)

    def _on_state(self, connection: RTCPeerConnection) -> None:
        state = connection.connectionState
        ours = connection is self._connection and not self._closed
        if ours and state in ("failed", "closed") and not self._session.ended.done():
            self._spawn(self._session.end(f"connection_{state}"))

    def _spawn(self, work: Any) -> asyncio.Task:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _not_understood(what: str, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ValueError(f"the {what} was not understood ({reason}); send a browser's")


async def _close(connection: RTCPeerConnection) -> None:
    try:
        async with asyncio.timeout(NEGOTIATION_S):
            await connection.close()
    except Exception as error:  # a half-open connection raises nearly anything
        _log.debug("closing a connection failed: %r", error)
