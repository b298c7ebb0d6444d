"""The bank of pictures that worlds are made of, and how a renderer samples it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from lsd_jax.data import scenery
from lsd_jax.data.scenery import SIZE

SEED = 0
LEVELS = 4
BACKGROUNDS = tuple(scenery.NAMED)
NAMED = len(BACKGROUNDS)
UPRIGHT = sum(scenery.UPRIGHT.values())
COUNT = NAMED + UPRIGHT + sum(scenery.ANYWAY.values())
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@functools.cache
def pictures() -> np.ndarray:
    """The bank as pictures, [COUNT, SIZE, SIZE, 3] float32 in [0, 1].

    First the named `BACKGROUNDS`, then `UPRIGHT` pictures with an up and a down, then the rest.
    """
    rng = np.random.default_rng(SEED)
    made = np.empty((COUNT, SIZE, SIZE, 3), np.float32)
    for number, make in enumerate(scenery.NAMED.values()):
        made[number] = make(rng)
    shares = {**scenery.UPRIGHT, **scenery.ANYWAY}
    kinds = [kind for kind, count in shares.items() for _ in range(count)]
    for number, make in enumerate(kinds, NAMED):
        picture = make(rng).astype(np.float32)
        light = np.einsum("hwc,c->hw", picture, _LUMA)
        gain = rng.uniform(0.19, 0.26) / max(float(light.std()), 0.06)
        colour = picture - light[..., None]
        light = (light - light.mean()) * min(gain, 1.6) + rng.uniform(0.38, 0.55)
        made[number] = light[..., None] + colour * min(gain, 1.1)
    return np.clip(made, 0, 1, out=made)


@functools.cache
def _packed() -> np.ndarray:
    levels = [[] for _ in range(LEVELS)]
    for image in pictures():
        light = np.einsum("hwc,c->hw", image, _LUMA)
        light = np.clip(0.5 + (light - light.mean()) / (5 * light.std() + 1e-3), 0, 1)
        texels = np.concatenate([image, light[..., None]], -1)
        for level in levels:
            level.append((texels * 255 + 0.5).astype(np.uint8).view("<u4").ravel())
            rows = texels[::2] + texels[1::2]
            texels = 0.25 * (rows[:, ::2] + rows[:, 1::2])
    return np.concatenate([part for level in levels for part in level])


@functools.cache
def bank() -> UInt32[Array, " texels"]:
    """The bank as the renderer reads it: each level of each picture, finest level first.

    A texel is 0xLLBBGGRR, where L is light with the picture's mean at 128 and five deviations over
    its whole range. About 33 MB: pass it into jitted functions as an argument, since a constant
    that large slows each compilation.
    """
    with jax.ensure_compile_time_eval():
        return jnp.asarray(_packed())


def locate(
    picture: Int[Array, "*s"], level: Int[Array, "*s"]
) -> tuple[Int[Array, "*s"], Int[Array, "*s"]]:
    """Where a picture's texels begin at a level, and the level's side in texels."""
    starts = np.cumsum([0] + [COUNT * (SIZE >> k) ** 2 for k in range(LEVELS - 1)])
    side = jnp.right_shift(jnp.int32(SIZE), level)
    return jnp.asarray(starts, jnp.int32)[level] + picture * side * side, side


def level_of(texels_per_pixel: Float[Array, "*s"]) -> Int[Array, "*s"]:
    """The level whose texels are nearest in size to a pixel."""
    level = jnp.round(jnp.log2(jnp.maximum(texels_per_pixel, 1e-3)))
    return jnp.clip(level, 0, LEVELS - 1).astype(jnp.int32)


def sample(
    texels: UInt32[Array, " texels"],
    start: Int[Array, "*#s"],
    side: Int[Array, "*#s"],
    u: Float[Array, "*s"],
    v: Float[Array, "*s"],
) -> Float[Array, "4 ..."]:
    """Bilinear red, green, blue and light, in [0, 1], at (u, v) in sides of a square picture.

    Beyond its edges the picture is mirrored. `start` and `side` are as from `locate`.
    """
    scale = side.astype(jnp.float32)
    corners = []
    for at in (u, v):
        folded = jnp.abs(at - 2 * jnp.round(at * 0.5))  # a mirror at every integer
        where = jnp.clip(folded * scale - 0.5, 0.0, scale - 1.001)
        low = where.astype(jnp.int32)
        corners.append((low, where - low.astype(jnp.float32)))
    (left, fx), (top, fy) = corners
    first = start + top * side + left
    steps = (0, 1, side, side + 1)
    taps = [texels.at[first + step].get(mode="promise_in_bounds") for step in steps]
    shifts = jnp.asarray([0, 8, 16, 24], jnp.uint32).reshape(4, *[1] * u.ndim)

    def unpack(tap):
        return jnp.bitwise_and(jnp.right_shift(tap, shifts), jnp.uint32(255)).astype(jnp.float32)

    low = unpack(taps[0]) + fx * (unpack(taps[1]) - unpack(taps[0]))
    high = unpack(taps[2]) + fx * (unpack(taps[3]) - unpack(taps[2]))
    return (low + fy * (high - low)) * jnp.float32(1 / 255)


def pack(picture: Float[Array, "h w 3"], side: int) -> UInt32[Array, "side side"]:
    """A picture of any size as square texels for `sample`; their light is that of the picture."""
    if picture.shape != (side, side, 3):
        picture = jax.image.resize(picture, (side, side, 3), "linear")
    bytes_ = jnp.round(jnp.clip(picture, 0, 1) * 255).astype(jnp.uint32)
    red, green, blue = bytes_[..., 0], bytes_[..., 1], bytes_[..., 2]
    light = (red + green + green + blue) // 4
    return red | (green << 8) | (blue << 16) | (light << 24)
