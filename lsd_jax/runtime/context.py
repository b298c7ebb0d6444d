"""`SessionContext`: what a running session sees of the world outside."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from lsd_jax.runtime.errors import OutputValidationError
from lsd_jax.runtime.mailbox import Frame, Mailbox
from lsd_jax.runtime.outputs import OutputSpec

Send = Callable[[OutputSpec, Any, float], None]
"""Takes a checked sample and its time; must not block."""


class SessionContext:
    """One session's view: its live inputs, its outputs, pause, metrics, and whether it runs."""

    def __init__(
        self,
        session_id: str,
        outputs: Mapping[str, OutputSpec],
        send: Send,
        reset: Callable[[], Awaitable[None]],
        video_inputs: Mapping[str, Mailbox[Frame]] | None = None,
        logger: logging.Logger | None = None,
        seed: int = 0,
    ):
        self.session_id, self.seed = session_id, seed
        self.logger = logger or logging.getLogger("lsd.session")
        self.video_inputs = dict(video_inputs or {})
        self.running = True
        self.nonfinite = 0  # samples that were not finite, each replaced by the last good one
        self.last_progress = time.monotonic()
        self._outputs, self._send, self._reset = outputs, send, reset
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._inference_ms: deque[float] = deque(maxlen=256)
        self._untaken_ms: deque[float] = deque(maxlen=4096)
        self._published: dict[str, deque[float]] = {}
        self._last_good: dict[str, Any] = {}

    @property
    def room_name(self) -> str:
        """The session's name among a transport's rooms: its id."""
        return self.session_id

    async def publish(
        self, name: str, sample: Any, ts_ms: float | None = None, finite: bool = True
    ) -> None:
        """Sends a sample of the output `name`; of video the newest wins.

        `ts_ms` is the capture time of what it was made from. Where `finite` is False the sample is
        thrown away: the last good one is sent again, the session's `reset` is called, and
        `nonfinite` counts it. Raises OutputValidationError.
        """
        spec = self._outputs.get(name)
        if spec is None:
            known = ", ".join(self._outputs) or "none"
            raise OutputValidationError(f"no output {name!r}; declared: {known}")
        ready = spec.check(sample)
        self.last_progress = time.monotonic()
        if finite:
            self._last_good[name] = ready
        else:
            self.nonfinite += 1
            self.logger.warning("output %s was not finite; the stream starts anew", name)
            await self._reset()
            ready = self._last_good.get(name)
        if ready is not None:
            self._published.setdefault(name, deque(maxlen=64)).append(time.monotonic())
            self._send(spec, ready, time.time() * 1e3 if ts_ms is None else ts_ms)
        await asyncio.sleep(0)  # a session that never waits must not starve the others

    async def frames(self) -> AsyncIterator[Frame]:
        """The newest frames of the first live video input, while the session runs and is not
        paused."""
        if not self.video_inputs:
            raise LookupError("this session has no input.video()")
        async for frame in next(iter(self.video_inputs.values())):
            await self.wait_if_paused()
            if not self.running:
                return
            yield frame

    def pause(self) -> None:
        """Makes `wait_if_paused` wait."""
        self._resumed.clear()

    def resume(self) -> None:
        """Lets `wait_if_paused` go on."""
        self.last_progress = time.monotonic()
        self._resumed.set()

    def is_paused(self) -> bool:
        """Whether the session is paused."""
        return not self._resumed.is_set()

    async def wait_if_paused(self) -> None:
        """Returns at once, or when the session is resumed or ends."""
        await self._resumed.wait()

    def record_inference_ms(self, milliseconds: float | int) -> None:
        """Notes how long one step took."""
        self._inference_ms.append(float(milliseconds))
        self._untaken_ms.append(float(milliseconds))

    def take_inference_ms(self) -> list[float]:
        """The steps noted since the last call, of which at most 4,096 are kept."""
        taken = list(self._untaken_ms)
        self._untaken_ms.clear()
        return taken

    def inference_ms(self, percentile: int) -> float | None:
        """A percentile of the last 256 steps, if there were any."""
        recent = self._inference_ms
        return float(np.percentile(recent, percentile)) if recent else None

    def inference_ms_p50(self) -> float | None:
        """Median of the last 256 steps, if there were any."""
        return self.inference_ms(50)

    def output_metrics(self) -> dict[str, dict[str, float]]:
        """For each output that has sent: its rate over the last 64 samples."""
        found = {}
        for name, times in self._published.items():
            span = times[-1] - times[0]
            found[name] = {"effective_fps": (len(times) - 1) / span if span > 0 else 0.0}
        return found

    def stop(self) -> None:
        """Ends the session: inputs close, waits return, `running` is False."""
        self.running = False
        self._resumed.set()
        for mailbox in self.video_inputs.values():
            mailbox.close()
