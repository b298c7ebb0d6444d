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
from jaxtyping import Array, Bool, UInt8

from lsd_jax import placement, stream
from lsd_jax.conditioning import ask
from lsd_jax.config import Config
from lsd_jax.data.prompts import IDENTITY
from lsd_jax.live import steps
from lsd_jax.ops import dispatch
from lsd_jax.stream import StreamModel
from lsd_jax.types import Conditioning, StreamState

_log = logging.getLogger("lsd.slots")


class Shown(NamedTuple):
    """One frame out: the picture, its planes for a video encoder, whether it is to be trusted, what
    it took, and when it is remembered: a frame that comes before then waits."""

    image: UInt8[np.ndarray, "height width 3"]
    planes: UInt8[np.ndarray, "rows width"]
    finite: bool
    step_ms: float
    remembered: Future[np.ndarray]


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
        if on_cpu:
            self._compile(model, steps.show_listed, steps.remember_listed)
        else:
            self._compile(model, steps.show_masked, steps.remember_masked)
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
        asked = jax.tree.map(shape, self._asked([]))
        with dispatch.using(config.stream.backend):
            model = self._adapted(model)
            self._show = placement.compile_reader(show, model, state, asked)
            self._remember = placement.compile_step(
                remember, model, state, asked, asked.frames, beside=self._show
            )
        # Compiles what it needs itself, after kernels have been looked for: importing Pallas makes
        # JAX 0.12 forget such executables.
        wanted, anew = ask([IDENTITY[0][0]], [None], config.model)
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
        self._pin = compiled(steps.pin, pinned, slot, anew)
        self._write = compiled(steps.write, one, slot)
        self._read = compiled(steps.read, slot, gives_state=False)
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
        self._controls[slot] = mask[..., None]

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
        try:
            for slot, waiting in batch.items():
                self._frames[slot] = waiting.image
            asked = self._asked(list(batch))
            shown = self._show(self._model, self._state, asked)
            # Behind the pictures: who waits for those does not wait for this.
            self._state, kept = self._remember(self._model, self._state, asked, shown[0])
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

    def _asked(self, listed: list[int]) -> steps.Asked:
        """What a step of the listed slots is given. Copies: an array of a CPU's may be NumPy's
        memory, whatever `may_alias` says, and the next frame may come before this one is
        remembered."""
        others = [slot for slot in range(self.count) if slot not in listed]
        order, count = np.array([*listed, *others], np.int32), np.int32(len(listed))
        given = self._frames.copy(), self._controls.copy(), order, count
        return steps.Asked(*jax.device_put(given))

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
