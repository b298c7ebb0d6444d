"""WebRTC: a session's pictures in and out over one peer connection."""

from __future__ import annotations

import asyncio
import logging
import time
from fractions import Fraction
from typing import Any

from aiortc import (
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
from lsd_jax.serve.sessions import LiveSession
from lsd_jax.serve.settings import Settings

_log = logging.getLogger("lsd.rtc")
_CLOCK = Fraction(1, 90_000)
NEGOTIATION_S = 5.0
CONNECTION_S = 20.0
MAX_SECTIONS, MAX_CANDIDATES = 8, 64


class NewestTrack(VideoStreamTrack):
    """The newest pictures of a session, for the encoder to take as soon as it can."""

    def __init__(self, session: LiveSession):
        super().__init__()
        self._session = session
        self._started = time.perf_counter()

    async def recv(self) -> VideoFrame:
        """The newest picture that was not sent yet."""
        try:
            sample = await self._session.video.take()
        except EOFError:
            self.stop()
            raise MediaStreamError from None
        frame = await asyncio.to_thread(convert.to_frame, sample.data, sample.output)
        frame.pts = round((time.perf_counter() - self._started) * 90_000)
        frame.time_base = _CLOCK
        self._session.note_sent(sample)
        return frame


class Peer:
    """One peer connection of `session`. `close` may be called at any time, more than once."""

    def __init__(self, session: LiveSession, settings: Settings, metrics: Metrics):
        rtc_compat.install()
        self._session, self._metrics = session, metrics
        self._tasks: set[asyncio.Task] = set()
        self._candidates = 0
        self._connection, self._answered = self._connect(), False

    def _connect(self) -> RTCPeerConnection:
        self._receiving = False
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.on("track", self._on_track)
        connection.on("connectionstatechange", lambda: self._on_state(connection))
        return connection

    async def answer(self, sdp: str) -> str:
        """The answer to an offer. Raises ValueError, with what to do."""
        if self._answered:
            raise ValueError("this session has answered an offer already; open another session")
        if sdp.count("\nm=") > MAX_SECTIONS:
            raise ValueError(f"the offer has more than {MAX_SECTIONS} media sections; send one")
        for line in ("a=fingerprint:", "a=ice-ufrag:", "a=ice-pwd:"):
            if line not in sdp:
                raise ValueError(f"the offer has no {line[:-1]}; send a browser's")
        self._answered = True
        try:
            async with asyncio.timeout(NEGOTIATION_S):
                offer = RTCSessionDescription(sdp=sdp, type="offer")
                await self._connection.setRemoteDescription(offer)
                self._send_video()
                await self._connection.setLocalDescription(await self._connection.createAnswer())
        except Exception as error:  # parsers of SDP raise nearly anything
            broken, self._connection = self._connection, self._connect()
            self._answered = False  # the next offer may be better
            await _close(broken)
            reason = f"{type(error).__name__}: {error}"[:200]
            raise ValueError(
                f"the offer was not understood ({reason}); send a browser's"
            ) from error
        self._spawn(self._expect_connection(self._connection))
        return rtc_compat.answer_sdp(self._connection.localDescription.sdp)

    async def _expect_connection(self, connection: RTCPeerConnection) -> None:
        await asyncio.sleep(CONNECTION_S)
        if connection.connectionState != "connected":
            await self._session.end("connection_timeout")

    def _send_video(self) -> None:
        """Sends our pictures on the first video section that would receive them."""
        for transceiver in self._connection.getTransceivers():
            offered = transceiver._offerDirection
            if transceiver.kind == "video" and offered in ("recvonly", "sendrecv"):
                transceiver.sender.replaceTrack(NewestTrack(self._session))
                transceiver.direction = "sendrecv" if offered == "sendrecv" else "sendonly"
                return
        raise ValueError("it receives no video; add a video transceiver")

    async def add_candidate(self, candidate: dict[str, Any] | None) -> None:
        """A trickled candidate of the peer's; one that cannot be understood is ignored, and so are
        those after the first 64."""
        text = str((candidate or {}).get("candidate", "")).partition(":")[2]
        if not text or len(text) > 1000 or self._candidates >= MAX_CANDIDATES:
            return
        self._candidates += 1
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
        """Lets go of the connection, whatever state it is in."""
        for task in self._tasks:
            task.cancel()
        await _close(self._connection)

    def _on_track(self, track: Any) -> None:
        if track.kind == "video" and not self._receiving:  # the first; a session has one camera
            self._receiving = True
            self._spawn(self._receive(track))

    async def _receive(self, track: Any) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            self._session.offer(frame, time.time() * 1e3)

    def _on_state(self, connection: RTCPeerConnection) -> None:
        state, ours = connection.connectionState, connection is self._connection
        if ours and state in ("failed", "closed") and not self._session.ended.done():
            self._spawn(self._session.end(f"connection_{state}"))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _close(connection: RTCPeerConnection) -> None:
    try:
        async with asyncio.timeout(NEGOTIATION_S):
            await connection.close()
    except Exception as error:  # a half-open connection raises nearly anything
        _log.debug("closing a connection failed: %r", error)
