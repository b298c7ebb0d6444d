"""The arithmetic that blocks share: norms, rotary positions, modulation, patches, initialisers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from lsd_jax.types import Rope

EPSILON = 1e-6


def rms_norm(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """`x / rms(x)` over the last axis, in float32, without a learned scale (Zhang & Sennrich
    2019)."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + EPSILON)
    return (x32 * scale).astype(x.dtype)


def modulate(
    x: Float[Array, "b t d"], scale: Float[Array, "#b d"], shift: Float[Array, "#b d"]
) -> Float[Array, "b t d"]:
    """`rms_norm(x) * (1 + scale) + shift`: adaLN (Peebles & Xie 2023, section 3.2)."""
    return rms_norm(x) * (1 + scale)[:, None] + shift[:, None]


def rope_table(rows: int, columns: int, head_dim: int) -> Rope:
    """Cosines and sines of 2D rotary positions, each `[T, K / 2]` float32.

    The first half of the pairs turns with the row, the second with the column (RoPE: Su et al.
    2021; axial in two dimensions: Heo et al. 2024). The base is 100 since a frame has tens of rows.
    Worked out when traced: they are constants of the program.
    """
    pairs = head_dim // 4
    frequencies = 100.0 ** (-np.arange(pairs) / pairs)
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = (np.stack([row, column], axis=1)[:, :, None] * frequencies).reshape(row.size, -1)
    return Rope(cos=jnp.float32(np.cos(angles)), sin=jnp.float32(np.sin(angles)))


def rotate(x: Float[Array, "b t h k"], rope: Rope) -> Float[Array, "b t h k"]:
    """Turns feature pairs `(i, i + K/2)` by the angles of `rope`."""
    cos, sin = (table[:, None].astype(x.dtype) for table in (rope.cos, rope.sin))
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b rows columns pc"]:
    """Non-overlapping `patch x patch` squares as vectors, in row, column, channel order."""
    return rearrange(x, "b (r p) (s q) c -> b r s (p q c)", p=patch, q=patch)


def unpatchify(x: Float[Array, "b rows columns pc"], patch: int) -> Float[Array, "b h w c"]:
    """The inverse of `patchify`."""
    return rearrange(x, "b r s (p q c) -> b (r p) (s q) c", p=patch, q=patch)


def fourier(level: Float[Array, " *b"], features: int) -> Float[Array, "*b features"]:
    """Cosines and sines of a level in [0, 1] at `features / 2` octave-spaced frequencies."""
    frequencies = jnp.exp2(jnp.arange(features // 2, dtype=jnp.float32) / 2) * jnp.pi / 2
    angles = level.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def normal(key: Array, shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> Array:
    """Float32 normal weights of standard deviation `gain / sqrt(fan_in)`."""
    return jax.random.normal(key, shape, jnp.float32) * (gain * fan_in**-0.5)
