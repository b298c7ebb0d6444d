"""Shortcut distillation: two small steps of a teacher become one large step of the student.

After Frans et al. 2024, "One Step Diffusion via Shortcut Models": the size of the step is an input
of the model. On most frames it learns the flow as every stage does; on the others, to reach in
one step what the teacher reaches in two of half the size. The teacher is the running mean of the
weights in training, or a checkpoint, such as a larger model; classifier-free guidance is applied to
it and so folded into the student. One model then streams at 1, 2 or 4 passes.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax import diffusion
from lsd_jax.config import Config, TrainConfig
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.train.denoising import (
    Question,
    Rows,
    Seen,
    answer,
    flow,
    remember,
)
from lsd_jax.train.history import imperfect_history_loss
from lsd_jax.types import KVBuffer


def shortcut_loss(
    model: Denoiser, teacher: Denoiser, batch: Batch, key: Array, config: Config
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`denoising_loss` beside the history of the history stage, with `config.shortcut.share` of
    the rows answered by the teacher."""
    ask = partial(two_in_one, teacher=teacher, batch=batch, config=config)
    return imperfect_history_loss(model, batch, key, config, ask)


def two_in_one(
    seen: Seen, key: Array, settings: TrainConfig, teacher: Denoiser, batch: Batch, config: Config
) -> Question:
    """The flow's questions with step size 0, the infinitely small, but for a share of the rows:
    there one large step, answered by two of the teacher's. That answer is kept within [-1, 1],
    where all latents lie; the paper does not.

    Of a running mean only the infinitely small steps are guided, as in the paper: its larger ones
    learned that already, and guided again would have it twice. A checkpoint that teaches learns
    nothing: all its steps are guided.
    """
    rows_key, flow_key, noise_key, step_key, t_key = jax.random.split(key, 5)
    asked = flow(seen, flow_key, settings)
    rows = asked.t.shape[0]
    count = round(config.shortcut.share * rows)
    if not count:
        return replace(asked, step=jnp.zeros_like(asked.t))
    some = jax.random.permutation(rows_key, rows)[:count]
    kv, part = _rows(remember(teacher, batch, seen), seen, some)
    none = None
    if config.shortcut.guidance != 1:
        nothing = jax.tree.map(jnp.zeros_like, batch.condition)
        blank = replace(batch, condition=nothing, carried=None)
        none, _ = _rows(remember(teacher, blank, seen), seen, some)

    step = jax.random.choice(step_key, jnp.asarray(diffusion.STEP_SIZES), (count,))
    t = step * jnp.floor(jax.random.uniform(t_key, step.shape) / step)  # on the grid of its step
    noise = jax.random.normal(noise_key, part.clean.shape, part.clean.dtype)
    noisy = diffusion.add_noise(part.clean, noise, t)
    half = step / 2
    told = jnp.where(half < min(diffusion.STEP_SIZES), 0, half)

    def teach(t: Array, noisy: Rows) -> Rows:
        question = Question(t, told, noisy, noisy)
        clean = answer(teacher, part, kv, question)
        if none is None:
            return clean
        blank = answer(teacher, part, none, question)
        guided = (told == 0) | bool(config.distill.teacher)
        weight = jnp.where(guided, config.shortcut.guidance, 1)
        return blank + _wide(weight, clean) * (clean - blank)

    first = diffusion.advance(noisy, teach(t, noisy), t, half)
    second = diffusion.advance(first, teach(t + half, first), t + half, half)
    goal = noisy + (second - noisy) * _wide((1 - t) / step, noisy)  # what one step must see ahead
    goal = jax.lax.stop_gradient(jnp.clip(goal, -1, 1))
    return Question(
        t=asked.t.at[some].set(t),
        step=jnp.zeros_like(asked.t).at[some].set(step),
        noisy=asked.noisy.at[some].set(noisy),
        answer=asked.answer.at[some].set(goal),
    )


def _wide(x: Float[Array, " r"], like: Rows) -> Array:
    return x[:, None, None, None].astype(like.dtype)


def _rows(kv: KVBuffer, seen: Seen, some: Array) -> tuple[KVBuffer, Seen]:
    """Some of the rows."""
    kv = KVBuffer(
        *(x[:, some] for x in (kv.k, kv.v)), *(x[some] for x in (kv.pinned, kv.age, kv.memory))
    )
    return kv, Seen(*(getattr(seen, name)[some] for name in Seen.__annotations__))
