"""Tokens to a clean latent: a coarse picture, a local colour transform and a detail head.

Large patches make a frame cheap but squeeze hundreds of pixels through one token. So tokens also
steer a small convolutional path that sees the input at full resolution: a colour transform per
patch, smoothly interpolated (after the bilateral grid of Gharbi et al. 2017), and two 3x3
convolutions modulated per patch (after the patch detailer head of DiP, Chen et al. 2025).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lsd_jax.config import ModelConfig
from lsd_jax.layers import normal, patchify, rms_norm, unpatchify


class Readout(nnx.Module):
    """Parameters of the path from tokens and input planes to the predicted clean latent."""

    def __init__(self, config: ModelConfig, channels: int, key: Array):
        keys = jax.random.split(key, 6)
        dim, hidden, cell = config.dim, config.detail_dim, config.detail_patch**2
        planes = 3 * channels + len(config.controls)  # input, noisy, coarse, controls
        self.patch, self.cell, self.channels = config.patch, config.detail_patch, channels
        self.coarse = nnx.Param(
            normal(keys[0], (dim, config.patch**2 * channels), dim, 0.1), axes=("embed", None)
        )
        self.colour = nnx.Param(
            normal(keys[1], (dim, channels * channels), dim, 0.1), axes=("embed", None)
        )
        self.film = nnx.Param(normal(keys[2], (dim, 4 * hidden), dim, 0.1), axes=("embed", None))
        self.enter = nnx.Param(
            normal(keys[3], (3, 3, cell * planes, hidden), 9 * cell * planes),
            axes=(None, None, None, None),
        )
        self.mix = nnx.Param(
            normal(keys[4], (3, 3, hidden, hidden), 9 * hidden), axes=(None, None, None, None)
        )
        self.leave = nnx.Param(
            normal(keys[5], (hidden, cell * channels), hidden, 0.1), axes=(None, None)
        )

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        source: Float[Array, "b h w c"],
        noisy: Float[Array, "b h w c"],
        controls: Float[Array, "b h w n"],
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = source.shape
        rows, columns = h // self.patch, w // self.patch
        grid = rms_norm(tokens).reshape(b, rows, columns, -1)
        coarse = unpatchify(grid @ self.coarse[...], self.patch)

        fine = (b, h // self.cell, w // self.cell)
        steer = upsample(grid @ jnp.concatenate([self.colour[...], self.film[...]], 1), fine[1:])
        colour, film = jnp.split(steer, [c * c], axis=-1)
        scale_1, shift_1, scale_2, shift_2 = jnp.split(film, 4, axis=-1)

        cells = patchify(jnp.concatenate([source, noisy, coarse, controls], -1), self.cell)
        x = jax.nn.gelu(convolve(cells, self.enter[...]) * (1 + scale_1) + shift_1)
        x = x + jax.nn.gelu(convolve(x, self.mix[...]) * (1 + scale_2) + shift_2)

        pixels = patchify(source, self.cell).reshape(*fine, -1, c)
        recoloured = pixels + jnp.einsum("brspc,brscd->brspd", pixels, colour.reshape(*fine, c, c))
        detail = x @ self.leave[...] + recoloured.reshape(*fine, -1)
        return coarse + unpatchify(detail, self.cell)


def convolve(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Array:
    """A 3x3 convolution that keeps the size."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def upsample(x: Float[Array, "b r s c"], size: tuple[int, int]) -> Array:
    """Bilinear interpolation of per-patch values to a finer grid."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")
