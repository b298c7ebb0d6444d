"""History augmentation: training on a history as imperfect as a stream's own.

The model learns to come back to what its prompt and its input ask for, whatever it remembers. Each
source of imperfection is a field of `config.history`, so that each can be left out.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax import ring
from lsd_jax.codec import PixelCodec
from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.train.corruptions import corrupt
from lsd_jax.train.denoising import Ask, Clips, denoising_loss, flow
from lsd_jax.train.rollouts import own_clips


def history_loss(
    model: Denoiser, teacher: Denoiser, batch: Batch, key: Array, config: Config
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`denoising_loss` with a history that is wrong as `config.history` says, and the penalty on
    `drift`; its metric `drift` is there where that is asked for."""
    history_key, drift_key = jax.random.split(key)
    loss, metrics = imperfect_history_loss(model, batch, history_key, config)
    if not config.history.drift_penalty:
        return loss, metrics
    penalty = drift(model, batch, drift_key, config)
    loss = loss + config.history.drift_penalty * penalty
    return loss, metrics | {"loss": loss, "drift": penalty}


def imperfect_history_loss(
    model: Denoiser, batch: Batch, key: Array, config: Config, ask: Ask = flow
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`denoising_loss` beside the history that `config.history` describes; stages differ in what
    they `ask`."""
    remembered = partial(imperfect, shown=batch.shown, config=config)
    return denoising_loss(model, batch, key, config.train, remembered, ask)


def imperfect(
    clean: Clips, source: Clips, key: Array, shown: Array | None, config: Config
) -> tuple[Clips, Float[Array, "b f"]]:
    """Shares of the clips corrupted by hand, and as a stream showed them; each frame's level where
    the model is told.

    The level of a frame is the root mean square of its error in [-1, 1] units, at most 1.

    Args:
        shown: what the model's streams made of the batch, `[B, F, H, W, 3]` bytes, from
            `Rollouts`; only its last clips are theirs.
    """
    clips, own = clean.shape[0], 0 if shown is None else own_clips(config)
    past = clean if shown is None else PixelCodec().encode(shown).astype(clean.dtype)
    key, chosen_key = jax.random.split(key)
    if corrupted := round(config.history.corrupted * clips):
        rank = jax.random.permutation(chosen_key, clips - own)
        chosen = jnp.concatenate([rank < corrupted, jnp.zeros(own, bool)])
        wrong = corrupt(clean, source, config.model.grid, key)
        past = jnp.where(chosen[:, None, None, None, None], wrong, past)
    if not config.history.level_input:
        return past, jnp.zeros(clean.shape[:2])
    error = jnp.mean(jnp.square((past - clean).astype(jnp.float32)), axis=(2, 3, 4))
    return past, jnp.minimum(jnp.sqrt(error), 1.0)


def drift(model: Denoiser, batch: Batch, key: Array, config: Config) -> Float[Array, ""]:
    """How much worse the frames of a cold stream become, in mean squares: the part of each
    frame's error that exceeds the first one's.

    Streams the clips frame by frame at one pass, through the ring that streams use, with
    gradients through all that is remembered. The first frame's error is taken as given, so that
    being bad at once does not pay.
    """
    codec, old = PixelCodec(), config.train.old_frames
    clips = batch.source.shape[0]
    dtype = model.embed.dtype
    source, clean = (codec.encode(x[:, old:]).astype(dtype) for x in (batch.source, batch.target))
    controls = batch.controls[:, old:].astype(dtype) / 255
    noise = jax.random.normal(key, clean.shape, dtype)
    zero, one, level = jnp.zeros(1), jnp.ones(1), jnp.full(1, config.stream.history_level)
    first_pass = model.modulation(zero, zero, one)
    commit = model.modulation(one, level, zero)
    everyone = jnp.ones(clips, bool)
    kv = ring.pin(ring.empty(model.config, clips, dtype), *model.pin(batch.condition), everyone)

    def frame(kv, inputs):
        source, clean, controls, noise = inputs
        out = jnp.clip(model.denoise(source, noise, controls, kv, first_pass), -1, 1)
        if "mask" in model.config.controls:
            out = jnp.where(controls >= 0.5, out, source)
        error = jnp.mean(jnp.square((out - clean).astype(jnp.float32)), axis=(1, 2, 3))
        memory = model.remember(source, out, controls, kv, commit)
        return ring.commit(kv, *memory, model.config), error

    inputs = tuple(jnp.moveaxis(x, 1, 0) for x in (source, clean, controls, noise))
    _, errors = jax.lax.scan(jax.checkpoint(frame), kv, inputs)  # [F, B]
    growth = jnp.maximum(errors[1:] - jax.lax.stop_gradient(errors[0]), 0)
    return jnp.sum(growth) / max(1, growth.size)
