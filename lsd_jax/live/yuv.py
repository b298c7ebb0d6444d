"""RGB to the planes that video encoders take, where the frame was computed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, UInt8

# ITU-R BT.601, video range, for components in [0, 255].
_Y = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_U = (-37.797 / 255, -74.203 / 255, 112.0 / 255)
_V = (112.0 / 255, -93.786 / 255, -18.214 / 255)


def yuv420(rgb: UInt8[Array, "b height width 3"]) -> UInt8[Array, "b rows width"]:
    """The planes Y, U and V, one after the other (BT.601, video range, chroma averaged over 2x2).

    `rows` is 3/2 of an even height; the width is even.
    """
    pixels = rgb.astype(jnp.float32)
    b, height, width = rgb.shape[:3]
    luma = 16 + pixels @ jnp.array(_Y, jnp.float32)
    small = pixels.reshape(b, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    chroma = [128 + small @ jnp.array(row, jnp.float32) for row in (_U, _V)]
    planes = [jnp.round(plane).astype(jnp.uint8) for plane in (luma, *chroma)]
    return jnp.concatenate([plane.reshape(b, -1) for plane in planes], 1).reshape(b, -1, width)
