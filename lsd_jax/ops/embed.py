"""`embed`: the pixels of a frame, as tokens.

The body here, in plain `jnp`, is the specification of every kernel.
"""

from __future__ import annotations

from math import isqrt

import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax.layers import patchify
from lsd_jax.ops.dispatch import Backend, op


@op(
    Backend("pallas", "pallas_kernels.tpu.embed:embed"),
    Backend("pallas-interpret", "pallas_kernels.tpu.embed:interpreted", automatic=False),
    minor=True,
)
def embed(
    source: Float[Array, "b h w c"],
    latent: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: Float[Array, "pixels d"],
    position: Float[Array, "t d"],
) -> Float[Array, "b t d"]:
    """Input planes, a noisy (or finished) latent and control planes, as tokens; `weights` has a row
    for each number of a square patch, in row, column, channel order."""
    planes = jnp.concatenate([source, latent, controls], -1)
    patches = patchify(planes, patch_of(planes.shape[1:3], position.shape[0]))
    return patches.reshape(source.shape[0], position.shape[0], -1) @ weights + position


def patch_of(size: tuple[int, ...], tokens: int) -> int:
    """The side of a patch of a picture of that many tokens."""
    return isqrt(size[0] * size[1] // tokens)
