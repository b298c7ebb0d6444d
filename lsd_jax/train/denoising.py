"""What every stage trains: the clean frame predicted from a noisy one, beside a history.

The two functions that a stream runs, `Denoiser.remember` and `Denoiser.denoise`, run on all frames
of a batch of clips at once; stages differ in the history that they let a model remember.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsd_jax import diffusion, ring
from lsd_jax.codec import PixelCodec
from lsd_jax.conditioning import taken_back
from lsd_jax.config import ModelConfig, TrainConfig
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.ops.commit import compress
from lsd_jax.types import SINK, KVBuffer

CHANGED = 8 / 255  # in [-1, 1] units, four steps of a byte
SMALLEST_SHARE = 0.03  # of a frame: below it, a changed region weighs by its size

Clips = Float[Array, "b f h w c"]
Rows = Float[Array, "r h w c"]
Remembered = Callable[[Clips, Clips, Array], tuple[Clips, Float[Array, "b f"]]]
"""Truth, input and a random key to what is remembered of each frame, and the level told of it."""


@dataclass(frozen=True)
class Seen:
    """All frames of a batch of clips, a row each (clip by clip), whatever the model."""

    source: Rows
    clean: Rows
    controls: Float[Array, "r h w n"]
    past: Rows  # what is remembered of the frame
    level: Float[Array, " r"]  # how wrong the model is told that this is


@dataclass(frozen=True)
class Question:
    """What a model is asked in each row, and the answer: the clean frame, or a teacher's."""

    t: Float[Array, " r"]
    step: Float[Array, " r"]
    noisy: Rows
    answer: Rows


Ask = Callable[[Seen, Array, TrainConfig], Question]


def flow(seen: Seen, key: Array, settings: TrainConfig) -> Question:
    """Flow matching: the clean frame from a random point on the way to it.

    Step sizes are drawn at random: they mean nothing before the shortcut stage, and must not
    surprise a model that is streamed without it.
    """
    level_key, noise_key, step_key = jax.random.split(key, 3)
    t = diffusion.sample_levels(level_key, seen.level.shape, settings.pure_noise)
    noise = jax.random.normal(noise_key, seen.clean.shape, seen.clean.dtype)
    step = jax.random.choice(step_key, jnp.asarray((0.0, *diffusion.STEP_SIZES)), t.shape)
    return Question(t, step, diffusion.add_noise(seen.clean, noise, t), seen.clean)


def denoising_loss(
    model: Denoiser,
    batch: Batch,
    key: Array,
    settings: TrainConfig,
    remembered: Remembered,
    ask: Ask = flow,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Velocity-weighted error of the predicted clean frames of a batch of clips.

    Returns:
        The loss, and metrics: `mse` against the truth of what is predicted from pure noise, in
        [-1, 1] units, and `loss`.
    """
    history_key, ask_key = jax.random.split(key)
    seen = look(batch, remembered, history_key, model.embed.dtype)
    question = ask(seen, ask_key, settings)
    predicted = answer(model, seen, remember(model, batch, seen), question)
    weight = edit_weight(seen.source, seen.clean, settings.edit_weight)
    error = jnp.mean(weight * _squares(predicted - question.answer), axis=(1, 2))
    loss = jnp.mean(diffusion.loss_weight(question.t) * error)
    first_pass = (question.t == 0).astype(jnp.float32)
    miss = jnp.mean(_squares(predicted - seen.clean), axis=(1, 2))
    mse = jnp.sum(miss * first_pass) / jnp.maximum(jnp.sum(first_pass), 1)
    return loss, {"loss": loss, "mse": mse}


def look(batch: Batch, remembered: Remembered, key: Array, dtype) -> Seen:
    """A batch as rows in [-1, 1], with a history of its own for each."""
    codec = PixelCodec()
    source, clean = (codec.encode(x).astype(dtype) for x in (batch.source, batch.target))
    controls = batch.controls.astype(dtype) / 255
    past, level = remembered(clean, source, key)
    clips = (source, clean, controls, past, level)
    return Seen(*(x.reshape(-1, *x.shape[2:]) for x in clips))


def remember(model: Denoiser, batch: Batch, seen: Seen) -> KVBuffer:
    """The buffer that a stream of `model` would hold before each row."""
    kv, frames = pinned_history(model, batch), batch.source.shape[1]
    if frames == 1:
        return kv
    zero = jnp.zeros_like(seen.level)
    modulation = model.modulation(zero + 1, seen.level, zero)
    k, v = model.remember(seen.source, seen.past, seen.controls, kv, modulation)
    return history(kv, k, v, frames, model.config, batch.old)


def answer(model: Denoiser, seen: Seen, kv: KVBuffer, question: Question) -> Rows:
    """The clean frames that `model` predicts."""
    modulation = model.modulation(question.t, jnp.zeros_like(question.t), question.step)
    return model.denoise(seen.source, question.noisy, seen.controls, kv, modulation)


def _squares(difference: Rows) -> Float[Array, "r h w"]:
    return jnp.mean(jnp.square(difference.astype(jnp.float32)), axis=-1)


def edit_weight(
    source: Float[Array, "b h w c"], clean: Float[Array, "b h w c"], emphasis: float
) -> Float[Array, "b h w"]:
    """Weights of mean 1 that give the region which an edit changes `emphasis` times the weight of
    the whole frame, however small it is: else removing an object costs less than learning to.
    """
    changed = jnp.any(jnp.abs(clean - source) > CHANGED, axis=-1).astype(jnp.float32)
    share = jnp.mean(changed, axis=(1, 2), keepdims=True)
    weight = 1 + emphasis * changed / jnp.maximum(share, SMALLEST_SHARE)
    return weight / jnp.mean(weight, axis=(1, 2), keepdims=True)


def pinned_history(model: Denoiser, batch: Batch) -> KVBuffer:
    """The pinned keys and values of each clip, repeated for each of its frames, or those of
    `prompts.CARRY_ON`; no slots."""
    frames = batch.source.shape[1]
    k, v, valid = model.pin(batch.condition)
    k, v = (jnp.repeat(x, frames, axis=1) for x in (k, v))
    valid = jnp.repeat(valid, frames, axis=0)
    none = jnp.zeros((valid.shape[0], 0), jnp.int32)
    if batch.carried is None:
        return KVBuffer(k, v, valid, none, none)
    carried = (jnp.arange(frames) >= batch.carried[:, None]).reshape(-1)
    other = model.pin(taken_back(jax.tree.map(lambda x: x[:1], batch.condition)))
    k, v = (
        jnp.where(carried[:, None, None, None], x, y) for x, y in zip(other, (k, v), strict=False)
    )
    return KVBuffer(k, v, jnp.where(carried[:, None], other[2], valid), none, none)


def history(
    pinned: KVBuffer,
    k: Array,
    v: Array,
    frames: int,
    config: ModelConfig,
    old: Int[Array, " clips"] | None = None,
) -> KVBuffer:
    """For each frame of each clip, the buffer that a stream would hold when it arrives there.

    The window holds frames of one piece. Those before the first `old` ones of a clip are in the
    memory alone, the newest in its first slot; where there are none, it has kept the clip's first
    frame.

    `k` and `v` are `[L, clips * frames, T, H, K]`, the committed keys and values of all frames.
    """
    layers, rows, tokens = k.shape[:3]
    clips, sinks, window = rows // frames, config.sinks, config.window
    old = jnp.zeros(clips, jnp.int32) if old is None else old
    clip, here, old = (
        jnp.arange(clips)[:, None, None],
        jnp.arange(frames)[:, None],
        old[:, None, None],
    )
    kept = jnp.minimum(here, jnp.maximum(old, 1)) - 1 - jnp.arange(config.memory)  # [clips, F, R]

    def gather(buffer, x):
        old_keys = compress(x, config.grid) if config.memory else x[:, :, :0]
        old_keys = old_keys.reshape(layers, clips, frames, *old_keys.shape[2:])
        old_keys = old_keys[:, clip, jnp.maximum(kept, 0)]  # [L, clips, F, R, T / 4, H, K]
        old_keys = old_keys.reshape(layers, rows, -1, *x.shape[3:])
        x = x.reshape(layers, clips, frames, *x.shape[2:])
        first = x[:, :, jnp.minimum(jnp.arange(sinks), frames - 1)]  # [L, clips, sinks, T, H, K]
        first = jnp.repeat(first[:, :, None], frames, axis=2)
        x = jnp.pad(x, ((0, 0), (0, 0), (window, 0), *((0, 0),) * 3))
        back = [x[:, :, window - age : window - age + frames] for age in range(1, window + 1)]
        slots = jnp.concatenate([first, jnp.stack(back, axis=3)], axis=3)
        slots = slots.reshape(layers, rows, (sinks + window) * tokens, *x.shape[4:])
        return jnp.concatenate([buffer, old_keys, slots], axis=2)

    ages = jnp.arange(1, window + 1)
    first = jnp.where(here > jnp.arange(sinks), SINK, ring.EMPTY)
    recent = jnp.where(here - old >= ages, ages, ring.EMPTY)
    age = jnp.concatenate([jnp.broadcast_to(first, (clips, *first.shape)), recent], axis=2)
    memory = jnp.where(kept >= 0, 0, ring.EMPTY)
    age, memory = (x.reshape(rows, -1).astype(jnp.int32) for x in (age, memory))
    return KVBuffer(gather(pinned.k, k), gather(pinned.v, v), pinned.pinned, age, memory)
