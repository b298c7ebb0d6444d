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
from flax import nnx
from jaxtyping import Array, Float

from lsd_jax.config import ModelConfig
from lsd_jax.layers import normal
from lsd_jax.ops.readout import ReadoutWeights, Sizes, readout

SURROUNDINGS = 4  # cells of the detail head along a side of a square of the coarser grid


class Readout(nnx.Module):
    """Parameters of the path from tokens and input planes to the predicted clean latent."""

    def __init__(self, config: ModelConfig, channels: int, key: Array):
        keys = jax.random.split(key, 8)
        dim, hidden, cell = config.dim, config.detail_dim, config.detail_patch**2
        planes = 3 * channels + len(config.controls)  # input, noisy, coarse, controls
        self.patch, self.cell = config.patch, config.detail_patch
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
        weights = ReadoutWeights(
            **{name: getattr(self, name)[...] for name in ReadoutWeights.__annotations__}
        )
        sizes = Sizes(self.patch, self.cell, self.square)
        return readout(tokens, source, noisy, controls, weights, sizes)
