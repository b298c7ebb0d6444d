"""`/v1/stream`: the realtime messages of Decart's public SDKs.

Written from the published behaviour of the MIT-licensed SDKs. Those to npm @decartai/sdk 0.0.68
bring SDP on the socket; later ones say `livekit_join` and bring their media to the room that they
are then told of (`livekit.py`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections import deque
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from lsd_jax.data.pictures import picture_kind
from lsd_jax.runtime import InputError
from lsd_jax.runtime.uploads import MAX_PIXELS
from lsd_jax.serve.client import OVERLOADED, POLICY, SocketClient
from lsd_jax.serve.guard import ice_servers
from lsd_jax.serve.livekit import Rooms
from lsd_jax.serve.protocol import ProtocolError
from lsd_jax.serve.registry import Full, Registry
from lsd_jax.serve.rtc import Peer
from lsd_jax.serve.sessions import MAX_INPUT, LiveSession

PASS_THROUGH = "leave it as it is"
"""What no picture and no prompt asks for, in the words of our own model."""
EARLY = 64
"""Messages that are kept for a client that waits for its turn, of together one message's size."""


class DecartClient(SocketClient):
    """Drives one session for one WebSocket of such an SDK."""

    def __init__(
        self,
        registry: Registry,
        socket: web.WebSocketResponse,
        address: tuple[str, int],
        max_session_s: float | None,
        rooms: Rooms,
        room_url: str,
    ):
        super().__init__(registry, socket, max_session_s)
        self._address, self._rooms, self._room_url = address, rooms, room_url
        self._joined = self._relayed = False
        self._early: deque[WSMessage] = deque()

    async def run(self) -> None:
        """Serves the client until it leaves, or the session ends."""
        limit = self._max_session_s, "max_session_duration"
        try:
            try:
                opening = self._registry.open(0, self._tell_place, *limit)
                session = await self._until_left(opening)
            except Full as full:
                limit_reached = "Concurrent session limit reached."  # as the SDKs know it
                words = limit_reached if full.code == "full" else f"{full.code}: {full}"
                return await self._error(words, OVERLOADED)
            except ProtocolError as error:
                return await self._error(str(error), POLICY)
            if session is None:
                return
            session.ended.add_done_callback(lambda _: self._spawn(self._ended(session)))
            self._peer = Peer(session, self._registry.settings, self._registry.metrics)
            host, port = self._address
            told = {"type": "session_id", "session_id": session.id}
            await self.send({**told, "server_ip": host, "server_port": port})
            self._spawn(self._tick(session))
            await self._listen(session, self._peer)
        finally:
            await self._leave()

    async def _meanwhile(self, message: WSMessage) -> None:
        """Keeps a prompt, a picture or an offer until its turn. Raises ProtocolError."""
        self._early.append(message)
        size = sum(len(one.data) for one in self._early)
        if len(self._early) > EARLY or size > self._settings.max_message_bytes:
            raise ProtocolError("too much before there is a session; wait for session_id")

    async def _listen(self, session: LiveSession, peer: Peer) -> None:
        while True:
            message = self._early.popleft() if self._early else await self._socket.receive()
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return
            if message.type is not WSMsgType.TEXT or not self._rate.take():
                return await self._error("not a message; send JSON text, and not so often", POLICY)
            if message.data.count(",") > MAX_INPUT:  # a picture is long, but one value
                return await self._error("too many values; send a picture and a prompt", POLICY)
            try:
                found = json.loads(message.data)
                kind = found["type"]
            except (ValueError, TypeError, KeyError, RecursionError):
                return await self._error("no message; send a JSON object with a type", POLICY)
            match kind:
                case "prompt":
                    await self._prompt(session, found)
                case "set_image":
                    await self._set_image(session, found)
                case "offer":
                    await self._offer(peer, found)
                case "ice-candidate":
                    candidate = found.get("candidate")
                    if isinstance(candidate, dict):
                        await peer.add_candidate(candidate)
                case "livekit_join":
                    await self._join(session, peer)
                case _:
                    await self._error(f"unknown {str(kind)[:50]!r}; send prompt or set_image")

    async def _prompt(self, session: LiveSession, message: dict[str, Any]) -> None:
        text = message.get("prompt")
        error = await self._attempt(session.call("set_prompt", {"prompt": text}))
        ack = {"type": "prompt_ack", "prompt": text}
        await self.send({**ack, "success": error is None, "error": error})

    async def _set_image(self, session: LiveSession, message: dict[str, Any]) -> None:
        error = await self._attempt(self._change_image(session, message))
        await self.send({"type": "set_image_ack", "success": error is None, "error": error})

    async def _change_image(self, session: LiveSession, message: dict[str, Any]) -> None:
        prompt, data = message.get("prompt"), message.get("image_data")
        if message.get("image_ref") is not None:
            raise InputError("bad_upload", "send the picture itself as image_data")
        if data is None:
            await session.call("clear_image", {})
            if "prompt" in message and prompt is None:
                prompt = PASS_THROUGH
        else:
            try:
                content, kind = await asyncio.to_thread(_picture, str(data))
            except (ValueError, binascii.Error) as error:
                raise InputError("bad_upload", str(error)) from error
            id = await session.upload("image", kind, content)
            await session.call("set_image", {"image": id})
        if prompt is not None:
            await session.call("set_prompt", {"prompt": prompt})

    async def _attempt(self, work: Any) -> str | None:
        """None where `work` is well done, else why not."""
        try:
            await work
        except InputError as error:
            return str(error)
        return None

    async def _join(self, session: LiveSession, peer: Peer) -> None:
        """Tells the client the room where its session's media meet."""
        if self._joined or peer.used:
            return await self._error("this session has its media already; open another session")
        self._joined = True
        told = {"type": "livekit_room_info", "livekit_url": self._room_url, "room_name": session.id}
        await self.send({**told, "token": self._rooms.open(session), "session_id": session.id})

    async def _offer(self, peer: Peer, message: dict[str, Any]) -> None:
        if self._joined:
            return await self._error("this session's media go by its room; open another session")
        if relay := self._relay():
            return await self.send({"type": "ice-restart", "turn_config": relay})
        try:
            await self.send({"type": "answer", "sdp": await peer.answer(str(message.get("sdp")))})
        except ValueError as error:
            await self._error(str(error))

    def _relay(self) -> dict[str, Any] | None:
        """The TURN server, once, where there is one: such a client learns of it by an ICE restart,
        and offers anew with it."""
        told, self._relayed = self._relayed, True
        turn = [one for one in ice_servers(self._settings) if "credential" in one]
        if told or not turn:
            return None
        login = {name: turn[0][name] for name in ("username", "credential")}
        return {"server_url": turn[0]["urls"][0], **login}

    async def _tick(self, session: LiveSession) -> None:
        """Tells when pictures begin, and how many seconds they have been coming."""
        while session.first_frame_s is None:
            await asyncio.sleep(0.02)
        await self.send({"type": "generation_started"})
        while True:
            await asyncio.sleep(1)
            await self.send({"type": "generation_tick", "seconds": self._seconds(session)})

    @staticmethod
    def _seconds(session: LiveSession) -> int:
        began = session.first_frame_s
        return 0 if began is None else int(time.monotonic() - began)

    async def _ended(self, session: LiveSession) -> None:
        told = {"type": "generation_ended", "seconds": self._seconds(session)}
        await self.send({**told, "reason": session.ended.result()})
        await self._hang_up()

    def _tell_place(self, place: int, length: int) -> None:
        told = {"type": "queue_position", "position": place, "queue_size": length}
        self._spawn(self.send(told))

    async def _error(self, words: str, close: int | None = None) -> None:
        await self.send({"type": "error", "error": words})
        if close:
            await self._hang_up(close, words)


def _picture(data: str) -> tuple[bytes, str]:
    """Content and kind of a picture in base64 or a data URL. Raises ValueError."""
    content = base64.b64decode(data.rpartition(",")[2], validate=True)
    return content, picture_kind(content, MAX_PIXELS)
