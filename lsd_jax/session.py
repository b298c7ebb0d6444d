"""One stream from a source of frames to a sink, with its prompts, clocks and counters."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import UInt8

from lsd_jax import stream
from lsd_jax.conditioning import ask
from lsd_jax.config import Config
from lsd_jax.data.prompts import encode
from lsd_jax.interruption import stop_on_signal
from lsd_jax.model import Denoiser
from lsd_jax.reports import provenance
from lsd_jax.times import Times

Schedule = list[tuple[float, str]]


@runtime_checkable
class Sink(Protocol):
    """What takes the frames: `data.video.VideoSink`, or anything with these two."""

    def write(self, image: UInt8[np.ndarray, "h w 3"], time_s: float | None = None) -> None: ...

    def keep_partial(self) -> None: ...


@dataclass
class Clock:
    """What happened in a running stream."""

    latency_ms: Times = field(default_factory=Times)  # next frame asked for, to handed on
    execute_ms: Times = field(default_factory=Times)  # executable called, to output ready
    host_ms: Times = field(default_factory=Times)  # the rest, from when the frame is here
    launches: int = 0
    compiles: int = 0


class Session:
    """A compiled stream of one session, cold and ready for its first frame; on a `mesh`, its
    devices share each frame."""

    def __init__(
        self,
        model: Denoiser,
        config: Config,
        seed: int = 0,
        mask: UInt8[np.ndarray, "h w"] | None = None,
        mesh: Mesh | None = None,
    ):
        if config.model.external_text_dim:
            raise ValueError("this model takes prompts as embeddings; stream it from Python")
        self.config, self.clock = config, Clock()
        prepared = stream.prepare(model, config)
        self._compiled = stream.compile_stream(
            prepared, config, mesh=mesh, step=stream.checked_step
        )
        init = jax.jit(stream.init_state, static_argnums=0)
        self._state = self._compiled.place(init(config, jnp.full(1, seed, jnp.int32)))
        height, width = config.model.height, config.model.width
        if mask is None:
            mask = np.full((height, width), 255, np.uint8)
        elif "mask" not in config.model.controls:
            raise ValueError("this model has no mask plane; train one with controls=('mask',)")
        controls = stream.control_planes(config.model.controls, jnp.asarray(mask)[None])
        self._controls = self._compiled.place_input(controls)
        self._everything = np.ones(1, bool)

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError for a prompt that the model does not take."""
        for _, prompt in schedule:
            encode(prompt, self.config.model.prompt_bytes)

    def condition(self, prompt: str, reference: UInt8[np.ndarray, "h w 3"] | None) -> None:
        """Changes prompt and reference; the next frame is the first to show it, and to start
        from no history, since what was shown so far answered another prompt. The prompt
        `prompts.CARRY_ON` keeps the history, and has the stream go on as that shows."""
        wanted, anew = ask([prompt], [reference], self.config.model)
        self._state = self._compiled.condition(
            self._compiled.model, self._state, wanted, self._everything
        )
        self._state = self._compiled.forget(self._state, anew)

    def step(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The next frame, transformed: one launch. Raises ValueError where what the model shows or
        remembers is not finite, from which a stream does not recover."""
        start = time.perf_counter()
        self._state, out, finite = self._compiled.step(
            self._compiled.model, self._state, frame[None], self._controls
        )
        out.block_until_ready()
        self.clock.launches += 1
        self.clock.execute_ms.add((time.perf_counter() - start) * 1e3)
        if not np.asarray(finite)[0]:
            raise ValueError(
                f"frame {self.clock.launches} is not a number in the model's arithmetic, "
                f"{self.config.stream.compute_dtype}; set stream.compute_dtype=float32, or give "
                "another checkpoint"
            )
        return np.asarray(out)[0]

    def dispatch_ms(self, calls: int = 50) -> float:
        """Median time of a call that does nothing with the same arguments: the host's share of a
        launch."""
        idle = jax.jit(lambda model, state: state, donate_argnums=1)
        idle = idle.lower(self._compiled.model, self._state).compile()
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            self._state = idle(self._compiled.model, self._state)
            times.append((time.perf_counter() - start) * 1e3)
            self._state = self._compiled.place(jax.block_until_ready(self._state))
        return float(np.median(times))

    @property
    def chips(self) -> int:
        """Devices that share each frame."""
        return len(self._controls.sharding.device_set)

    @property
    def backends(self) -> dict[str, str]:
        """By which implementation each op runs."""
        return self._compiled.backends


def play(
    session: Session,
    source: Iterable[tuple[np.ndarray, float]],
    sink: Sink,
    schedule: Schedule,
    reference: UInt8[np.ndarray, "h w 3"] | None = None,
    started: float | None = None,
    total: int | None = None,
    live: bool = False,
) -> dict:
    """Streams all of `source` into `sink`, changing the prompt at its times; gives the report.

    `started` (of `time.perf_counter`) is where the time to the first frame counts from; `total` is
    how many frames there will be, if known. A frame's latency counts from when it was asked for
    or, from a `live` source, from when it came. Ctrl-C ends the stream after the frame at hand, or
    while it waits for one, and the sink keeps what is done; so does a frame that is not finite,
    whose ValueError is raised. A prompt whose time never came is warned of.
    """
    started = time.perf_counter() if started is None else started
    clock, pending = session.clock, sorted(schedule, key=lambda change: change[0])
    first_ms, begun = 0.0, time.perf_counter()
    with count_compiles(clock), _bar(total) as tick, stop_on_signal() as stopped:
        frames = iter(source)
        while not stopped:
            asked = time.perf_counter()
            try:
                with stopped.waiting():
                    item = next(frames, None)
            except KeyboardInterrupt:
                if not stopped:
                    raise
                break
            if item is None:
                break
            came = time.perf_counter()
            image, time_s = item
            while pending and pending[0][0] <= time_s:
                session.condition(pending.pop(0)[1], reference)
            try:
                shown = session.step(image)
            except ValueError as error:
                before = clock.latency_ms.count
                if not before:
                    raise
                sink.keep_partial()
                raise ValueError(f"{error}; the {before} frames before it are kept") from error
            sink.write(shown, time_s)
            done = time.perf_counter()
            if not clock.latency_ms.count:
                first_ms, begun = (done - started) * 1e3, done
                clock.compiles = 0
            clock.latency_ms.add((done - (came if live else asked)) * 1e3)
            clock.host_ms.add((done - came) * 1e3 - clock.execute_ms.recent[-1])
            tick(clock)
    wall_s = time.perf_counter() - begun
    if stopped:
        sink.keep_partial()
    if not clock.latency_ms.count:
        if stopped:
            raise KeyboardInterrupt("interrupted before the first frame")
        raise ValueError("the input gave no frame")
    for change_s, prompt in [] if stopped else pending:
        logging.warning("the input ended before %g s, when %r was to come", change_s, prompt)
    return {
        **figures(clock, wall_s, session.dispatch_ms()),
        "time_to_first_frame_ms": first_ms,
        "interrupted": bool(stopped),
        "config": session.config.name,
        "backend": jax.default_backend(),
        "ops": session.backends,
        "chips": session.chips,
        "kind": "measured",
        **provenance(),
    }


def figures(clock: Clock, wall_s: float, dispatch_ms: float) -> dict:
    """The report's figures; the first frame, which warms caches, counts in none but `max`, and
    alone has no rate."""
    latency, frames = clock.latency_ms, clock.latency_ms.count
    return {
        "frames": frames,
        "fps": (frames - 1) / wall_s if frames > 1 else None,
        "latency_ms": {
            "p50": latency.percentile(50),
            "p99": latency.percentile(99),
            "max": latency.max,
        },
        "launches_per_frame": clock.launches / frames,
        "recompiles_after_warmup": clock.compiles,
        "host_ms_p50": clock.host_ms.percentile(50) + dispatch_ms,
    }


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@contextmanager
def count_compiles(clock: Clock):
    """Counts in `clock.compiles` whatever XLA compiles in this process meanwhile."""

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        clock.compiles += event == _COMPILE_EVENT

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@contextmanager
def _bar(total: int | None):
    """A progress bar with live fps and p99; yields what to call after each frame."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("streaming"), BarColumn(), MofNCompleteColumn(), note)
    with Progress(*columns, refresh_per_second=4) as bar:
        task = bar.add_task("", total=total, note="")
        shown_at = time.perf_counter()

        def tick(clock: Clock) -> None:
            nonlocal shown_at
            now = time.perf_counter()
            if now - shown_at > 0.25 or clock.latency_ms.count == total:
                shown_at = now
                recent = np.array(clock.latency_ms.recent)
                note = f"{1e3 / recent.mean():.1f} fps  p99 {np.percentile(recent, 99):.1f} ms"
                bar.update(task, completed=clock.latency_ms.count, note=note)

        yield tick
