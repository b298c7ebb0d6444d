"""The model's own streams as training history: a bank that grows old and is renewed.

*Smart* history augmentation: what a stream remembers wrongly depends on the model, so let it
stream. The bank holds groups of streams; each step takes the next clip of one group through the
very step that users run, with the running mean of the weights, and trains on what it showed as
history. Group `g` begins anew after `2^g` clips, so that all ages are met, from a cold start to
hundreds of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lsd_jax import sharding, stream
from lsd_jax.conditioning import taken_back
from lsd_jax.config import Config
from lsd_jax.data import rendered
from lsd_jax.data.batch import Batch
from lsd_jax.model import build
from lsd_jax.types import StreamState

GROUPS = 7  # the oldest runs for 64 clips


class Rollouts:
    """The bank of a training run: the last `streams` clips of every batch.

    What it holds is not saved: a run that goes on from a checkpoint goes on with cold streams, in
    the middle of their worlds. Those that were told to carry on are told their prompt again first.
    """

    def __init__(self, config: Config, mesh: Mesh):
        self.config = config
        self.streams = own_clips(config)
        self.states: dict[int, StreamState] = {}
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._cold = jax.jit(partial(stream.init_state, config), out_shardings=everywhere)
        places = (everywhere, NamedSharding(mesh, sharding.BATCH))
        self._run = jax.jit(partial(stream_clips, config), donate_argnums=1, out_shardings=places)

    def mixed(self, batches: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """`batches` with the clips behind them that the streams of each step meet."""

        def batch(step: int) -> Batch:
            parts = batches(step), self.clips(step)
            return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

        return batch

    def clips(self, step: int) -> Batch:
        """What the streams of `step` meet: the same for the same step."""
        group, life, age = _place(step)
        model = self.config.model
        train = replace(self.config.train, old_frames=0)  # a stream has no gaps
        rng = np.random.default_rng([train.seed, 2, group, life])
        plan = rendered.draw_plan(model, train, rng, self.streams)
        clips = rendered.render(plan, model, after=age * train.frames)
        if self.config.train.old_frames:
            clips = replace(clips, old=jnp.zeros(self.streams, jnp.int32))
        if clips.carried is None or not age:
            return clips
        # Its prompt was taken back in its first clip, or never is.
        return replace(clips, carried=jnp.where(clips.carried < train.frames, 0, train.frames))

    def show(self, step: int, weights: dict, batch: Batch) -> Batch:
        """The batch of `step` with what the streams make of their clips."""
        group, _, age = _place(step)
        state = self.states.pop(group, None)
        if state is None or age == 0:
            state = self._cold(np.arange(self.streams, dtype=np.int32) + step * self.streams)
            if batch.carried is not None and age:  # they remember nothing to carry on with
                told = batch.carried.at[-self.streams :].set(self.config.train.frames)
                batch = replace(batch, carried=told)
        self.states[group], shown = self._run(weights, state, batch)
        return replace(batch, shown=shown)


def own_clips(config: Config) -> int:
    """How many clips of a batch, at its end, have the model's own stream as their history."""
    return round(config.history.rolled_out * config.train.batch)


def stream_clips(
    config: Config, weights: dict, state: StreamState, batch: Batch
) -> tuple[StreamState, Array]:
    """Streams the last clips of `batch`: the states behind them, and what is shown of the whole
    batch, `[B, F, H, W, 3]` bytes: the truth where nothing is streamed."""
    model = stream.prepare(build(config.model, weights), config)
    streams = state.frame.shape[0]
    mine = jax.tree.map(lambda x: x[-streams:], batch)
    heard = mine.condition
    if mine.carried is not None:
        heard = jax.tree.map(
            lambda x, y: jnp.where((mine.carried == 0).reshape(-1, *(1,) * (x.ndim - 1)), x, y),
            taken_back(heard),
            heard,
        )
    state = stream.condition(model, state, heard, jnp.ones(streams, bool))
    clip = tuple(jnp.moveaxis(x, 1, 0) for x in (mine.source, mine.controls))
    state, shown = jax.lax.scan(lambda s, x: stream.frame_step(model, s, x[0], x[1]), state, clip)
    return state, jnp.concatenate([batch.target[:-streams], jnp.moveaxis(shown, 0, 1)])


def _place(step: int) -> tuple[int, int, int]:
    """The group of streams that a step takes further, which life of it, and its age in clips."""
    group, visit = step % GROUPS, step // GROUPS
    life, age = divmod(visit, 2**group)
    return group, life, age
