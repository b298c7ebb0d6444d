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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lsd_jax import ring, sharding, stream
from lsd_jax.conditioning import taken_back
from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.data.pipeline import BANK, STREAMS
from lsd_jax.data.plan import Plan, draw_plan
from lsd_jax.data.rendered import render
from lsd_jax.model import build
from lsd_jax.ops.partition import BATCH_AXES
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
        parts = sharding.parts(mesh)
        self._run_at_once = -(-self.streams // parts) * parts  # as many on each device
        self.states: dict[int, StreamState] = {}
        self._mesh = mesh
        lies = jax.tree.map(partial(NamedSharding, mesh), _by_session())
        self._cold = jax.jit(partial(stream.init_state, config), out_shardings=lies)
        run = partial(stream_clips, config, streams=self.streams)
        batch = NamedSharding(mesh, sharding.BATCH)
        self._run = jax.jit(run, donate_argnums=1, out_shardings=(lies, batch))

    def mixed(self, plans: Callable[[int], Plan]) -> Callable[[int], Plan]:
        """`plans` with the clips behind them that the streams of each step meet."""
        return lambda step: plans(step).before(self.clips(step))

    def clips(self, step: int) -> Plan:
        """What the streams of `step` meet: the same for the same step."""
        group, life, age = _place(step)
        train = replace(self.config.train, old_frames=0)  # a stream has no gaps
        rng = np.random.default_rng([train.seed, BANK, group, life])
        plan = draw_plan(self.config.model, train, rng, self.streams).later(age * train.frames)
        if self.config.train.old_frames:
            plan = replace(plan, old=np.zeros(self.streams, np.int32))
        if plan.carried is None or not age:
            return plan
        # Its prompt was taken back in its first clip, or never is.
        return replace(plan, carried=np.where(plan.carried < train.frames, 0, plan.carried))

    def make(self, step: int, weights: dict, plan: Plan) -> Batch:
        """The batch of `step` with what the streams make of their clips."""
        group, _, age = _place(step)
        state = self.states.pop(group, None)
        if state is None or age == 0:
            state = self._cold(self._seeds(step))
            if plan.carried is not None and age:  # they remember nothing to carry on with
                told = np.array(plan.carried)
                told[-self.streams :] = self.config.train.frames
                plan = replace(plan, carried=told)
        batch = render(plan, self.config.model, self._mesh)
        self.states[group], shown = self._run(weights, state, batch)
        return replace(batch, shown=shown)

    def _seeds(self, step: int) -> np.ndarray:
        """Of the streams that begin at `step`; those that are shown have the same ones on however
        many devices."""
        rng = np.random.default_rng([self.config.train.seed, STREAMS, step])
        return rng.integers(2**31, size=self._run_at_once, dtype=np.int32)[::-1]


def own_clips(config: Config) -> int:
    """How many clips of a batch, at its end, have the model's own stream as their history."""
    return round(config.history.rolled_out * config.train.batch)


def stream_clips(
    config: Config, weights: dict, state: StreamState, batch: Batch, streams: int
) -> tuple[StreamState, Array]:
    """Streams the last clips of `batch`, as many as there are states: the states behind them, and
    what is shown of the whole batch, `[B, F, H, W, 3]` bytes: by the last `streams` of them, and
    the truth elsewhere."""
    model = stream.prepare(build(config.model, weights), config)
    sessions = state.frame.shape[0]
    mine = jax.tree.map(lambda x: x[-sessions:], batch)
    heard = mine.condition
    if mine.carried is not None:
        heard = jax.tree.map(
            lambda x, y: jnp.where((mine.carried == 0).reshape(-1, *(1,) * (x.ndim - 1)), x, y),
            taken_back(heard),
            heard,
        )
    state = stream.condition(model, state, heard, jnp.ones(sessions, bool))
    clip = tuple(jnp.moveaxis(x, 1, 0) for x in (mine.source, mine.controls))
    state, shown = jax.lax.scan(lambda s, x: stream.frame_step(model, s, x[0], x[1]), state, clip)
    shown = jnp.moveaxis(shown, 0, 1)[-streams:]
    return state, jnp.concatenate([batch.target[:-streams], shown])


def _by_session() -> StreamState:
    """Where states lie whose sessions are split over a mesh as clips are."""
    kv = jax.tree.map(lambda axis: PartitionSpec(*[None] * axis, BATCH_AXES), ring.SESSION)
    rows: Any = sharding.BATCH  # stands in the place of arrays
    return StreamState(kv=kv, key=rows, frame=rows)


def _place(step: int) -> tuple[int, int, int]:
    """The group of streams that a step takes further, which life of it, and its age in clips."""
    group, visit = step % GROUPS, step // GROUPS
    life, age = divmod(visit, 2**group)
    return group, life, age
