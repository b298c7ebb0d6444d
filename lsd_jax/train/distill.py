"""Distillation: a student learns what its teacher answers to the very same questions.

Recovers a pruned model from the one that it was cut from (in short time, since a teacher's answer
says more than one truth), and teaches any smaller student.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
from jaxtyping import Array, Float

from lsd_jax.config import Config, TrainConfig
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.train.denoising import Question, Seen, answer, flow, remember
from lsd_jax.train.history import imperfect_history_loss


def distill_loss(
    model: Denoiser, teacher: Denoiser, batch: Batch, key: Array, config: Config
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`denoising_loss` beside the history of the history stage, towards a mean of the truth and
    the teacher's answer, of which the teacher has `config.distill.weight`."""
    ask = partial(taught, teacher=teacher, batch=batch, weight=config.distill.weight)
    return imperfect_history_loss(model, batch, key, config, ask)


def taught(
    seen: Seen, key: Array, settings: TrainConfig, teacher: Denoiser, batch: Batch, weight: float
) -> Question:
    """The flow's questions, answered by truth and teacher together. (The squared error to a mean
    has the gradient of the mean of the squared errors.)"""
    asked = flow(seen, key, settings)
    theirs = answer(teacher, seen, remember(teacher, batch, seen), asked)
    goal = (1 - weight) * asked.answer + weight * theirs
    return replace(asked, answer=jax.lax.stop_gradient(goal))
