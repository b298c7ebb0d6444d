"""What every client on a WebSocket has, whichever protocol it speaks: a session, and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from lsd_jax.serve.guard import Bucket
from lsd_jax.serve.registry import Registry
from lsd_jax.serve.rtc import Peer
from lsd_jax.serve.sessions import LiveSession

_log = logging.getLogger("lsd.serve")
POLICY, OVERLOADED = 1008, 1013
UNKNOWN_SESSION, TAKEN_OVER = 4404, 4409
"""Codes of a closed socket; those of a refused token are 4000 and HTTP's."""


class SocketClient:
    """One WebSocket and the session that it drives. `max_session_s` is what its token allows."""

    def __init__(
        self,
        registry: Registry,
        socket: web.WebSocketResponse,
        max_session_s: float | None,
    ):
        self._registry, self._socket = registry, socket
        self._max_session_s = max_session_s
        self._settings = registry.settings
        self._session: LiveSession | None = None
        self._peer: Peer | None = None
        self._tasks: set[asyncio.Task] = set()
        self._closing: set[asyncio.Task] = set()
        self._rate = Bucket(self._settings.messages_per_s, 2.0 * self._settings.messages_per_s)

    async def send(self, message: dict[str, Any]) -> None:
        """Sends a JSON message, if the client is still there."""
        if not self._socket.closed:
            try:
                await self._socket.send_json(message)
            except ConnectionError:
                _log.debug("a client left before it could be told %s", message["type"])

    async def _until_left(self, opening: Coroutine[Any, Any, LiveSession]) -> LiveSession | None:
        """The session that `opening` gives when its turn has come, or None where the client left
        before. What that says until then goes to `_meanwhile`. Raises what either of them does."""
        turn = asyncio.create_task(opening)
        try:
            while not turn.done():
                receiving = asyncio.ensure_future(self._socket.receive())
                try:
                    await asyncio.wait([turn, receiving], return_when="FIRST_COMPLETED")
                finally:
                    receiving.cancel()
                    await asyncio.gather(receiving, return_exceptions=True)
                if receiving.cancelled():
                    continue
                message = receiving.result()
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    return None
                await self._meanwhile(message)
            return turn.result()
        finally:  # a session that is opened by now is ours, to use or to end
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            if not turn.cancelled() and turn.exception() is None:
                self._session = turn.result()

    async def _meanwhile(self, message: WSMessage) -> None:
        """Takes what a client says before its turn."""
        raise NotImplementedError

    async def _hang_up(self, code: int = WSCloseCode.OK, words: str = "") -> None:
        """Closes the socket; begun, that goes on though this client is done with."""
        closing = asyncio.create_task(self._socket.close(code=code, message=words.encode()[:120]))
        self._closing.add(closing)
        await asyncio.shield(closing)

    async def _leave(self) -> None:
        """Ends all that there is for a client that has gone."""
        for task in self._tasks:
            task.cancel()
        if self._session:  # first: a half-open connection takes seconds to close
            await self._part(self._session)
        if self._peer:
            await self._peer.close()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _part(self, session: LiveSession) -> None:
        """What becomes of the session of a client that has gone."""
        await session.end("client_left")

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            if not isinstance(error, ConnectionError | RuntimeError):
                _log.error("serving a client failed", exc_info=error)
