"""Pixels into the cells of the read-out and back: products with zeros and ones, exact in any dtype.

A picture of planes is sorted a strip at a time, a row of 16 x 16 patches: 16 rows of pixels, 8 of
cells of 2 x 2, 2 of squares of 8 x 8.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.tpu.pictures import PATCH, PLANES
from pallas_kernels.tpu.plan import LANES

CELL, SQUARE = 2, 8
STRIP = PATCH // CELL  # rows of cells
INSIDE = 3 * 3 + 1  # planes of a cell's pixel: input, noisy, coarse, a control
STEPS = [(dy, dx) for dy in range(SQUARE // CELL) for dx in range(SQUARE // CELL)]


def to_cells(places: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """`[2, 128, 8 x 128]`: of the pixels in even and odd columns of a strip, from their planes to
    the `places` that these have in a cell of each row."""
    found = np.zeros((CELL, PLANES, PATCH, STRIP, LANES), np.float32)
    for px in range(CELL):
        for y in range(PATCH):
            pixel = (y % CELL * CELL + px) * INSIDE
            for plane, place in enumerate(places):
                found[px, plane, y, y // CELL, pixel + place] = 1
    return found.reshape(CELL, LANES, STRIP * LANES).astype(jnp.dtype(dtype))


def to_pixels(dtype: DTypeLike) -> np.ndarray:
    """`[2, 8 x 128, 128]`: the way back, from the cells' pixels to three planes."""
    found = np.zeros((CELL, STRIP, LANES, PLANES, PATCH), np.float32)
    for px in range(CELL):
        for y in range(PATCH):
            for c in range(3):
                found[px, y // CELL, (y % CELL * CELL + px) * 3 + c, c, y] = 1
    return found.reshape(CELL, STRIP * LANES, LANES).astype(jnp.dtype(dtype))


def recolour(dtype: DTypeLike) -> np.ndarray:
    """`[7, 128, 128]`, to the pixels of a cell in three colours each: channel c of its input, three
    times; row c of a matrix of colours, three times; and what is kept, the coarse and the input."""
    found = np.zeros((7, LANES, LANES), np.float32)
    for pixel in range(CELL**2):
        for d in range(3):
            place = pixel * 3 + d
            for c in range(3):
                found[c, pixel * INSIDE + c, place] = 1
                found[3 + c, c * 3 + d, place] = 1
            found[6, pixel * INSIDE + d, place] = found[6, pixel * INSIDE + 6 + d, place] = 1
    return found.astype(jnp.dtype(dtype))
