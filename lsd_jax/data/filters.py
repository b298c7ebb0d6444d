"""Image-processing primitives of the footage edits: blurs, edges, colour maps, falling particles.

All work on frames `[f, h, w, c]` of float32 in [0, 1]. Lengths are given in pixels of a frame 128
high, the *reference scale*, and stretch with the height, so a picture looks alike at any size.
Neighbourhood sums are products with small banded matrices: as fast as shifts on a CPU, one matrix
unit call elsewhere, exact for fractional radii. Borders repeat the outermost pixel.
"""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

REFERENCE_HEIGHT = 128
LUMA = (0.299, 0.587, 0.114)  # Rec. 601


def rgb(*values: float) -> Array:
    """A colour that broadcasts against frames: [1, 1, 1, c]."""
    return jnp.asarray([[[values]]], jnp.float32)


def pixels(length: float, height: int) -> float:
    """A length at the reference scale, in pixels of a frame `height` high."""
    return length * height / REFERENCE_HEIGHT


def mix(a, b, share):
    """`a` where share is 0, `b` where it is 1."""
    return a + (b - a) * share


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, the cubic 3t^2 - 2t^3 between."""
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def luma(frames: Float[Array, "f h w 3"]) -> Float[Array, "f h w 1"]:
    """Brightness, 0.299 R + 0.587 G + 0.114 B."""
    # Slices, not a sum over the last axis: XLA fuses them, 50 times faster on a CPU.
    red, green, blue = frames[..., 0:1], frames[..., 1:2], frames[..., 2:3]
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]


def saturate(frames: Float[Array, "f h w 3"], amount: float) -> Float[Array, "f h w 3"]:
    """Distance from grey times `amount`: 0 is greyscale, 1 unchanged; not clipped."""
    return mix(luma(frames), frames, amount)


def blur(frames: Float[Array, "f h w c"], sigma: float) -> Float[Array, "f h w c"]:
    """Gaussian blur; `sigma` at the reference scale."""
    return _band("gauss", pixels(sigma, frames.shape[1]), frames)


def box(frames: Float[Array, "f h w c"], radius: float) -> Float[Array, "f h w c"]:
    """Mean over a square of side `2 radius`; `radius` at the reference scale."""
    return _band("box", pixels(radius, frames.shape[1]), frames)


def _band(kind: str, radius: float, frames: Array) -> Array:
    _, h, w, _ = frames.shape
    rows, columns = _band_matrix(kind, radius, h), _band_matrix(kind, radius, w)
    frames = jnp.einsum("ij,fjwc->fiwc", rows, frames, precision="highest")
    return jnp.einsum("ij,fhjc->fhic", columns, frames, precision="highest")


@lru_cache(maxsize=64)
def _band_matrix(kind: str, radius: float, size: int) -> np.ndarray:
    """[size, size]: row i holds the weights of the pixels around i; rows sum to 1."""
    reach = int(np.ceil(3 * radius if kind == "gauss" else radius))
    taps = np.arange(-reach, reach + 1)
    if kind == "gauss":
        weights = np.exp(-0.5 * (taps / radius) ** 2)
    elif kind == "box":  # the overlap of each pixel with [-radius, radius]
        weights = np.clip(radius + 0.5 - np.abs(taps), 0.0, 1.0)
    else:  # "pair": the two points at that distance, between pixels by linear interpolation
        weights = np.clip(1.0 - np.abs(np.abs(taps) - radius), 0.0, 1.0)
    matrix = np.zeros((size, size))
    centre = np.arange(size)
    for tap, weight in zip(taps, weights / weights.sum(), strict=True):
        np.add.at(matrix, (centre, np.clip(centre + tap, 0, size - 1)), weight)
    return matrix.astype(np.float32)


def shift(frames: Float[Array, "f h w c"], rows: int, columns: int) -> Float[Array, "f h w c"]:
    """Each pixel takes the value `rows` below and `columns` right of it."""
    _, h, w, _ = frames.shape
    pad = ((0, 0), (abs(rows),) * 2, (abs(columns),) * 2, (0, 0))
    padded = jnp.pad(frames, pad, mode="edge")
    top, left = abs(rows) + rows, abs(columns) + columns
    return padded[:, top : top + h, left : left + w]


def slope(frames: Float[Array, "f h w c"], sigma: float) -> Float[Array, "f h w c"]:
    """Length of the gradient of the blurred picture, per reference pixel (central differences)."""
    step = max(1, round(pixels(1.0, frames.shape[1])))
    smooth = blur(frames, sigma)
    down = shift(smooth, step, 0) - shift(smooth, -step, 0)
    right = shift(smooth, 0, step) - shift(smooth, 0, -step)
    scale = pixels(1.0, frames.shape[1]) / (2.0 * step)
    return jnp.sqrt(down * down + right * right + 1e-12) * scale


def kuwahara(frames: Float[Array, "f h w 3"], radius: float) -> Float[Array, "f h w 3"]:
    """Edge-keeping smoothing into flat dabs (Kuwahara et al., 1976, in its soft form).

    Of the four squares of side `radius` that touch a pixel's corners, each gives its mean m_i and
    its brightness variance v_i; the result is sum(m_i w_i) / sum(w_i), w_i = (v_i + 0.001)^-4,
    which tends to the mean of the calmest square and stays smooth (Papari et al., 2007).
    """
    grey = luma(frames)
    mean, square = box(frames, radius / 2), box(grey * grey, radius / 2)
    variance = jnp.maximum(square - luma(mean) ** 2, 0.0)
    weight = (variance + 1e-3) ** -4
    distance = pixels(radius / 2, frames.shape[1])  # to the four squares, up/down and left/right
    return _band("pair", distance, mean * weight) / _band("pair", distance, weight)


def blocks(frames: Float[Array, "f h w c"], size: int) -> Float[Array, "f h w c"]:
    """Each `size` x `size` block, from the top left, replaced by its mean."""
    f, h, w, c = frames.shape
    rows, columns = -(-h // size), -(-w // size)
    pad = ((0, 0), (0, rows * size - h), (0, columns * size - w), (0, 0))
    cells = jnp.pad(frames, pad, mode="edge").reshape(f, rows, size, columns, size, c)
    means = jnp.mean(cells, axis=(2, 4), keepdims=True)
    return jnp.broadcast_to(means, cells.shape).reshape(f, rows * size, -1, c)[:, :h, :w]


def colour_map(plane: Float[Array, "f h w 1"], stops) -> Float[Array, "f h w 3"]:
    """Piecewise-linear colours over [0, 1], through `stops` at equal distances."""
    segments = len(stops) - 1
    out = rgb(*stops[0]) + jnp.zeros_like(plane)
    for k in range(segments):
        rise = rgb(*stops[k + 1]) - rgb(*stops[k])
        out = out + rise * jnp.clip(plane * segments - k, 0.0, 1.0)
    return out


def vignette(height: int, width: int) -> Float[Array, "1 h w 1"]:
    """1 in the middle, falling with the square of the distance to 0.45 in the corners."""
    y, x = (np.linspace(-1.0, 1.0, size, dtype=np.float32) for size in (height, width))
    return jnp.asarray((1.0 - 0.275 * (y[:, None] ** 2 + x[None] ** 2))[None, :, :, None])


def refract(
    frames: Float[Array, "f h w c"], period: float, reach: float
) -> Float[Array, "f h w c"]:
    """The picture through relief glass: a fixed, smooth, periodic displacement of the pixels.

    Row y takes row y + reach sin(2 pi x / period) cos(2 pi y / period), columns likewise with x
    and y exchanged; to the nearest pixel. Lengths at the reference scale.
    """
    _, h, w, _ = frames.shape
    y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    wave, swing = pixels(period, h) / (2 * np.pi), pixels(reach, h)
    rows = np.rint(y + swing * np.sin(x / wave) * np.cos(y / wave))
    columns = np.rint(x + swing * np.cos(x / wave) * np.sin(y / wave))
    rows, columns = np.clip(rows, 0, h - 1), np.clip(columns, 0, w - 1)
    flat = (rows * w + columns).astype(np.int32).reshape(-1)
    f, c = frames.shape[0], frames.shape[-1]
    return jnp.take(frames.reshape(f, h * w, c), flat, axis=1).reshape(frames.shape)


def particles(
    index: Int[Array, " f"],
    height: int,
    width: int,
    *,
    cells: tuple[float, float],
    fall: int,
    slant: float,
    half: tuple[float, float],
    chance: float,
    seed: int,
) -> Float[Array, "f h w 1"]:
    """Opacity of randomly placed specks that fall at a steady speed, for flakes and drops.

    A grid of `cells = (rows, columns)` per frame height scrolls down by `fall / 64` rows per
    frame, sheared by `slant` columns per row; a cell holds, with probability `chance`, one soft
    ellipse of half-axes `half` (parts of a cell) wholly inside it. The scroll is counted in
    integers, so the millionth frame is as exact as the first.
    """
    row = (np.arange(height, dtype=np.float32) + 0.5)[:, None] / height  # [h, 1], in heights
    column = (np.arange(width, dtype=np.float32) + 0.5)[None] / height
    across = (column * cells[1] + row * (cells[0] * slant)).astype(np.float32)[None]  # [1, h, w]
    scrolled = index.astype(jnp.int32)[:, None, None] * fall
    down = (row * cells[0])[None] - (scrolled % 64).astype(jnp.float32) / 64.0  # [f, h, 1]
    cell_row = jnp.floor(down)
    number = cell_row.astype(jnp.int32) - scrolled // 64
    cell_column = np.floor(across)
    dice = _hash(number, cell_column.astype(np.int32), seed)  # [f, h, w], uint32
    unit = [((dice >> by) & 1023).astype(jnp.float32) / 1023.0 for by in (0, 10, 20)]
    v = down - cell_row - mix(half[0], 1.0 - half[0], unit[0])
    u = across - cell_column - mix(half[1], 1.0 - half[1], unit[1])
    inside = 1.0 - (v / half[0]) ** 2 - (u / half[1]) ** 2
    speck = jnp.clip(2.0 * inside, 0.0, 1.0) * (unit[2] < chance).astype(jnp.float32)
    return speck[..., None]


def _hash(row: Array, column, seed: int) -> Array:
    """32 mixed bits per cell (the finaliser of MurmurHash3, Appleby, 2011)."""
    bits = row.astype(jnp.uint32) * np.uint32(0x9E3779B1)
    bits = bits ^ (jnp.asarray(column).astype(jnp.uint32) * np.uint32(0x85EBCA77) + np.uint32(seed))
    for factor, by in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        bits = (bits ^ (bits >> by)) * np.uint32(factor)
    return bits ^ (bits >> 16)
