"""Tokens to a clean latent: a coarse picture, a local colour transform and a detail head.

Large patches make a frame cheap but squeeze hundreds of pixels through one token. So tokens also
steer a small convolutional path that sees the input at full resolution: a colour transform per
patch, smoothly interpolated (after the bilateral grid of Gharbi et al. 2017), and two 3x3
convolutions modulated per patch (after the patch detailer head of DiP, Chen et al. 2025). Beside
the first of them a coarser grid of squares looks further around, for edits that smooth or tile.
"""

from __future__ import annotations

from math import gcd

import jax
import jax.numpy as jnp
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float

from lsd_jax.config import ModelConfig
from lsd_jax.layers import normal, patchify, rms_norm, unpatchify

SURROUNDINGS = 4  # cells of the detail head along a side of a square of the coarser grid


class Readout(nnx.Module):
    """Parameters of the path from tokens and input planes to the predicted clean latent."""

    def __init__(self, config: ModelConfig, channels: int, key: Array):
        keys = jax.random.split(key, 8)
        dim, hidden, cell = config.dim, config.detail_dim, config.detail_patch**2
        planes = 3 * channels + len(config.controls)  # input, noisy, coarse, controls
        self.patch, self.cell, self.channels = config.patch, config.detail_patch, channels
        self.square = gcd(SURROUNDINGS * self.cell, self.patch)  # in pixels
        inside = self.square**2 * planes
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
        self.gather = nnx.Param(normal(keys[6], (inside, hidden), inside), axes=(None, None))
        self.around = nnx.Param(
            normal(keys[7], (3, 3, hidden, hidden), 9 * hidden), axes=(None, None, None, None)
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

        planes = jnp.concatenate([source, noisy, coarse, controls], -1)
        squares = jax.nn.gelu(patchify(planes, self.square) @ self.gather[...])
        around = enlarge(convolve(squares, self.around[...]), self.square // self.cell)
        x = convolve(patchify(planes, self.cell), self.enter[...]) + around
        x = jax.nn.gelu(x * (1 + scale_1) + shift_1)
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


def enlarge(x: Float[Array, "b r s c"], times: int) -> Float[Array, "b h w c"]:
    """Each value repeated over a `times x times` square."""
    return repeat(x, "b r s c -> b (r p) (s q) c", p=times, q=times)


def upsample(x: Float[Array, "b r s c"], size: tuple[int, int]) -> Array:
    """Bilinear interpolation of per-patch values to a finer grid."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")
