"""What a run of the grid is worth: the error of what it shows, on worlds that no run has seen."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsd_jax import diffusion, stream
from lsd_jax.config import Config, ModelConfig, TrainConfig
from lsd_jax.data.batch import Batch
from lsd_jax.data.pipeline import plans
from lsd_jax.data.plan import draw_plan
from lsd_jax.data.rendered import render
from lsd_jax.model import Denoiser, build
from lsd_jax.quantize import dequantize, quantize
from lsd_jax.train.denoising import look, remember
from lsd_jax.train.rollouts import stream_clips

UNSEEN = 1_000_000  # the number of the first batch that scores
SCORED = 8  # batches of pictures
PASSES = (1, 2)
STREAMS = 24
FRAMES = 64  # of each stream, of which the second half is the score
CHUNK = 16  # frames rendered and streamed at once


@cache
def shared_batches(height: int, width: int, settings: TrainConfig):
    """The batches of a step, rendered once for all runs: they do not depend on the model."""
    config = Config("shared", ModelConfig(height=height, width=width), train=settings)
    draw = plans(config)
    return cache(lambda step: render(draw(step), config.model))


def of_pictures(model: Denoiser, config: Config) -> dict[str, Any]:
    """Mean squared errors of single frames shown, in [-1, 1] units: by passes, and at one pass with
    weights rounded."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params)
    forms = {"bfloat16": rounded, "int8": dequantize(quantize(params, "int8"))}
    shared = shared_batches(config.model.height, config.model.width, config.train)
    keys = jax.random.split(jax.random.key(1), SCORED)
    error = jax.jit(shown_error, static_argnums=3)

    def mean(model: Denoiser, passes: int) -> float:
        each = [error(model, shared(UNSEEN + i), keys[i], passes) for i in range(SCORED)]
        return float(np.mean(jax.device_get(each)))

    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "error": {str(passes): mean(model, passes) for passes in PASSES},
        "weights": {form: mean(build(config.model, p), 1) for form, p in forms.items()},
    }


def shown_error(model: Denoiser, batch: Batch, key: jax.Array, passes: int) -> jax.Array:
    """The error of the frames that `passes` passes show, against their truth."""

    def without_error(clean, source, key):
        return clean, jnp.zeros(clean.shape[:2])

    seen = look(batch, without_error, key, model.embed.dtype)
    kv = remember(model, batch, seen)
    rows, levels = seen.level.shape[0], diffusion.pass_levels(passes)
    step = jnp.full(rows, diffusion.step_size(passes))

    def predict(i: int, noisy: jax.Array) -> jax.Array:
        modulation = model.modulation(jnp.full(rows, levels[i]), jnp.zeros(rows), step)
        return model.denoise(seen.source, noisy, seen.controls, kv, modulation)

    noise = jax.random.normal(key, seen.clean.shape, seen.clean.dtype)
    shown = jnp.clip(diffusion.sample(predict, noise, passes).astype(jnp.float32), -1, 1)
    return jnp.mean(jnp.square(shown - seen.clean.astype(jnp.float32)))


@cache
def shared_streams(height: int, width: int, settings: TrainConfig) -> list[Batch]:
    """What the streams that score are shown, in pieces of `CHUNK` frames: the same for all runs."""
    model = ModelConfig(height=height, width=width)
    settings = replace(settings, frames=CHUNK, old_frames=0)  # a stream has no gaps
    plan = draw_plan(model, settings, np.random.default_rng([settings.seed, UNSEEN]), STREAMS)
    return [render(plan.later(after), model) for after in range(0, FRAMES, CHUNK)]


def of_streams(model: Denoiser, config: Config) -> dict[str, Any]:
    """Mean squared errors of the frames of cold streams, in [-1, 1] units, by the step that users
    run: of each piece of `CHUNK` frames, and of the second half, whose history is the model's own.
    """
    weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    run = jax.jit(partial(stream_clips, config, streams=STREAMS), donate_argnums=1)
    state = stream.init_state(config, jnp.arange(STREAMS, dtype=jnp.int32))
    curve = []
    for clips in shared_streams(config.model.height, config.model.width, config.train):
        state, shown = run(weights, state, clips)
        miss = np.asarray(shown, np.float32) - np.asarray(clips.target, np.float32)
        curve.append(float(np.mean(np.square(miss / 127.5))))
    parameters = sum(x.size for x in jax.tree.leaves(weights))
    late = float(np.mean(curve[len(curve) // 2 :]))
    return {"parameters": parameters, "error": late, "curve": curve}
