"""N sessions in the slots of one compiled step: each joins, leaves, changes and stalls alone.

One thread owns the state. Between two steps it makes the changes that sessions ask for; a step
advances the slots that have a frame waiting and leaves the others as they are, bit for bit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt8

from lsd_jax import placement, ring, stream
from lsd_jax.conditioning import ask
from lsd_jax.config import Config
from lsd_jax.data.prompts import IDENTITY
from lsd_jax.live.yuv import yuv420
from lsd_jax.ops import dispatch
from lsd_jax.stream import StreamModel
from lsd_jax.types import Conditioning, StreamState

_log = logging.getLogger("lsd.slots")
_AXES = StreamState(kv=ring.SESSION, key=0, frame=0)  # pyright: ignore[reportArgumentType]


class Shown(NamedTuple):
    """One frame out: the picture, its planes for a video encoder, whether it is to be trusted, what
    it took, and when it is remembered: a frame that comes before then waits."""

    image: UInt8[np.ndarray, "height width 3"]
    planes: UInt8[np.ndarray, "rows width"]
    finite: bool
    step_ms: float
    remembered: Future[np.ndarray]


def read(state: StreamState, slot: Int[Array, ""]) -> StreamState:
    """The session in `slot`, as a state of one session."""
    return jax.tree.map(
        lambda axis, x: lax.dynamic_slice_in_dim(x, slot, 1, axis), _AXES, state
    )  # fmt: skip


def write(state: StreamState, one: StreamState, slot: Int[Array, ""]) -> StreamState:
    """`state` with the session `one` in `slot`."""
    return jax.tree.map(
        lambda axis, x, new: lax.dynamic_update_slice_in_dim(x, new, slot, axis), _AXES, state, one
    )


def pin(
    state: StreamState,
    pinned: tuple[Array, Array, Array],
    slot: Int[Array, ""],
    anew: Bool[Array, "1"],
) -> StreamState:
    """Gives the session in `slot` what `Denoiser.pin` made; `anew` forgets what it has shown."""
    one = read(state, slot)
    steered = one.replace(kv=ring.pin(one.kv, *pinned, jnp.ones(1, bool)))
    return write(state, stream.forget(steered, anew), slot)


def show_listed(
    model: StreamModel,
    state: StreamState,
    frames: UInt8[Array, "b height width 3"],
    controls: UInt8[Array, "b height width n"],
    order: Int[Array, " b"],
    count: Int[Array, ""],
) -> tuple[Array, Array, Bool[Array, " b"]]:
    """The next pictures of the first `count` slots of `order`, one after the other; their planes
    for a video encoder, and whether they are finite.

    For CPUs: costs what the waiting sessions cost, and the bits are those of a session alone.
    """

    def one(i, shown):
        row, put = _at(order[i])
        image, _, good = stream.show(model, read(state, order[i]), row(frames), row(controls))
        return jax.tree.map(put, shown, (image, yuv420(image), good))

    b, height, width = frames.shape[:3]
    planes = jnp.zeros((b, height * 3 // 2, width), jnp.uint8)
    return lax.fori_loop(0, count, one, (jnp.zeros_like(frames), planes, jnp.zeros(b, bool)))


def remember_listed(
    model: StreamModel,
    state: StreamState,
    frames: UInt8[Array, "b height width 3"],
    images: UInt8[Array, "b height width 3"],
    controls: UInt8[Array, "b height width n"],
    order: Int[Array, " b"],
    count: Int[Array, ""],
) -> tuple[StreamState, Bool[Array, " b"]]:
    """The state once those slots have remembered what they have shown, and whether that is
    finite."""

    def one(i, carry):
        state, kept = carry
        row, put = _at(order[i])
        seen = stream.seen(model, row(frames), row(images), row(controls))
        alone, good = stream.remember(model, read(state, order[i]), seen)
        return write(state, alone, order[i]), put(kept, good)

    return lax.fori_loop(0, count, one, (state, jnp.ones(order.shape, bool)))


def _at(slot: Int[Array, ""]) -> tuple[Callable, Callable]:
    """What takes a slot's row out of an array, and what puts it into one."""
    row = partial(lax.dynamic_slice_in_dim, start_index=slot, slice_size=1, axis=0)
    return row, partial(lax.dynamic_update_slice_in_dim, start_index=slot, axis=0)


def show_masked(
    model: StreamModel,
    state: StreamState,
    frames: UInt8[Array, "b height width 3"],
    controls: UInt8[Array, "b height width n"],
    order: Int[Array, " b"],
    count: Int[Array, ""],
) -> tuple[Array, Array, Bool[Array, " b"]]:
    """`show_listed` for accelerators: all slots at once and without a branch."""
    images, _, finite = stream.show(model, state, frames, controls)
    return images, yuv420(images), finite


def remember_masked(
    model: StreamModel,
    state: StreamState,
    frames: UInt8[Array, "b height width 3"],
    images: UInt8[Array, "b height width 3"],
    controls: UInt8[Array, "b height width n"],
    order: Int[Array, " b"],
    count: Int[Array, ""],
) -> tuple[StreamState, Bool[Array, " b"]]:
    """`remember_listed` for accelerators; slots that are not listed keep their state."""
    chosen = jnp.zeros(order.shape, bool).at[order].set(jnp.arange(order.size) < count)
    after, kept = stream.remember(model, state, stream.seen(model, frames, images, controls))

    def keep(axis, old, new):
        shape = [-1 if a == axis else 1 for a in range(old.ndim)]
        return jnp.where(chosen.reshape(shape), new, old)

    return jax.tree.map(keep, _AXES, state, after), kept


@dataclass
class _Waiting:
    slot: int
    image: np.ndarray
    done: Future[Shown]


class Slots:
    """The compiled step of `count` sessions, and the thread that runs it.

    All executables are compiled here, ahead of time; nothing compiles afterwards. `reload` gives
    the weights anew: called when a cold session is still not finite. `together` is how many
    sessions a step takes at most; on a CPU, which computes them one after the other, it is one, so
    that none waits for another's. `died` is called where the thread ends unasked; every call from
    then on is refused.
    """

    def __init__(
        self,
        model: StreamModel,
        config: Config,
        count: int,
        reload: Callable[[], StreamModel] | None = None,
        together: int | None = None,
        died: Callable[[], None] = lambda: None,
    ):
        if count < 1:
            raise ValueError(f"slots={count} must be at least 1")
        on_cpu = jax.default_backend() == "cpu"
        self.config, self.count = config, count
        self.together = together or (1 if on_cpu else count)
        self._reload, self._died = reload, died
        self._free = list(range(count))
        size = config.model.height, config.model.width
        self._frames = np.zeros((count, *size, 3), np.uint8)
        self._controls = np.zeros((count, *size, len(config.model.controls)), np.uint8)
        listed = show_listed, remember_listed
        self._compile(model, *(listed if on_cpu else (show_masked, remember_masked)))
        self._state = self._cold_state()
        self._failed = np.zeros(count, bool)  # not finite at its last step
        self._suspect = np.zeros(count, bool)  # made cold for that, and not stepped since
        self._lost = np.zeros(count, bool)  # its state went with a step that raised
        self._kept: dict[int, Future] = {}  # whether what it remembers of its last is finite
        self._behind = ThreadPoolExecutor(1, "slots-behind")  # waits for that, so that none does
        self._changes: deque[tuple[Callable[[], Any], Future]] = deque()
        self._waiting: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._live, name="slots", daemon=True)
        self._thread.start()

    def _compile(self, model: StreamModel, show: Callable, remember: Callable) -> None:
        def shape(x):
            return jax.ShapeDtypeStruct(x.shape, x.dtype)

        config, count = self.config, self.count
        state, one = (stream.abstract_inputs(config, n)[0] for n in (count, 1))
        slot = jax.ShapeDtypeStruct((), jnp.int32)
        order = jax.ShapeDtypeStruct((count,), jnp.int32)
        wanted, anew = ask([IDENTITY[0][0]], [None], config.model)  # compiles what it needs itself
        frames, controls = shape(self._frames), shape(self._controls)
        with dispatch.using(config.stream.backend):
            model = self._adapted(model)
            given = controls, order, slot
            self._show = placement.compile_reader(show, model, state, frames, *given)
            self._remember = placement.compile_step(
                remember, model, state, frames, frames, *given, beside=self._show
            )
        self._lie = placement.formats(self._show)
        self._model = placement.place(model, self._lie[0])

        def compiled(function, *arguments, gives_state=True):
            """One whose first argument is the state, which it takes over if it gives one back."""
            return jax.jit(
                function,
                donate_argnums=(0,) if gives_state else (),
                in_shardings=(self._lie[1], *(None for _ in arguments)),
                out_shardings=self._lie[1] if gives_state else None,
            ).lower(state, *arguments).compile()  # fmt: skip

        make = jax.jit(
            lambda model, wanted: model.denoiser.pin(wanted), in_shardings=(self._lie[0], None)
        )
        pinned = jax.eval_shape(make, model, wanted)
        self._make_pinned = make.lower(model, wanted).compile()
        self._pin = compiled(pin, pinned, slot, anew)
        self._write = compiled(write, one, slot)
        self._read = compiled(read, slot, gives_state=False)
        cold = jax.jit(lambda seed: stream.init_state(config, seed))
        self._cold = cold.lower(jax.ShapeDtypeStruct((1,), jnp.int32)).compile()

    def _adapted(self, model: StreamModel) -> StreamModel:
        """As the step takes it, which computes one session after the other or all together."""
        sessions = 1 if jax.default_backend() == "cpu" else self.count
        with dispatch.using(self.config.stream.backend):
            return stream.adapt(model, self.config, sessions)

    def _cold_state(self) -> StreamState:
        """Cold sessions in all slots."""
        state = stream.init_state(self.config, jnp.zeros(self.count, jnp.int32))
        return placement.place(state, self._lie[1])

    def take(self) -> int:
        """The number of a free slot, which is free no longer. Raises RuntimeError where none is."""
        if not self._free:
            raise RuntimeError(f"all {self.count} slots are taken; wait or try another server")
        return self._free.pop(0)

    def release(self, slot: int) -> None:
        """Frees a slot for another session."""
        self._free.append(slot)

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def change(self, make: Callable[[], Any]) -> Future:
        """Runs `make` in the thread that owns the state, between two steps."""
        done: Future = Future()
        self._submit(self._changes, (make, done))
        return done

    def step(self, slot: int, image: np.ndarray) -> Future[Shown]:
        """The next frame of `slot`, transformed."""
        done: Future[Shown] = Future()
        self._submit(self._waiting, _Waiting(slot, image, done))
        return done

    def _submit(self, queue: deque, item: Any) -> None:
        with self._wake:
            if self._stopped:
                raise RuntimeError("the model is unloaded; open a session on another server")
            queue.append(item)
            self._wake.notify()

    def pinned(self, wanted: Conditioning) -> tuple[Array, Array, Array]:
        """Keys and values of a prompt and reference; costs other sessions no step."""
        return jax.block_until_ready(self._make_pinned(self._model, wanted))

    def steer(
        self, slot: int, pinned: tuple[Array, Array, Array], anew: Bool[np.ndarray, "1"]
    ) -> None:
        """Gives `slot` another condition, `anew` without its history. Call it by `change`."""
        self._check(slot)
        self._donate(lambda: self._pin(self._state, pinned, np.int32(slot), anew))

    def begin(self, slot: int, seed: int, again: bool = False) -> None:
        """Makes `slot` a cold session, with nothing of what was there; `again`: for the same
        client, whose weights are suspect if its last frame was not finite. Call it by `change`."""
        suspect = again and bool(self._failed[slot])
        self.put(slot, self._cold(np.full(1, seed, np.int32)))
        self._suspect[slot] = suspect

    def get(self, slot: int) -> StreamState:
        """The session in `slot`, on the host. Call it by `change`."""
        self._check(slot)
        return jax.tree.map(np.asarray, self._read(self._state, np.int32(slot)))

    def put(self, slot: int, one: StreamState) -> None:
        """Puts a session into `slot`. Call it by `change`."""
        self._donate(lambda: self._write(self._state, one, np.int32(slot)))
        self._lost[slot] = self._failed[slot] = self._suspect[slot] = False
        self._kept.pop(slot, None)

    def set_mask(self, slot: int, mask: UInt8[np.ndarray, "height width"]) -> None:
        """Confines the edit of `slot`. Call it by `change`."""
        for plane, name in enumerate(self.config.model.controls):
            self._controls[slot, ..., plane] = mask if name == "mask" else 0

    def _check(self, slot: int) -> None:
        if self._lost[slot]:
            raise RuntimeError("the session's state was lost in a step that failed; open another")

    def _donate(self, make: Callable[[], StreamState]) -> None:
        try:
            self._state = make()
        except Exception:
            self._salvage()
            raise

    def _salvage(self) -> None:
        """What is donated to what raises may be gone, and every session with it; so may a state be
        that was promised, and never came."""
        try:
            jax.block_until_ready(self._state)
        except Exception:
            _log.exception("the state of all sessions is lost")
            self._state = self._cold_state()
            self._lost[:] = True

    def close(self) -> None:
        """Ends the thread; what waits is refused."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=60)
        self._behind.shutdown(wait=False)

    def _live(self) -> None:
        try:
            self._work()
        except Exception as error:  # of this module, not of a session: no state is to be trusted
            _log.exception("the thread of the slots failed")
            with self._wake:
                self._stopped = True
            for done in [done for _, done in self._changes] + [w.done for w in self._waiting]:
                if not done.done():
                    done.set_exception(error)
            self._died()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._changes or self._waiting or self._stopped):
                    self._wake.wait()
                changes = [self._changes.popleft() for _ in range(len(self._changes))]
                batch, stopped = self._next_batch(), self._stopped
            for make, done in changes:
                _settle(done, make)
            if batch:
                self._advance(batch)
            if stopped:
                for waiting in self._waiting:
                    waiting.done.cancel()
                return

    def _next_batch(self) -> dict[int, _Waiting]:
        """Whose frame waits longest, and others. A frame whose session is gone is dropped: its slot
        may be another's already."""
        batch: dict[int, _Waiting] = {}
        while self._waiting and len(batch) < self.together:
            if self._waiting[0].slot in batch:
                break
            waiting = self._waiting.popleft()
            if waiting.done.set_running_or_notify_cancel():
                batch[waiting.slot] = waiting
        return batch

    def _advance(self, batch: dict[int, _Waiting]) -> None:
        for slot in [slot for slot in batch if self._lost[slot]]:
            _settle_running(batch.pop(slot).done, partial(self._check, slot))
        if not batch:
            return
        started = time.perf_counter()
        order = np.zeros(self.count, np.int32)
        listed = list(batch)
        order[: len(listed)] = listed
        order[len(listed) :] = [s for s in range(self.count) if s not in batch]
        try:
            for slot, waiting in batch.items():
                self._frames[slot] = waiting.image
            # Copies: an array of a CPU's may be NumPy's memory, whatever `may_alias` says, and the
            # next frame may come before this one is remembered.
            frames, controls = jax.device_put((self._frames.copy(), self._controls.copy()))
            given = controls, order, np.int32(len(listed))
            shown = self._show(self._model, self._state, frames, *given)
            # Behind the pictures: who waits for those does not wait for this.
            self._state, kept = self._remember(self._model, self._state, frames, shown[0], *given)
            images, planes, finite = (np.asarray(x) for x in shown)
        except Exception as error:
            self._salvage()
            for waiting in batch.values():
                waiting.done.set_exception(error)
            return
        step_ms = (time.perf_counter() - started) * 1e3
        remembered = self._behind.submit(np.asarray, kept)
        for slot, waiting in batch.items():
            before = self._kept.get(slot)
            good = bool(finite[slot]) and (before is None or bool(before.result()[slot]))
            self._kept[slot] = remembered
            self._heal(slot, good)
            waiting.done.set_result(Shown(images[slot], planes[slot], good, step_ms, remembered))

    def _heal(self, slot: int, finite: bool) -> None:
        """A session that was made cold and is not finite even so has bad weights."""
        if not finite and self._suspect[slot] and self._reload:
            try:
                self._model = placement.place(self._adapted(self._reload()), self._lie[0])
            except Exception:
                _log.exception("the weights are not finite, and could not be loaded again")
            self._suspect[:] = False
        self._failed[slot], self._suspect[slot] = not finite, False


def _settle(done: Future, make: Callable[[], Any]) -> None:
    if done.set_running_or_notify_cancel():
        _settle_running(done, make)


def _settle_running(done: Future, make: Callable[[], Any]) -> None:
    try:
        done.set_result(make())
    except Exception as error:
        done.set_exception(error)
