"""The front's side of the engines: starts them, watches them, replaces one that dies or hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lsd_jax.serve.launch import launcher
from lsd_jax.serve.link import Link, TooLarge
from lsd_jax.serve.settings import Settings

_log = logging.getLogger("lsd.serve")
Handler = Callable[["EngineHandle", dict[str, Any], bytes], None]


class EngineFailed(RuntimeError):
    """A model did not load; the message says why."""


class EngineHandle:
    """One engine process, started again whenever it ends unasked.

    `on_message(handle, header, body)` gets what it sends, `on_lost(handle)` is called when it is
    gone. `sessions` are the ids that it hosts.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        on_message: Handler,
        on_lost: Callable[[EngineHandle], None],
    ):
        self.number, self.sessions = number, set[str]()
        self.manifest: dict[str, Any] = {}
        self.slots, self.starts, self.recompiles = 0, 0, 0
        self.backend, self.failure = "", ""
        self.ready = asyncio.Event()
        self.pid: int | None = None
        self._settings, self._on_message, self._on_lost = settings, on_message, on_lost
        self._link: Link | None = None
        self._launcher = launcher(settings, number)
        self._stopping = self._loaded = False
        self._answers: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._requests = 0
        self._heard = time.monotonic()
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Starts the process and keeps it running."""
        self._task = asyncio.create_task(self._keep())

    @property
    def free(self) -> int:
        """Slots that a session may be opened in now."""
        return self.slots - len(self.sessions) if self.ready.is_set() else 0

    def send(self, header: dict[str, Any], body: Any = b"") -> None:
        """Sends a message; without effect while the engine is down."""
        if self._link:
            self._link.send(header, body)

    @property
    def congested(self) -> bool:
        """Whether a picture should rather be dropped than sent."""
        return self._link is None or self._link.congested

    async def ask(
        self, header: dict[str, Any], body: Any = b"", timeout_s: float = 30.0
    ) -> tuple[dict[str, Any], bytes]:
        """A request's answer. Where the engine is lost or silent, or would not take so
        much, a refusal in its place."""
        self._requests += 1
        number, answer = self._requests, asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self.send({**header, "request": number}, body)
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            message = "the model took too long; try again"
            return {"ok": False, "code": "timed_out", "message": message}, b""
        except TooLarge as error:
            return {"ok": False, "code": "too_large", "message": f"{error}; send less"}, b""
        finally:
            self._answers.pop(number, None)

    async def stop(self) -> None:
        """Stops the process, gently and then not."""
        self._stopping = True
        self.send({"type": "stop"})
        if self._task:
            done, _ = await asyncio.wait([self._task], timeout=self._settings.drain_s)
            if not done:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
        self._launcher.close()

    async def _keep(self) -> None:
        pause_s = 0.2
        while not self._stopping:
            started = time.monotonic()
            self.starts += 1
            self._loaded = False
            try:
                await self._run()
            except Exception:
                _log.exception("engine %d could not be started", self.number)
            if self._stopping:
                return
            if not (self._loaded or self.failure):
                self.failure = "its process ended while it loaded; see the log"
            if not self.failure:
                _log.error("engine %d is gone; it is started again", self.number)
            lived_s = time.monotonic() - started
            pause_s = 0.2 if lived_s > 60 else min(pause_s * 2, 30.0)
            await asyncio.sleep(pause_s)

    async def _run(self) -> None:
        connected: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

        def accept(link: Link) -> None:
            if connected.done():
                link.close()
            else:
                connected.set_result(link)

        server, address = await self._launcher.listen(accept)
        process = await self._launcher.start(address)
        exited = asyncio.create_task(process.wait())
        limit = self._settings.load_timeout_s
        try:
            await asyncio.wait([exited, connected], return_when="FIRST_COMPLETED", timeout=limit)
            server.close()
            if connected.done() and not exited.done():
                self._link = connected.result()
                await self._converse(exited)
        finally:
            self._lose()
            server.close()
            process.kill()
            await exited

    async def _converse(self, exited: asyncio.Task) -> None:
        link, settings = self._link, self._settings
        if link is None:
            return
        limits = asdict(settings.limits)
        link.send({"model": settings.model, "config": settings.config, "limits": limits})
        self._heard = time.monotonic()
        watch = asyncio.create_task(self._watch())
        reading = asyncio.create_task(self._read(link))
        try:
            await asyncio.wait([exited, watch, reading], return_when="FIRST_COMPLETED")
            if self._stopping:
                await asyncio.wait([exited], timeout=settings.drain_s)
        finally:
            watch.cancel()
            reading.cancel()
            await asyncio.gather(watch, reading, return_exceptions=True)
            link.close()

    async def _read(self, link: Link) -> None:
        while True:
            try:
                header, body = await link.receive()
            except EOFError:
                return
            self._heard = time.monotonic()
            match header["type"]:
                case "pong":
                    continue
                case "answer":
                    answer = self._answers.get(header["request"])
                    if answer and not answer.done():
                        answer.set_result((header, body))
                    continue
                case "ready":
                    self.manifest, self.slots = header["manifest"], header["slots"]
                    self.backend, self.failure = header["backend"], ""
                    self.pid = header["pid"]
                    self._loaded = True
                    self.ready.set()
                case "failed":
                    self.failure = header["message"]
                case "report":
                    self.recompiles = header["recompiles"]
            self._on_message(self, header, body)

    async def _watch(self) -> None:
        """Returns when the engine has been silent for too long."""
        limit = self._settings.engine_timeout_s
        while True:
            self.send({"type": "ping"})
            due = time.monotonic() + limit / 5
            await asyncio.sleep(limit / 5)
            if time.monotonic() - due > limit / 5:  # the front was late, and has read no pong
                continue
            allowed = limit if self.ready.is_set() else self._settings.load_timeout_s
            if time.monotonic() - self._heard > allowed:
                _log.error("engine %d has been silent for %.0f s", self.number, allowed)
                return

    def _lose(self) -> None:
        self.ready.clear()
        self._link = None
        message = "the model's process was lost; open another session"
        lost = {"ok": False, "code": "ended", "message": message}
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result((lost, b""))
        self._on_lost(self)
