"""What a stream does to its own history, imitated: the frames that it remembers are its own
output, and off in colour, sharpness, place and content.

A model that has only ever remembered the truth copies its first mistake for ever. One that was
trained on these corruptions holds its quality (history augmentation, as Decart's MirageLSD names
it). Each function takes and returns clips `[B, F, H, W, C]` in [-1, 1]; strengths are those that
worked in small experiments, stretched to the pictures' size where they are lengths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax.data import filters

Clips = Float[Array, "b f h w c"]

COLOUR_ERROR = 0.15  # standard deviation of a channel's gain and offset at the end of a clip
LOCAL_ERROR = 0.15  # the same of an offset that varies over the picture
LOCAL_GRID = 4  # values of that offset along a side of the picture
BLUR = 1.5  # sigma, in pixels of a picture 128 high
SHARPNESS = (-1.0, 0.7)  # of the part that this blur takes away: all of it off, 0.7 of it more
NOISE = 0.25  # standard deviation, at most
REACH = 2.0  # pixels by which a frame is shifted, at most
BLOCKS = 0.2  # share of a frame's blocks exchanged


def corrupt(clean: Clips, source: Clips, blocks: tuple[int, int], key: Array) -> Clips:
    """Every corruption, each on a random part of the clips or of their frames.

    Args:
        clean: the truth that a stream would remember if it made no mistakes.
        source: the input; a stream that missed a change of prompt remembers it unedited.
        blocks: rows and columns of the grid of blocks; the model's tokens.
    """
    keys = jax.random.split(key, 8)
    x = clean
    x = swap_blocks(x, jnp.roll(clean, 1, axis=0), blocks, 0.15, keys[0])
    x = swap_blocks(x, source, blocks, 0.2, keys[1])
    x = shift(x, 0.1, keys[2])
    x = freeze(x, 0.06, keys[3])
    x = sharpen(x, 0.4, keys[4])
    x = recolour(x, 0.5, keys[5])
    x = add_noise(x, 0.5, keys[6])
    return missed(x, source, 0.1, keys[7])


def recolour(x: Clips, share: float, key: Array) -> Clips:
    """Gain and offset of each channel, and an offset that varies over the picture, all growing
    along the clip."""
    clips, frames, height, width, channels = x.shape
    keys = jax.random.split(key, 4)
    growth = (jnp.arange(1, frames + 1, dtype=x.dtype) / frames)[:, None, None, None]
    per_clip = (clips, 1, 1, 1, channels)
    gain = COLOUR_ERROR * jax.random.normal(keys[0], per_clip, x.dtype)
    offset = COLOUR_ERROR * jax.random.normal(keys[1], per_clip, x.dtype)
    grid = jax.random.normal(keys[2], (clips, 1, LOCAL_GRID, LOCAL_GRID, channels), x.dtype)
    local = jax.image.resize(grid, (clips, 1, height, width, channels), "bilinear")
    which = jax.random.uniform(keys[3], (2, clips, 1, 1, 1, 1)) < share
    everywhere = jnp.where(which[0], growth * (gain * x + offset), 0)
    return x + everywhere + jnp.where(which[1], growth * LOCAL_ERROR * local, 0)


def sharpen(x: Clips, share: float, key: Array) -> Clips:
    """Too soft or too sharp, a whole clip alike."""
    amount_key, key = jax.random.split(key)
    amount = jax.random.uniform(
        amount_key, (x.shape[0], 1, 1, 1, 1), x.dtype, minval=SHARPNESS[0], maxval=SHARPNESS[1]
    )
    chosen = jax.random.uniform(key, amount.shape) < share
    frames = x.reshape(-1, *x.shape[2:])
    detail = (frames - filters.blur(frames, BLUR).astype(x.dtype)).reshape(x.shape)
    return x + jnp.where(chosen, amount, 0) * detail


def shift(x: Clips, share: float, key: Array) -> Clips:
    """Some frames a few pixels off their place."""
    by_key, key = jax.random.split(key)
    reach = max(1, round(filters.pixels(REACH, x.shape[2])))
    by = jax.random.randint(by_key, (*x.shape[:2], 2), -reach, reach + 1)
    by = jnp.where(jax.random.uniform(key, (*x.shape[:2], 1)) < share, by, 0)
    return jax.vmap(jax.vmap(lambda frame, by: jnp.roll(frame, by, (0, 1))))(x, by)


def freeze(x: Clips, share: float, key: Array) -> Clips:
    """Some frames as the frame before them."""
    held = jax.random.uniform(key, (*x.shape[:2], 1, 1, 1)) < share
    return jnp.where(held, jnp.roll(x, 1, axis=1).at[:, 0].set(x[:, 0]), x)


def swap_blocks(x: Clips, other: Clips, blocks: tuple[int, int], share: float, key: Array) -> Clips:
    """In some frames, some blocks as `other` has them."""
    frame_key, key = jax.random.split(key)
    swapped = jax.random.uniform(key, (*x.shape[:2], *blocks)) < BLOCKS
    swapped &= jax.random.uniform(frame_key, (*x.shape[:2], 1, 1)) < share
    for axis in (2, 3):
        swapped = jnp.repeat(swapped, x.shape[axis] // blocks[axis - 2], axis=axis)
    return jnp.where(swapped[..., None], other, x)


def add_noise(x: Clips, share: float, key: Array) -> Clips:
    """White noise, of another strength in each frame."""
    keys = jax.random.split(key, 3)
    level = jax.random.uniform(keys[0], (*x.shape[:2], 1, 1, 1), x.dtype, maxval=NOISE)
    level = jnp.where(jax.random.uniform(keys[1], level.shape) < share, level, 0)
    return x + level * jax.random.normal(keys[2], x.shape, x.dtype)


def missed(x: Clips, source: Clips, share: float, key: Array) -> Clips:
    """Some frames not edited at all."""
    return jnp.where(jax.random.uniform(key, (*x.shape[:2], 1, 1, 1)) < share, source, x)
