"""What every stage trains: the clean frame predicted from a noisy one, beside a history.

The two functions that a stream runs, `Denoiser.remember` and `Denoiser.denoise`, run on all frames
of a batch of clips at once; stages differ in the history that they let a model remember.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax import diffusion, ring
from lsd_jax.codec import PixelCodec
from lsd_jax.config import TrainConfig
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.types import KVBuffer

CHANGED = 8 / 255  # in [-1, 1] units, four steps of a byte
SMALLEST_SHARE = 0.03  # of a frame: below it, a changed region weighs by its size

Clips = Float[Array, "b f h w c"]
Remembered = Callable[[Clips, Clips, Array], tuple[Clips, Float[Array, "b f"]]]
"""Truth, input and a random key to what is remembered of each frame, and the level told of it."""


def denoising_loss(
    model: Denoiser, batch: Batch, key: Array, settings: TrainConfig, remembered: Remembered
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Velocity-weighted error of the predicted clean frames of a batch of clips.

    Returns:
        The loss, and metrics: `mse` at pure noise in [-1, 1] units (what one pass shows) and
        `loss`.
    """
    codec = PixelCodec()
    history_key, level_key, noise_key = jax.random.split(key, 3)
    clips, frames = batch.source.shape[:2]
    dtype = model.embed.dtype

    source_clips, clean_clips = (
        codec.encode(x).astype(dtype) for x in (batch.source, batch.target)
    )
    source, clean = _frames(source_clips), _frames(clean_clips)
    controls = _frames(batch.controls.astype(dtype) / 255)
    kv = pinned_history(model, batch)
    if frames > 1:
        past, level = remembered(clean_clips, source_clips, history_key)
        level = level.reshape(-1)
        modulation = model.modulation(jnp.ones_like(level), level)
        k, v = model.remember(source, _frames(past), controls, kv, modulation)
        kv = history(kv, k, v, frames, model.config.sinks, model.config.window)

    t = diffusion.sample_levels(level_key, (clips * frames,), settings.pure_noise)
    noisy = diffusion.add_noise(clean, jax.random.normal(noise_key, clean.shape, dtype), t)
    predicted = model.denoise(source, noisy, controls, kv, model.modulation(t, jnp.zeros_like(t)))
    error = jnp.mean(jnp.square((predicted - clean).astype(jnp.float32)), axis=-1)  # [B*F, H, W]
    weight = edit_weight(source, clean, settings.edit_weight)
    loss = jnp.mean(diffusion.loss_weight(t) * jnp.mean(weight * error, axis=(1, 2)))
    first_pass = (t == 0).astype(jnp.float32)
    mse = jnp.sum(jnp.mean(error, axis=(1, 2)) * first_pass) / jnp.maximum(jnp.sum(first_pass), 1)
    return loss, {"loss": loss, "mse": mse}


def _frames(clips: Array) -> Array:
    """`[B, F, ...]` as `[B * F, ...]`."""
    return clips.reshape(-1, *clips.shape[2:])


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
    """The pinned keys and values of each clip, repeated for each of its frames; no slots."""
    frames = batch.source.shape[1]
    k, v, valid = model.pin(batch.condition)
    k, v = (jnp.repeat(x, frames, axis=1) for x in (k, v))
    valid = jnp.repeat(valid, frames, axis=0)
    return KVBuffer(k, v, valid, jnp.zeros((valid.shape[0], 0), jnp.int32))


def history(pinned: KVBuffer, k: Array, v: Array, frames: int, sinks: int, window: int) -> KVBuffer:
    """For each frame of each clip, the buffer that a stream would hold when it arrives there.

    `k` and `v` are `[L, clips * frames, T, H, K]`, the committed keys and values of all frames.
    """
    layers, rows, tokens = k.shape[:3]
    clips = rows // frames

    def gather(buffer, x):
        x = x.reshape(layers, clips, frames, *x.shape[2:])
        first = x[:, :, jnp.minimum(jnp.arange(sinks), frames - 1)]  # [L, clips, sinks, T, H, K]
        first = jnp.repeat(first[:, :, None], frames, axis=2)
        x = jnp.pad(x, ((0, 0), (0, 0), (window, 0), *((0, 0),) * 3))
        back = [x[:, :, window - age : window - age + frames] for age in range(1, window + 1)]
        slots = jnp.concatenate([first, jnp.stack(back, axis=3)], axis=3)
        slots = slots.reshape(layers, rows, (sinks + window) * tokens, *x.shape[4:])
        return jnp.concatenate([buffer, slots], axis=2)

    now = jnp.arange(frames)[:, None]
    ages = jnp.arange(1, window + 1)
    age = jnp.concatenate(
        [
            jnp.where(now > jnp.arange(sinks), ring.SINK, ring.EMPTY),
            jnp.where(now >= ages, ages, ring.EMPTY),
        ],
        axis=1,
    )  # [F, S]
    age = jnp.tile(age, (clips, 1)).astype(jnp.int32)
    return KVBuffer(gather(pinned.k, k), gather(pinned.v, v), pinned.pinned, age)
