"""Who holds which slot, who waits for one, and what becomes of both when an engine is lost."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from lsd_jax.runtime import State
from lsd_jax.serve.engines import EngineFailed, EngineHandle
from lsd_jax.serve.metrics import Metrics
from lsd_jax.serve.sessions import LiveSession
from lsd_jax.serve.settings import Settings

Position = Callable[[int, int], None]
"""Told a waiting client's place in the queue, from 1, and the queue's length."""


PAST = 64
"""Sessions that are over and can still be asked about."""


class Full(RuntimeError):
    """No slot is free, and the client does not wait for one, or may not. `code` says which: `full`,
    `loading` or `draining`."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class UnknownSession(LookupError):
    """No session has this id and this secret, or no longer."""


class Registry:
    """All engines and sessions of a server."""

    def __init__(self, settings: Settings, metrics: Metrics):
        self.settings, self.metrics = settings, metrics
        self.sessions: dict[str, LiveSession] = {}
        self._past: OrderedDict[str, LiveSession] = OrderedDict()
        self._kept: dict[str, asyncio.TimerHandle] = {}  # sessions that wait for their client
        self.draining = False
        self._promised = 0  # slots whose turn has been given to a client that has yet to take it
        self._waiting: deque[tuple[asyncio.Future[None], Position]] = deque()
        self._ends: set[asyncio.Task] = set()
        self._seen: dict[str, dict[str, int]] = {}  # counts by session, as last reported
        self.engines = [
            EngineHandle(n, settings, self._on_message, self._on_lost)
            for n in range(settings.engines)
        ]

    def start(self) -> None:
        """Starts the engines."""
        for engine in self.engines:
            engine.start()

    async def wait_ready(self) -> None:
        """Returns when every engine is ready. Raises EngineFailed where a model does not load."""
        for engine in self.engines:
            while not engine.ready.is_set():
                if engine.failure:
                    raise EngineFailed(engine.failure)
                await asyncio.sleep(0.05)

    @property
    def free(self) -> int:
        """Free slots of all engines."""
        if self.draining:
            return 0
        return sum(max(0, engine.free) for engine in self.engines) - self._promised

    @property
    def loading(self) -> bool:
        """Whether no engine has its model yet."""
        return not any(engine.ready.is_set() for engine in self.engines)

    @property
    def waiting(self) -> int:
        """Clients in the queue."""
        return len(self._waiting)

    @property
    def manifest(self) -> dict[str, Any]:
        """The model's manifest, once an engine has been ready."""
        return next((e.manifest for e in self.engines if e.manifest), {})

    async def open(
        self,
        seed: int = 0,
        waits: Position | None = None,
        longest_s: float | None = None,
        over: str = "its token's time is over",
    ) -> LiveSession:
        """A session in a free slot, which ends for the reason `over` after `longest_s`. Raises Full
        where none is free and there is nobody to tell that it waits, or the queue is full too."""
        if self.free <= 0 or self._waiting:
            if waits is None or len(self._waiting) >= self.settings.queue or self.draining:
                full = self._full()
                self.metrics.rejected.labels(full.code).inc()
                raise full
            await self._wait(waits)
            self._promised -= 1
        engine = max(self.engines, key=lambda engine: engine.free)
        session = LiveSession(uuid4().hex, engine, self.settings, self.metrics, seed)
        self.sessions[session.id] = session
        session.ended.add_done_callback(lambda _: self._over(session))
        limit_s, reason = self.settings.max_session_s, "its time is over"
        if longest_s is not None and longest_s < limit_s:
            limit_s, reason = longest_s, over
        lifetime = asyncio.get_running_loop().call_later(limit_s, self._expire, session, reason)
        session.ended.add_done_callback(lambda _: lifetime.cancel())
        self._count()
        return session

    def _full(self) -> Full:
        if self.draining:
            return Full("draining", "the server is shutting down; connect to another")
        if self.loading:
            return Full("loading", "the model is still loading; wait and try again in a moment")
        words = f"all slots are taken and {len(self._waiting)} clients wait; try later"
        return Full("full", words)

    def find(self, id: str, secret: str | None) -> LiveSession:
        """The session `id`, over or not; None for a secret is the server's own word that it may be
        seen. Raises UnknownSession, in the same words whatever is wrong."""
        session = self.sessions.get(id) or self._past.get(id)
        known = session.secret if session else secrets.token_urlsafe(24)
        said = (secret or "").encode(errors="replace")
        right = secret is None or secrets.compare_digest(known.encode(), said)
        if session is None or not right:
            raise UnknownSession("no session has this id and secret, or no longer; open another")
        return session

    def claim(self, id: str, secret: str, let_go: Callable[[], None]) -> LiveSession:
        """The session `id`, in its slot and as it was left, for who knows its secret; a client that
        still drives it lets go. Raises UnknownSession."""
        session = self.find(id, secret)
        if session.state in (State.CANCELING, State.ENDED, State.FAILED):
            raise UnknownSession("this session is over; open another")
        if timer := self._kept.pop(id, None):
            timer.cancel()
        session.hold(let_go)
        return session

    def keep(self, session: LiveSession, seconds: float) -> None:
        """Holds the slot of a session whose client is not there; ends it when that does not come
        within `seconds`."""
        session.release()
        loop = asyncio.get_running_loop()
        self._kept[session.id] = loop.call_later(seconds, self._expire, session, "client_left")

    async def _wait(self, waits: Position) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (turn, waits)
        self._waiting.append(entry)
        self._tell()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn came to a client that has left
                self._promised -= 1
                asyncio.get_running_loop().call_soon(self._next)
            raise
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._tell()

    def _next(self) -> None:
        """Gives as many waiting clients their turn as there are free slots."""
        for _ in range(self.free):
            while self._waiting:
                turn, _ = self._waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    self._promised += 1
                    break
        self._tell()

    def _tell(self) -> None:
        self.metrics.queue.set(len(self._waiting))
        for place, (_, waits) in enumerate(self._waiting, 1):
            waits(place, len(self._waiting))

    def _expire(self, session: LiveSession, reason: str) -> None:
        task = asyncio.create_task(session.end(reason))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    def _over(self, session: LiveSession) -> None:
        self.sessions.pop(session.id, None)
        if timer := self._kept.pop(session.id, None):
            timer.cancel()
        self._past[session.id] = session
        if len(self._past) > PAST:
            self._past.popitem(last=False)
        self._seen.pop(session.id, None)
        self.metrics.ended.labels(session.ended.result().partition(":")[0][:40]).inc()
        self._count()
        self._next()

    def _count(self) -> None:
        self.metrics.sessions_active.set(len(self.sessions))
        ready = [engine for engine in self.engines if engine.ready.is_set()]
        self.metrics.engines_ready.set(len(ready))
        self.metrics.slots.set(sum(engine.slots for engine in ready))

    def _on_message(self, engine: EngineHandle, header: dict[str, Any], body: bytes) -> None:
        match header["type"]:
            case "ready":
                self.metrics.engine_starts.inc()
                self._count()
                self._next()
            case "report":
                self._note(engine, header)
            case _ if session := self.sessions.get(header.get("session", "")):
                self._count_frames(session.id, header)
                session.handle(header, body)

    def _note(self, engine: EngineHandle, report: dict[str, Any]) -> None:
        for step_ms in report["step_ms"]:
            self.metrics.step_seconds.observe(step_ms / 1e3)
            self.metrics.stage.labels("step").observe(step_ms / 1e3)
        self.metrics.recompiles.set(sum(one.recompiles for one in self.engines))
        for id, found in report["sessions"].items():
            if session := self.sessions.get(id):
                self._count_frames(id, found)
                session.report = {k: v for k, v in found.items() if k != "dropped"}

    def _count_frames(self, id: str, found: dict[str, Any]) -> None:
        """Adds what is new of a session's frames that were not finite, or dropped in its engine."""
        seen = self._seen.setdefault(id, {})
        counts = {"nonfinite": found.get("nonfinite", 0), **found.get("dropped", {})}
        for name, frames in counts.items():
            new = frames - seen.get(name, 0)
            if new > 0:
                seen[name] = frames
                if name == "nonfinite":
                    self.metrics.nonfinite.inc(new)
                else:
                    self.metrics.dropped.labels(name).inc(new)

    def _on_lost(self, engine: EngineHandle) -> None:
        for id in list(engine.sessions):
            if session := self.sessions.get(id):
                session.finish("engine_lost: the model's process was lost", failed=True)
        engine.sessions.clear()
        self._count()

    async def drain(self) -> None:
        """Admits nobody any more, ends every session, stops the engines."""
        self.draining = True
        for turn, _ in self._waiting:
            if not turn.done():
                turn.set_exception(self._full())
        ends = [session.end("draining") for session in list(self.sessions.values())]
        await asyncio.wait([asyncio.gather(*ends)], timeout=self.settings.drain_s)
        await asyncio.gather(*(engine.stop() for engine in self.engines))
