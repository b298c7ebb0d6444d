"""The streams that are evaluated: a model's, through the frame step that users run."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from lsd_jax import stream
from lsd_jax.conditioning import ask
from lsd_jax.config import Config
from lsd_jax.model import Denoiser
from lsd_jax.ops import dispatch
from lsd_jax.types import Frame, StreamState

Frames = UInt8[np.ndarray, "b f h w 3"]
Advance = Callable[[Frames], Frames]
Stream = Callable[[Sequence[str], Sequence[np.ndarray | None]], Advance]
"""Opens cold streams, one per prompt and reference (or None); the result takes their next frames,
any number of them, and returns what they become. Much of what is evaluated needs no more."""


@runtime_checkable
class Resumable(Protocol):
    """Streams that can be stopped and gone on with."""

    def fingerprint(self) -> str:
        """Of all that the streams depend on but their input."""
        ...

    def snapshot(self) -> list[np.ndarray]: ...

    def restore(self, snapshot: list[np.ndarray]) -> None: ...


class ModelStreams:
    """Opens streams of a model, `batch` at once; compiled here, once. Is a `Stream`.

    Fewer streams than `batch` are filled up with copies of the last.
    """

    def __init__(self, denoiser: Denoiser, config: Config, batch: int, seed: int):
        if config.model.external_text_dim:
            raise ValueError("this model takes prompts as embeddings; only text can be evaluated")
        self.config, self.batch, self._seed, self._opened = config, batch, seed, 0
        self._denoiser, self._others = denoiser, dict[int, ModelStreams]()
        self.compiled = stream.compile_stream(stream.prepare(denoiser, config), config, batch)
        self.fresh = jax.jit(partial(stream.init_state, config))
        self.misremember = jax.jit(partial(_misremember, config.stream.backend), donate_argnums=1)
        everywhere = jnp.full((batch, config.model.height, config.model.width), 255, jnp.uint8)
        self.controls = stream.control_planes(config.model.controls, everywhere)

    def __call__(
        self, texts: Sequence[str], references: Sequence[np.ndarray | None]
    ) -> RunningStreams:
        """Cold streams. The same seed opens the same ones in the same order."""
        if len(texts) > self.batch:
            raise ValueError(f"{len(texts)} streams at once, compiled for {self.batch}")
        rng = np.random.default_rng([self._seed, self._opened])
        self._opened += 1
        state = self.fresh(rng.integers(1 << 31, size=self.batch).astype(np.int32))
        state = self.compiled.place(state)
        return RunningStreams(self, state, texts, references)

    def anew(self) -> ModelStreams:
        """The same executables, which open the same streams again from the first on."""
        other = copy.copy(self)
        other._opened = 0
        other._others = {batch: streams.anew() for batch, streams in self._others.items()}
        return other

    def of(self, batch: int) -> ModelStreams:
        """For so many streams at once, compiled where that is another number: what is to run for
        hours is not to be filled up."""
        if batch == self.batch:
            return self
        if batch not in self._others:
            self._others[batch] = ModelStreams(self._denoiser, self.config, batch, self._seed)
        return self._others[batch]

    @cached_property
    def fingerprint(self) -> str:
        """Of weights, settings, batch and seed. Whom `auto` lets compute them is not part of it:
        that is a matter of last bits."""
        settings = (self.config.model, self.config.stream, self.batch, self._seed)
        found = hashlib.sha256(repr(settings).encode())
        for leaf in jax.tree.leaves(stream.prepare(self._denoiser, self.config)):
            found.update(np.asarray(leaf).tobytes())
        return found.hexdigest()[:16]

    def fill(self, x: np.ndarray) -> jax.Array:
        """Rows of the streams that there are, as rows of the whole batch."""
        return jnp.asarray(np.concatenate([x, np.repeat(x[-1:], self.batch - len(x), axis=0)]))


class RunningStreams:
    """Some streams side by side; called with their next frames it returns what they become."""

    def __init__(
        self,
        streams: ModelStreams,
        state: StreamState,
        texts: Sequence[str],
        references: Sequence[np.ndarray | None],
    ):
        self._streams, self._state, self._count = streams, state, len(texts)
        self._all = np.ones(streams.batch, bool)
        self._condition(texts, references)

    def __call__(self, frames: Frames) -> Frames:
        streams, shown = self._streams, []
        compiled = streams.compiled
        for i in range(frames.shape[1]):
            self._state, out = compiled.step(
                compiled.model, self._state, streams.fill(frames[:, i]), streams.controls
            )
            shown.append(np.asarray(out)[: self._count])
        return np.stack(shown, axis=1)

    def ask(self, texts: Sequence[str], references: Sequence[np.ndarray | None]) -> None:
        """Changes prompts and references as a user's session does."""
        anew = self._condition(texts, references)
        self._state = self._streams.compiled.forget(self._state, anew)

    def misremember(self, frames: Frames, shown: Frames) -> None:
        """Makes the streams remember `shown` as what they made of `frames`."""
        streams = self._streams
        for i in range(frames.shape[1]):
            self._state = streams.misremember(
                streams.compiled.model,
                self._state,
                streams.fill(frames[:, i]),
                streams.fill(shown[:, i]),
                streams.controls,
            )
        self._state = streams.compiled.place(self._state)

    def fingerprint(self) -> str:
        return self._streams.fingerprint

    def snapshot(self) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(self._state)]

    def restore(self, snapshot: list[np.ndarray]) -> None:
        leaves, structure = jax.tree.flatten(self._state)
        # NumPy files know no bfloat16; its bytes come back as what they are.
        restored = [jnp.asarray(x.view(old.dtype)) for old, x in zip(leaves, snapshot, strict=True)]
        self._state = self._streams.compiled.place(jax.tree.unflatten(structure, restored))

    def _condition(
        self, texts: Sequence[str], references: Sequence[np.ndarray | None]
    ) -> jax.Array:
        streams, compiled = self._streams, self._streams.compiled
        asked = ask(texts, references, streams.config.model)
        wanted, anew = jax.tree.map(lambda x: streams.fill(np.asarray(x)), asked)
        self._state = compiled.condition(compiled.model, self._state, wanted, self._all)
        return anew


def _misremember(
    backend: str,
    model: stream.StreamModel,
    state: StreamState,
    frame: Frame,
    shown: Frame,
    controls: jax.Array,
) -> StreamState:
    """The state after a frame that came out as `shown`; the noise to come stays as it was."""
    with dispatch.using(backend):
        after, _ = stream.remember(model, state, stream.seen(model, frame, shown, controls))
    return after.replace(key=state.key)
