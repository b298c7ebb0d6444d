"""Frames to latents and back, causally, one frame at a time."""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from lsd_jax.types import Frame


class Codec(Protocol):
    """What the stream needs of an autoencoder. Latents are about in [-1, 1]."""

    channels: int

    def encode(self, frame: Frame) -> Float[Array, "b h w c"]: ...

    def decode(self, latent: Float[Array, "b h w c"]) -> Frame: ...


class PixelCodec:
    """Pixels as latents: the denoiser predicts clean pixels on large patches, which needs no
    autoencoder (Li & He 2025, "Back to basics: let denoising generative models denoise").
    """

    channels = 3

    def encode(self, frame: UInt8[Array, "*b 3"]) -> Float[Array, "*b 3"]:
        return frame.astype(jnp.float32) * (2 / 255) - 1

    def decode(self, latent: Float[Array, "*b 3"]) -> UInt8[Array, "*b 3"]:
        pixels = jnp.round((latent.astype(jnp.float32) + 1) * (255 / 2))
        return jnp.clip(pixels, 0, 255).astype(jnp.uint8)
