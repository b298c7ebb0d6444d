"""`/v1/live`: one client of our own protocol, from its first message to its last."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from aiohttp import WebSocketError, WSMessage, WSMsgType, web

from lsd_jax.runtime import InputError
from lsd_jax.serve import convert, protocol
from lsd_jax.serve.client import (
    OVERLOADED,
    POLICY,
    TAKEN_OVER,
    UNKNOWN_SESSION,
    SocketClient,
)
from lsd_jax.serve.guard import Bucket
from lsd_jax.serve.protocol import ProtocolError
from lsd_jax.serve.registry import Full, Registry, UnknownSession
from lsd_jax.serve.rtc import Peer
from lsd_jax.serve.sessions import LiveSession, Sample
from lsd_jax.serve.tokens import Refused

START_S = 10.0
"""In which a client must send `start`."""
MAX_TASKS = 64
"""Requests of one client that may wait for their answers."""
CHARGED = 1_000
"""Characters of JSON that count as one more message, since long JSON takes long to read."""


class LiveClient(SocketClient):
    """Drives one session for one WebSocket. One that was `refused` may only go on with a session
    whose secret it knows."""

    def __init__(
        self,
        registry: Registry,
        socket: web.WebSocketResponse,
        max_session_s: float | None,
        refused: Refused | None = None,
    ):
        super().__init__(registry, socket, max_session_s)
        self._refused, self._lost = refused, False
        self._patience = asyncio.timeout(None)
        self._announced: protocol.Upload | protocol.Restore | None = None
        self._complaints = Bucket(1, 1)
        self._shown = asyncio.Semaphore(protocol.IN_FLIGHT)
        self._unshown: set[int] = set()

    async def run(self) -> None:
        """Serves the client until it leaves, ends, or must go."""
        try:
            async with asyncio.timeout(START_S) as self._patience:
                await self._listen()
        except TimeoutError:
            if not self._patience.expired():
                raise
            words = f"send start within {START_S:.0f} s of connecting"
            await self._refuse("bad_message", words, POLICY)
        except ProtocolError as error:
            await self._refuse(error.code, str(error), POLICY)
        except Refused as refused:
            self._registry.metrics.rejected.labels(refused.code).inc()
            await self._refuse(refused.code, str(refused), 4000 + refused.status)
        finally:
            await self._leave()

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.TEXT:
                if not await self._text(message.data):
                    return
            elif message.type is WSMsgType.BINARY:
                self._spend()
                await self._binary(message.data)
            else:
                self._lost = _without_a_word(message)
                return

    async def _part(self, session: LiveSession) -> None:
        session.ended.remove_done_callback(self._on_end)
        if self._lost and self._settings.keep_s and not session.ended.done():
            session.let_go = None
            self._registry.keep(session, self._settings.keep_s)
        else:
            await session.end("client_left")

    def _let_go(self) -> None:
        """Another socket drives the session from now on."""
        if self._session:
            self._session.ended.remove_done_callback(self._on_end)
        self._session = None
        for task in self._tasks:
            task.cancel()
        words = "this session goes on in another window or connection"
        self._spawn(self._refuse("taken_over", words, TAKEN_OVER))

    def _on_end(self, ended: asyncio.Future[str]) -> None:
        self._spawn(self._ended(ended.result()))

    def _spend(self, characters: int = 0) -> None:
        if not all(self._rate.take() for _ in range(1 + characters // CHARGED)):
            raise protocol.TooMany("too many messages; slow down")

    def _parse(self, text: str) -> Any:
        self._spend(len(text))
        return protocol.parse(text, protocol.MAX_TEXT if self._session else protocol.MAX_FIRST)

    async def _text(self, text: str) -> bool:
        """Takes a message; gives whether to go on."""
        message = self._parse(text)
        if isinstance(message, protocol.Ping):
            await self._pong(message)
            return True
        if self._session is None:
            if not isinstance(message, protocol.Start):
                raise ProtocolError("no session yet; send start first")
            self._patience.reschedule(None)
            return await self._start(message)
        match message:
            case protocol.Start():
                raise ProtocolError("this session has started; open another socket for another")
            case protocol.Upload() | protocol.Restore():
                if self._announced:
                    raise ProtocolError("a file was announced already; send it first")
                self._announced = message
            case protocol.Shown():
                if message.seq in self._unshown:
                    self._unshown.discard(message.seq)
                    self._shown.release()
            case protocol.Offer():
                await self._offer(message)
            case protocol.Candidate():
                if self._peer:
                    await self._peer.add_candidate(message.candidate)
            case _:
                await self._answer_later(message.id, self._request(message))
        return True

    async def _pong(self, ping: protocol.Ping) -> None:
        await self.send({"type": "pong", "client_ts_ms": ping.client_ts_ms})

    async def _start(self, message: protocol.Start) -> bool:
        if message.session is None:
            session = await self._open(message)
        else:
            session = await self._claim(message.session, message.secret)
        if session is not None:
            await self._begin(session, message.media, message.session is not None)
        return session is not None

    async def _claim(self, id: str, secret: str) -> LiveSession | None:
        """The session that this client, or one before it, has left."""
        try:
            self._session = self._registry.claim(id, secret, self._let_go)
        except UnknownSession as unknown:
            await self._refuse("unknown_session", str(unknown), UNKNOWN_SESSION)
        return self._session

    async def _open(self, message: protocol.Start) -> LiveSession | None:
        """A new session, or None where the client left or was refused before its turn."""
        if self._refused:
            raise self._refused

        def waits(place: int, length: int) -> None:
            told = {"type": "queue_position", "position": place, "queue_size": length}
            self._spawn(self.send(told | {"loading": self._registry.loading}))

        limit = self._max_session_s
        try:
            if message.wait:
                session = await self._until_left(self._registry.open(message.seed, waits, limit))
            else:
                session = self._session = await self._registry.open(message.seed, None, limit)
        except Full as full:
            await self._refuse(full.code, str(full), OVERLOADED)
            return None
        if session is not None:
            session.hold(self._let_go)
        return session

    def _refuse_picture(self, words: str) -> None:
        """Tells of a live picture that did not decode, once a second at most."""
        if self._complaints.take():
            told = {"type": "refused", "code": "bad_picture", "message": words}
            self._spawn(self.send(told))

    async def _begin(self, session: LiveSession, media: str, reclaimed: bool) -> None:
        session.on_taken = lambda name: self._spawn(self.send({"type": "want", "input": name}))
        session.on_refused = self._refuse_picture
        session.ended.add_done_callback(self._on_end)
        await self.send(
            {
                "type": "started",
                "session_id": session.id,
                "secret": session.secret,
                "reclaimed": reclaimed,
                "paused": session.paused,
                "media": media,
                "manifest": session.manifest,
            }
        )
        if media == "jpeg":
            self._spawn(self._send_pictures(session))
        else:
            self._peer = Peer(session, self._settings, self._registry.metrics)
        self._spawn(self._send_events(session))
        self._spawn(self._send_metrics(session))

    async def _meanwhile(self, message: WSMessage) -> None:
        """Raises ProtocolError for anything but a ping."""
        ping = self._parse(message.data) if message.type is WSMsgType.TEXT else None
        if not isinstance(ping, protocol.Ping):
            raise ProtocolError("no session yet; wait for started")
        await self._pong(ping)

    async def _binary(self, data: bytes) -> None:
        session = self._session
        if session is None:
            raise ProtocolError("no session yet; send start first")
        kind, _, ts_ms, content = protocol.unpack(data)
        if kind == protocol.PICTURE:
            try:
                session.offer(content, ts_ms)
            except InputError as error:
                raise ProtocolError(str(error)) from None
            return
        announced, self._announced = self._announced, None
        if kind == protocol.FILE and isinstance(announced, protocol.Upload):
            one = announced
            work = session.upload(one.filename, one.mime_type, content, one.sha256)
            await self._answer_later(one.id, work, "upload_id")
        elif kind == protocol.SNAPSHOT and isinstance(announced, protocol.Restore):
            await self._answer_later(announced.id, session.restore(content))
        else:
            raise ProtocolError(f"kind {kind} was not announced; send upload or restore first")

    async def _request(self, message: Any) -> None:
        session = self._session
        if session is None:
            raise InputError("ended", "the session is over; open another")
        match message:
            case protocol.Input():
                await session.call(message.name, message.args)
            case protocol.Control(type="pause"):
                await session.pause()
            case protocol.Control(type="resume"):
                await session.resume()
            case protocol.Control(type="snapshot"):
                await session.snapshot(self._send_snapshot)
            case protocol.Control(type="end"):
                self._spawn(session.end("ended"))

    async def _send_snapshot(self, state: bytes) -> None:
        """Raises InputError where no client could send it back."""
        longest = self._settings.max_message_bytes - protocol.HEADER_BYTES - 1  # as aiohttp counts
        if len(state) > longest:
            words = f"a state of {len(state):,} bytes could not be restored, only {longest:,} could"
            raise InputError("too_large", f"{words}; go on without, or raise max_message_bytes")
        await self._socket.send_bytes(protocol.pack(protocol.SNAPSHOT, state))

    async def _answer_later(self, id: int, work: Any, result: str | None = None) -> None:
        """Answers request `id` when `work` is done; of too many at a time it refuses the newest."""
        if len(self._tasks) >= MAX_TASKS:
            work.close()
            words = "too many requests wait; await their acks"
            refusal = {"ok": False, "code": "queue_full", "message": words}
            await self.send({"type": "ack", "id": id, **refusal})  # which slows such a client down
            return

        async def answer() -> None:
            told: dict[str, Any] = {"type": "ack", "id": id, "ok": True}
            try:
                value = await work
                if result:
                    told[result] = value
            except InputError as error:
                told |= {"ok": False, "code": error.code, "message": str(error)}
            await self.send(told)

        self._spawn(answer())

    async def _offer(self, message: protocol.Offer) -> None:
        if self._peer is None:
            raise ProtocolError("this session has media 'jpeg'; start one with 'webrtc'")
        try:
            await self.send({"type": "answer", "sdp": await self._peer.answer(message.sdp)})
        except ValueError as error:
            await self.send({"type": "error", "code": "bad_offer", "message": str(error)})

    async def _send_pictures(self, session: LiveSession) -> None:
        """The newest pictures as JPEGs, no faster than the client shows them."""
        while True:
            await self._shown.acquire()
            try:
                sample = await session.video.take()
            except EOFError:
                return
            stage, began = self._registry.metrics.stage, time.perf_counter()
            jpeg = await asyncio.to_thread(convert.to_jpeg, sample.data, sample.output)
            encoded = time.perf_counter()
            stage.labels("encode").observe(encoded - began)
            self._unshown.add(sample.seq)
            packed = protocol.pack(protocol.PICTURE, jpeg, sample.seq, sample.client_ts_ms)
            await self._socket.send_bytes(packed)
            stage.labels("send").observe(time.perf_counter() - encoded)
            session.note_sent(sample)

    async def _send_events(self, session: LiveSession) -> None:
        """Samples of the other outputs; JSON as JSON, the rest as binary messages of kind 4."""
        while not session.ended.done():
            await session.events_ready.wait()
            session.events_ready.clear()
            while session.events:
                await self._send_event(session.events.popleft())

    async def _send_event(self, sample: Sample) -> None:
        name, kind = sample.output["name"], sample.output["kind"]
        if kind == "json":
            value = json.loads(sample.data)
            await self._socket.send_json({"type": "output", "name": name, "value": value})
        else:
            named = name.encode().ljust(32, b"\0")[:32] + sample.data
            await self._socket.send_bytes(protocol.pack(protocol.SAMPLE, named, sample.seq))

    async def _send_metrics(self, session: LiveSession) -> None:
        while True:
            await asyncio.sleep(1)
            await self.send(
                {
                    "type": "metrics",
                    "frames_in": session.frames_in,
                    "frames_out": session.frames_out,
                    "dropped": session.dropped,
                    "input_size": session.input_size,
                    "queue": self._registry.waiting,
                    "age_ms_p50": session.age_ms_p50,
                    **session.report,
                }
            )

    async def _ended(self, reason: str) -> None:
        await self.send({"type": "ended", "reason": reason})
        await self._hang_up()

    async def _refuse(self, code: str, message: str, close: int) -> None:
        await self.send({"type": "error", "code": code, "message": message})
        await self._hang_up(close, message)


def _without_a_word(message: WSMessage) -> bool:
    """Whether a socket's last message says that it was lost: neither closed by its client, who then
    wants no more, nor for what that sent."""
    if message.type is WSMsgType.ERROR:
        return not isinstance(message.data, WebSocketError)
    return message.type is WSMsgType.CLOSED
