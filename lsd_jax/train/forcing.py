"""Diffusion forcing: every frame of a clip is denoised from a noise level of its own, given a
history that is noised independently and says by how much (Chen et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax import diffusion, ring
from lsd_jax.codec import PixelCodec
from lsd_jax.config import TrainConfig
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.types import KVBuffer

CLEAN_HISTORY = 0.5  # share of history frames without any noise, as a stream commits them
OFF_COLOUR, UNEDITED = 0.5, 0.2  # shares of history frames
COLOUR_ERROR = 0.2  # standard deviation of a channel's gain and offset, in [-1, 1] units
CHANGED = 8 / 255  # in [-1, 1] units, four steps of a byte
SMALLEST_SHARE = 0.03  # of a frame: below it, a changed region weighs by its size


def forcing_loss(
    model: Denoiser, batch: Batch, key: Array, settings: TrainConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Velocity-weighted error of the predicted clean frames of a batch of clips.

    Runs the two functions that a stream runs, `remember` and `denoise`, on all frames at once.

    Returns:
        The loss, and metrics: `mse` at pure noise in [-1, 1] units (what one pass shows) and
        `loss`.
    """
    codec = PixelCodec()
    keys = jax.random.split(key, 4)
    clips, frames = batch.source.shape[:2]
    dtype = model.embed.dtype

    source, clean = (
        codec.encode(x).astype(dtype).reshape(clips * frames, *x.shape[2:])
        for x in (batch.source, batch.target)
    )
    controls = (batch.controls.astype(dtype) / 255).reshape(*source.shape[:3], -1)
    kv = pinned_history(model, batch)
    if frames > 1:
        level = jax.random.uniform(keys[0], (clips * frames,))
        noised = jax.random.uniform(keys[1], level.shape) > CLEAN_HISTORY
        level = jnp.where(noised, level, 0)
        noise = jax.random.normal(keys[2], clean.shape, dtype)
        past = mislead(clean, source, jax.random.fold_in(key, 1))
        past = diffusion.add_noise(past, noise, 1 - level)
        modulation = model.modulation(jnp.ones_like(level), level)
        k, v = model.remember(source, past, controls, kv, modulation)
        kv = history(kv, k, v, frames, model.config.sinks, model.config.window)

    level_key, noise_key = jax.random.split(keys[3])
    t = diffusion.sample_levels(level_key, (clips * frames,), settings.pure_noise)
    noisy = diffusion.add_noise(clean, jax.random.normal(noise_key, clean.shape, dtype), t)
    predicted = model.denoise(source, noisy, controls, kv, model.modulation(t, jnp.zeros_like(t)))
    error = jnp.mean(jnp.square((predicted - clean).astype(jnp.float32)), axis=-1)  # [B*F, H, W]
    weight = edit_weight(source, clean, settings.edit_weight)
    loss = jnp.mean(diffusion.loss_weight(t) * jnp.mean(weight * error, axis=(1, 2)))
    first_pass = (t == 0).astype(jnp.float32)
    mse = jnp.sum(jnp.mean(error, axis=(1, 2)) * first_pass) / jnp.maximum(jnp.sum(first_pass), 1)
    return loss, {"loss": loss, "mse": mse}


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


def mislead(
    clean: Float[Array, "b h w c"], source: Float[Array, "b h w c"], key: Array
) -> Float[Array, "b h w c"]:
    """A history that does not always tell what the edit is: half of the frames off in colour, as
    a stream's own mistakes are, and some not edited at all. Without it a model reads the edit from
    the truth in its window, not from the prompt, and a stream feeds on its first mistake.
    """
    rows = (clean.shape[0], 1, 1)
    keys = jax.random.split(key, 4)
    gain = 1 + COLOUR_ERROR * jax.random.normal(keys[0], (*rows, clean.shape[-1]), clean.dtype)
    offset = COLOUR_ERROR * jax.random.normal(keys[1], gain.shape, clean.dtype)
    dice = jax.random.uniform(keys[2], (*rows, 1))
    off_colour = jnp.where(dice < OFF_COLOUR, clean * gain + offset, clean)
    return jnp.where(dice > 1 - UNEDITED, source, off_colour)


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
