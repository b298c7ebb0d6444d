"""`readout`: tokens to a clean latent.

The body here, in plain `jnp`, is the specification of every kernel; `lsd_jax.readout` has its
parameters, and says what it is for.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jaxtyping import Array, Float

from lsd_jax.layers import patchify, rms_norm, unpatchify
from lsd_jax.ops.dispatch import Backend, op


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReadoutWeights:
    """Of a read-out with `X` features at each cell."""

    coarse: Float[Array, "d pixels"]
    colour: Float[Array, "d 9"]
    film: Float[Array, "d 4*x"]
    enter: Float[Array, "3 3 i x"]
    mix: Float[Array, "3 3 x x"]
    leave: Float[Array, "x o"]
    gather: Float[Array, "s x"]
    around: Float[Array, "3 3 x x"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sizes:
    """Sides of squares of pixels: of a token, of a cell of the detail head, of its surroundings."""

    patch: int
    cell: int
    square: int


@op(
    Backend("pallas", "pallas_kernels.tpu.readout:readout"),
    Backend("pallas-interpret", "pallas_kernels.tpu.readout:interpreted", automatic=False),
    minor=True,
)
def readout(
    tokens: Float[Array, "b t d"],
    source: Float[Array, "b h w c"],
    noisy: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: ReadoutWeights,
    sizes: Sizes,
) -> Float[Array, "b h w c"]:
    """The clean latent that tokens, and the pixels that they were made of, stand for."""
    b, h, w, c = source.shape
    rows, columns = h // sizes.patch, w // sizes.patch
    grid = rms_norm(tokens).reshape(b, rows, columns, -1)
    coarse = unpatchify(grid @ weights.coarse, sizes.patch)

    fine = (b, h // sizes.cell, w // sizes.cell)
    steer = upsample(grid @ jnp.concatenate([weights.colour, weights.film], 1), fine[1:])
    colour, film = jnp.split(steer, [c * c], axis=-1)
    scale_1, shift_1, scale_2, shift_2 = jnp.split(film, 4, axis=-1)

    planes = jnp.concatenate([source, noisy, coarse, controls], -1)
    squares = jax.nn.gelu(patchify(planes, sizes.square) @ weights.gather)
    around = enlarge(convolve(squares, weights.around), sizes.square // sizes.cell)
    x = convolve(patchify(planes, sizes.cell), weights.enter) + around
    x = jax.nn.gelu(x * (1 + scale_1) + shift_1)
    x = x + jax.nn.gelu(convolve(x, weights.mix) * (1 + scale_2) + shift_2)

    pixels = patchify(source, sizes.cell).reshape(*fine, -1, c)
    recoloured = pixels + jnp.einsum("brspc,brscd->brspd", pixels, colour.reshape(*fine, c, c))
    detail = x @ weights.leave + recoloured.reshape(*fine, -1)
    return coarse + unpatchify(detail, sizes.cell)


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
    rows, columns = (
        interpolation(n, m).astype(x.dtype) for n, m in zip(x.shape[1:3], size, strict=True)
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("brsc,ry,sx->byxc", x, rows, columns, precision=exact)


def interpolation(length: int, finer: int) -> Float[np.ndarray, "length finer"]:
    """The weights by which `finer` points between `length` ones take from them, linearly; beyond
    the outermost of these there is nothing but them."""
    at = (np.arange(finer) + 0.5) * (length / finer) - 0.5
    near = np.clip(1 - np.abs(at - np.arange(length)[:, None]), 0, None)
    return (near / near.sum(axis=0)).astype(np.float32)
