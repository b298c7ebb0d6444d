"""Diffusion forcing: every frame of a clip is denoised from a noise level of its own, given a
history that is noised independently and says by how much (Chen et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser
from lsd_jax.train.denoising import Clips, denoising_loss

CLEAN_HISTORY = 0.5  # share of history frames without any noise, as a stream commits them


def forcing_loss(
    model: Denoiser, teacher: Denoiser, batch: Batch, key: Array, config: Config
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`denoising_loss` with a noised history."""
    return denoising_loss(model, batch, key, config.train, noised)


def noised(clean: Clips, source: Clips, key: Array) -> tuple[Clips, Float[Array, "b f"]]:
    """Half of the frames as they are, the others somewhere on the way to noise: their level."""
    keys = jax.random.split(key, 3)
    level = jax.random.uniform(keys[0], clean.shape[:2])
    level = jnp.where(jax.random.uniform(keys[1], level.shape) > CLEAN_HISTORY, level, 0)
    noise = jax.random.normal(keys[2], clean.shape, clean.dtype)
    share = level[..., None, None, None].astype(clean.dtype)
    return (1 - share) * clean + share * noise, level
