"""Hosts one session: runs it, feeds it, acknowledges its inputs, and ends it when it must.

A transport drives a host and is told of outputs and of the end; it never meets the session.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lsd_jax.runtime.context import Send, SessionContext
from lsd_jax.runtime.errors import InputError
from lsd_jax.runtime.inputs import InputDefinition
from lsd_jax.runtime.mailbox import Frame, Mailbox
from lsd_jax.runtime.manifest import ModelDefinition
from lsd_jax.runtime.model import Model, Session
from lsd_jax.runtime.uploads import UploadShelf

OVER = "the session is over; open another"
Call = tuple[InputDefinition, dict[str, Any], "asyncio.Future[None]"]


class State(Enum):
    """Where a session is in its life. STARTING, until its host has it, and CANCELING, until that
    has let go of it, are seen from outside only."""

    STARTING = "STARTING"
    READY = "READY"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    CANCELING = "CANCELING"
    ENDED = "ENDED"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Limits:
    """Bounds of one session."""

    queued_inputs: int = 64
    held_uploads: int = 4
    upload_bytes: int = 16_000_000  # of all held uploads together
    input_timeout_s: float = 10.0
    step_timeout_s: float = 20.0  # a frame taken, or run entered, to the next sample published
    close_timeout_s: float = 5.0

    def __post_init__(self):
        for name, value in self.__dict__.items():
            if value <= 0:
                raise ValueError(f"{name}={value} must be above 0")


class SessionHost:
    """One session of `model`, from creation to its end.

    `send(spec, sample, ts_ms)` is called with each checked sample, and `ended(state, reason)` once.
    `wanted(input, in_s)` is called whenever the named video input has taken its frame and will take
    another one, some `in_s` seconds from now. None of them may block. Where `model.create_session`
    raises, so does this.
    """

    def __init__(
        self,
        model: Model,
        definition: ModelDefinition,
        session_id: str,
        send: Send,
        ended: Callable[[State, str], None],
        wanted: Callable[[str, float], None] | None = None,
        limits: Limits | None = None,
        seed: int = 0,
    ):
        self.definition, self.limits = definition, limits or Limits()
        self.state, self.reason = State.READY, ""
        self._ended, self._wanted = ended, wanted or (lambda *_: None)
        self._log = logging.getLogger("lsd.session")
        self.ctx = SessionContext(
            session_id,
            definition.outputs,
            send,
            self._reset,
            {name: Mailbox(self._taken(name)) for name in definition.video_inputs},
            self._log,
            seed=seed,
        )
        self._shelf = UploadShelf(self.limits.held_uploads, self.limits.upload_bytes)
        self._calls: asyncio.Queue[Call] = asyncio.Queue(self.limits.queued_inputs)
        self._session: Session = model.create_session(self.ctx)
        self._waits_since: float | None = None
        self._tasks: list[asyncio.Task] = []
        self._requests: set[asyncio.Task] = set()
        self._finished = asyncio.Event()

    def start(self) -> None:
        """Runs the session, and asks for its first frames."""
        self._waits_since = time.monotonic()
        self._tasks = [
            asyncio.create_task(work) for work in (self._run(), self._serve_calls(), self._watch())
        ]
        self.state = State.RUNNING
        for name in self.ctx.video_inputs:
            self._wanted(name, 0.0)

    @property
    def over(self) -> bool:
        """Whether the session has ended, well or not."""
        return self.state in (State.ENDED, State.FAILED)

    def offer(self, name: str, frame: Frame) -> None:
        """The newest frame of a video input; replaces one that was not taken yet. While paused it
        is dropped."""
        mailbox = self.ctx.video_inputs.get(name)
        if mailbox is None:
            known = ", ".join(self.ctx.video_inputs) or "none"
            raise InputError("unknown_input", f"no video input {name!r}; this model has: {known}")
        width, height = self.definition.video_inputs[name]
        if frame.image.shape != (height, width, 3):
            raise InputError("invalid_args", f"{name}: not RGB; send {width}x{height}x3")
        if self.state is State.PAUSED:
            mailbox.dropped += 1
            self._wanted(name, 0.0)
        else:
            mailbox.put(frame)

    async def upload(
        self, filename: str, mime_type: str, data: bytes, sha256: str | None = None
    ) -> str:
        """Holds a file for an input to take, and gives its id. Raises InputError."""
        return await self._shelf.add(filename, mime_type, data, sha256)

    async def call(self, name: str, args: object) -> None:
        """Gives an input to the session; returns when the session has taken it.

        Raises InputError. Inputs are taken one after the other, in their order.
        """
        definition = self.definition.inputs.get(name)
        if definition is None:
            known = ", ".join(self.definition.inputs) or "none"
            raise InputError("unknown_input", f"no input {name!r}; this model has: {known}")
        if self.over:
            raise InputError("ended", OVER)
        if self.state is State.PAUSED and not definition.paused:
            raise InputError("paused", f"{name!r} is not taken while paused; resume first")
        if self._calls.full():
            raise InputError("queue_full", f"{self._calls.maxsize} inputs wait already; slow down")
        args = definition.parse(args, self._shelf)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((definition, args, done))
        await done

    def pause(self) -> None:
        """Takes no frames until `resume`."""
        if self.state is State.RUNNING:
            self.ctx.pause()
            self.state = State.PAUSED

    def resume(self) -> None:
        """Goes on after `pause`."""
        if self.state is State.PAUSED:
            self.ctx.resume()
            self._waits_since = None if self.ctx.video_inputs else self.ctx.last_progress
            self.state = State.RUNNING

    async def snapshot(self) -> bytes:
        """The session's whole state. Raises NotImplementedError where the model has no such."""
        return await self._while_open(self._session.snapshot())

    async def restore(self, state: bytes) -> None:
        """Goes on from a snapshot. Raises ValueError where it is none of this model."""
        await self._while_open(self._session.restore(state))

    async def _while_open(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, which the session's end cancels. Raises InputError then."""
        if self.over:
            work.close()
            raise InputError("ended", OVER)
        task = asyncio.create_task(work)
        self._requests.add(task)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()  # where this waiting was
            self._requests.discard(task)
        if task.cancelled():
            raise InputError("ended", OVER)
        return task.result()

    async def end(self, reason: str = "ended", failed: bool = False) -> None:
        """Ends the session and waits until it has let go of all that it held."""
        if not self.over:
            self.state, self.reason = (State.FAILED if failed else State.ENDED), reason
            self.ctx.stop()
            current = asyncio.current_task()
            others = [task for task in (*self._tasks, *self._requests) if task is not current]
            if others:
                await asyncio.wait(others[:1], timeout=0.1)  # a run that sees `running` may leave
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            while not self._calls.empty():
                self._refuse(self._calls.get_nowait()[2], "ended", OVER)
            try:
                async with asyncio.timeout(self.limits.close_timeout_s):
                    await self._session.close()
            except Exception:
                self._log.exception("closing a session failed")
            self._finished.set()
            self._ended(self.state, reason)
        await self._finished.wait()

    async def _run(self) -> None:
        try:
            await self._session.run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._log.exception("a session failed")
            self._spawn_end(f"model_error: {type(error).__name__}", failed=True)
        else:
            self._spawn_end("finished", failed=False)

    def _spawn_end(self, reason: str, failed: bool) -> None:
        if not self.over:
            task = asyncio.create_task(self.end(reason, failed))
            task.add_done_callback(lambda _: self._tasks.clear())
            self._tasks.append(task)  # a task that nobody holds may be collected

    async def _serve_calls(self) -> None:
        while True:
            definition, args, done = await self._calls.get()
            method = getattr(self._session, definition.method)
            try:
                async with asyncio.timeout(self.limits.input_timeout_s):
                    await definition.check(args)
                    result = method(**args)
                    if inspect.isawaitable(result):
                        await result
            except TimeoutError:
                self._refuse(done, "timed_out", f"{definition.name} took too long; try again")
            except InputError as error:
                self._refuse(done, error.code, str(error))
            except ValueError as error:  # the model's own words on what it does not take
                self._refuse(done, "invalid_args", " ".join(str(error).split()))
            except asyncio.CancelledError:
                self._refuse(done, "ended", OVER)
                raise
            except Exception:
                self._log.exception("input %s failed", definition.name)
                self._refuse(done, "model_error", f"{definition.name} failed; try another value")
            else:
                if not done.done():
                    done.set_result(None)

    @staticmethod
    def _refuse(done: asyncio.Future[None], code: str, message: str) -> None:
        if not done.done():  # whoever called may be gone
            done.set_exception(InputError(code, message))

    async def _watch(self) -> None:
        limit = self.limits.step_timeout_s
        while True:
            await asyncio.sleep(min(limit / 4, 1.0))
            since = self._waits_since
            if self.state is not State.RUNNING or since is None:
                continue
            if self.ctx.last_progress > since:
                self._waits_since = None if self.ctx.video_inputs else self.ctx.last_progress
            elif time.monotonic() - since > limit and not self._idle():
                self._spawn_end("timed_out: the model gave nothing", failed=True)

    def _idle(self) -> bool:
        """A session whose video inputs have given nothing since it started has nothing to show."""
        boxes = self.ctx.video_inputs.values()
        return bool(boxes) and all(box.received == 0 for box in boxes)

    def _taken(self, name: str) -> Callable[[], None]:
        def note() -> None:
            self._waits_since = time.monotonic()
            self._wanted(name, self.ctx.video_inputs[name].busy_s)

        return note

    async def _reset(self) -> None:
        await self._session.reset()
