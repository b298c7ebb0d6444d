"""LiveKit's signalling, protocol v0, for what a session needs: a room of one client and one server,
without an SFU. One connection brings the client's camera, another our pictures and sound.

Written from the published protocol (Apache-2.0 package livekit-protocol) and its MIT-licensed
clients' behaviour.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from typing import Any

import jwt
from aiohttp import WSMsgType, web
from google.protobuf.message import DecodeError
from livekit.protocol import models, rtc

from lsd_jax import __version__
from lsd_jax.serve.client import POLICY, SocketClient
from lsd_jax.serve.guard import ice_servers
from lsd_jax.serve.registry import Registry
from lsd_jax.serve.rtc import Peer
from lsd_jax.serve.sessions import LiveSession
from lsd_jax.serve.tokens import Unauthorized

_log = logging.getLogger("lsd.serve")
JOIN_S = 60
"""In which a client must have joined the room that it was told of, or its session ends."""
OFFERS, TRACKS = 8, 8
"""Of one client: offers answered, since each track published is another; tracks taken note of."""
LONGEST_CANDIDATE = 4000
PING_INTERVAL_S, PING_TIMEOUT_S = 5, 15
PUBLISHER, SUBSCRIBER = rtc.SignalTarget.PUBLISHER, rtc.SignalTarget.SUBSCRIBER
OURS, THEIRS = "PA_server", "PA_client"
IDENTITY = "inference-server-0"
"""Decart's SDKs show the tracks of such participants only."""


class Rooms:
    """The rooms that may be joined: a session's, once, by who has the token made for it."""

    def __init__(self):
        self._key = os.urandom(32)
        self._sessions: dict[str, LiveSession] = {}
        self._tasks: set[asyncio.Task] = set()

    def open(self, session: LiveSession) -> str:
        """The token by which the room of `session` may be joined, while that lives."""
        self._sessions[session.id] = session
        expected = asyncio.create_task(self._expect(session))
        self._tasks.add(expected)
        expected.add_done_callback(self._tasks.discard)
        session.ended.add_done_callback(lambda _: self._forget(session, expected))
        claims = {"iss": "lsd-jax", "sub": THEIRS, "exp": int(time.time()) + JOIN_S}
        grant = {"room": session.id, "roomJoin": True, "canPublish": True, "canSubscribe": True}
        return jwt.encode({**claims, "video": grant}, self._key, algorithm="HS256")

    async def _expect(self, session: LiveSession) -> None:
        await asyncio.sleep(JOIN_S)
        if session.id in self._sessions:
            await session.end("room_not_joined")

    def _forget(self, session: LiveSession, expected: asyncio.Task) -> None:
        self._sessions.pop(session.id, None)
        expected.cancel()

    def find(self, token: str) -> LiveSession:
        """The session whose room `token` opens. Raises Unauthorized."""
        try:
            options: Any = {"require": ["exp"]}
            claims = jwt.decode(token, self._key, ["HS256"], issuer="lsd-jax", options=options)
        except (jwt.InvalidTokenError, UnicodeEncodeError):
            raise Unauthorized("invalid room token; join anew by /v1/stream") from None
        session = self._sessions.get(claims["video"]["room"])
        if session is None:
            raise Unauthorized("this room is over or was joined already; join anew by /v1/stream")
        return session

    def enter(self, token: str) -> LiveSession:
        """As `find`, and nobody enters that room again. Raises Unauthorized."""
        session = self.find(token)
        del self._sessions[session.id]
        return session


class LiveKitClient(SocketClient):
    """Drives the media of `session` for one WebSocket; the session ends with it."""

    def __init__(self, registry: Registry, socket: web.WebSocketResponse, session: LiveSession):
        super().__init__(registry, socket, None)
        self._session = self._live = session
        self._camera = Peer(session, self._settings, registry.metrics, OFFERS)
        self._shows = Peer(session, self._settings, registry.metrics)
        self._tracks = 0

    async def run(self) -> None:
        """Serves the client until it leaves, or the session ends."""
        over = lambda _: self._spawn(self._end_room())  # noqa: E731
        self._live.ended.add_done_callback(over)
        try:
            await self._tell(join=self._room())
            sdp = _named(await self._shows.offer())
            await self._tell(offer=rtc.SessionDescription(type="offer", sdp=sdp, id=1))
            await self._listen()
        except ValueError as error:
            await self._hang_up(POLICY, str(error))
        finally:
            self._live.ended.remove_done_callback(over)
            await self._leave()
            await asyncio.gather(self._camera.close(), self._shows.close())

    async def _listen(self) -> None:
        """Answers what the client says. Raises ValueError for what none of LiveKit's says."""
        async for message in self._socket:
            if message.type is not WSMsgType.BINARY or not self._rate.take():
                raise ValueError("not LiveKit's; send binary messages, and not so often")
            try:
                request = rtc.SignalRequest.FromString(message.data)
            except DecodeError:
                raise ValueError("no SignalRequest of LiveKit's; use one of its clients") from None
            match request.WhichOneof("message"):
                case "offer":
                    sdp = await self._camera.answer(request.offer.sdp, sends=False)
                    answer = rtc.SessionDescription(type="answer", sdp=sdp, id=request.offer.id)
                    await self._tell(answer=answer)
                case "answer":
                    await self._shows.accept(request.answer.sdp)
                case "trickle":
                    await self._trickle(request.trickle)
                case "add_track":
                    await self._add_track(request.add_track)
                case "ping":
                    await self._tell(pong=_now_ms())
                case "ping_req":
                    sent = request.ping_req.timestamp
                    await self._tell(
                        pong_resp=rtc.Pong(last_ping_timestamp=sent, timestamp=_now_ms())
                    )
                case "leave":
                    return

    async def _trickle(self, trickle: rtc.TrickleRequest) -> None:
        if len(trickle.candidateInit) > LONGEST_CANDIDATE:
            raise ValueError("a candidate is too long; send a browser's")
        try:
            candidate = json.loads(trickle.candidateInit)
        except (ValueError, RecursionError):
            raise ValueError("a candidate is no JSON; send what a browser's toJSON gives") from None
        if isinstance(candidate, dict):
            peer = self._camera if trickle.target == PUBLISHER else self._shows
            await peer.add_candidate(candidate)

    async def _add_track(self, asked: rtc.AddTrackRequest) -> None:
        self._tracks += 1
        if self._tracks > TRACKS:
            raise ValueError(f"more than {TRACKS} tracks; publish one camera")
        track = models.TrackInfo(
            sid=f"TR_client{self._tracks}", type=asked.type, name=asked.name[:200],
            source=asked.source, width=asked.width, height=asked.height, muted=asked.muted,
        )  # fmt: skip
        await self._tell(
            track_published=rtc.TrackPublishedResponse(cid=asked.cid[:200], track=track)
        )

    def _room(self) -> rtc.JoinResponse:
        """The room as its client finds it: ourselves, with what we will send."""
        session, shows = self._live, []
        if output := session.video_output:
            shows.append(
                models.TrackInfo(
                    sid="TR_video", type=models.TrackType.VIDEO, name=output["name"],
                    source=models.TrackSource.CAMERA, mime_type="video/VP8",
                    width=output["width"], height=output["height"],
                )
            )  # fmt: skip
        if output := session.audio_output:
            shows.append(
                models.TrackInfo(
                    sid="TR_audio", type=models.TrackType.AUDIO, name=output["name"],
                    source=models.TrackSource.MICROPHONE, mime_type="audio/opus",
                )
            )  # fmt: skip
        ice = [rtc.ICEServer(**one) for one in ice_servers(self._settings)]
        active = models.ParticipantInfo.State.ACTIVE
        may = models.ParticipantPermission(can_publish=True, can_subscribe=True)
        us = models.ParticipantInfo(
            sid=OURS, identity=IDENTITY, state=active, tracks=shows, is_publisher=True
        )
        return rtc.JoinResponse(
            room=models.Room(sid=f"RM_{session.id}", name=session.id),
            participant=models.ParticipantInfo(
                sid=THEIRS, identity="client", state=active, permission=may
            ),
            other_participants=[us], subscriber_primary=True, ice_servers=ice,
            server_version=__version__,
            server_info=models.ServerInfo(version=__version__, protocol=15),
            enabled_publish_codecs=[models.Codec(mime=f"video/{c}") for c in ("H264", "VP8")],
            ping_interval=PING_INTERVAL_S, ping_timeout=PING_TIMEOUT_S,
        )  # fmt: skip

    async def _tell(self, **message: Any) -> None:
        if self._socket.closed:
            return
        try:
            await self._socket.send_bytes(rtc.SignalResponse(**message).SerializeToString())
        except ConnectionError:
            _log.debug("a client left before it could be told %s", *message)

    async def _end_room(self) -> None:
        """Tells that the session is over, and that there is nothing to come back to."""
        reason = models.DisconnectReason.ROOM_DELETED
        disconnect = rtc.LeaveRequest.Action.DISCONNECT
        await self._tell(leave=rtc.LeaveRequest(reason=reason, action=disconnect))
        await self._hang_up()


def _now_ms() -> int:
    return int(time.time() * 1e3)


def _named(sdp: str) -> str:
    """Our offer with its streams named as LiveKit's clients expect: participant and track."""
    head, *sections = re.split(r"(?=^m=)", sdp, flags=re.MULTILINE)
    for n, section in enumerate(sections):
        track = f"TR_{section[2:].partition(' ')[0]}"
        name = rf"\g<1>{OURS}|{track} {track}"
        sections[n] = re.sub(r"^(a=(?:ssrc:\d+ )?msid:)\S+ \S+", name, section, flags=re.MULTILINE)
    return head + "".join(sections)
