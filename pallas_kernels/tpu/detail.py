"""What a step of `readout.py`, where its pseudocode is, does with three strips.

`at` holds the references to what the step sees of inputs and outputs, and to what is kept, by their
names there. Of what is kept strip `r` is number `place(r)`.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lsd_jax.ops.readout import interpolation
from pallas_kernels.tpu.cells import CELL, INSIDE, SQUARE, STEPS, STRIP
from pallas_kernels.tpu.kernel import dot, gelu, norm
from pallas_kernels.tpu.pictures import PATCH, turned
from pallas_kernels.tpu.plan import LANES

RING = 4  # strips that are kept: the one that comes in, and three around the one that goes out
EDGE = 8  # columns of zeros beside a strip, a whole register
OUT = ("red", "green", "blue")  # a plane each: XLA puts them together where it shows them
GROUPS = 5  # of what tokens say to cells: scale and shift, twice, and a matrix of colours
DOWN = interpolation(3, 3 * STRIP)[:, STRIP : 2 * STRIP]
"""`[3, 8]`: how much a row of cells takes from the strip above, from its own, from that below."""


def step(rows: int, at: SimpleNamespace) -> None:
    """The next strip of a picture of so many, and the two before it."""
    session, i = pl.program_id(0), pl.program_id(1)
    pl.when((session == 0) & (i == 0))(lambda: pack(at))
    pl.when(i == 0)(lambda: blank(-1, at.cells, at.squares, at.features))
    pl.when(i < rows)(lambda: strip_in(at, i))
    pl.when(i == rows)(lambda: blank(rows, at.cells, at.squares))
    pl.when((i > 0) & (i <= rows))(lambda: strip_features(at, i - 1, rows))
    pl.when(i == rows + 1)(lambda: blank(rows, at.features))
    pl.when(i > 1)(lambda: strip_out(at, i - 2, rows))


def pack(at: SimpleNamespace) -> None:
    """Weights into whole registers, zeros beside them; and zeros at both ends of a strip."""
    for held in (at.cells, at.squares, at.features):
        held[...] = jnp.zeros(held.shape, jnp.float32)
    at.leave[...] = padded(at, {0: at.leave_in[...]})
    for packed, source in ((at.enter, at.enter_in), (at.mix, at.mix_in), (at.ring, at.around_in)):
        for dy in range(3):
            for dx in range(3):
                packed[dx, dy * LANES : (dy + 1) * LANES] = padded(at, {0: source[dy, dx]})
    gather, half = at.gather_in[...].astype(jnp.float32), CELL * INSIDE
    for i, (dy, dx) in enumerate(STEPS):
        starts = [((CELL * dy + py) * SQUARE + CELL * dx) * INSIDE for py in range(CELL)]
        cell = {py * half: gather[start : start + half] for py, start in enumerate(starts)}
        at.gather[i * LANES : (i + 1) * LANES] = padded(at, cell)
    at.steering[...] = jnp.zeros(at.steering.shape, at.steering.dtype)
    film, features = at.film_in[...].astype(jnp.float32), at.leave_in.shape[0]
    for group in range(4):
        lanes = slice(group * LANES, group * LANES + features)
        of_group = film[:, group * features : (group + 1) * features]
        at.steering[:, lanes] = of_group.astype(at.steering.dtype)
    at.steering[:, 4 * LANES : 4 * LANES + 9] = at.colour_in[...]
    pixels = 3 * PATCH
    row, lane = (
        jax.lax.broadcasted_iota(jnp.int32, (PATCH * pixels, LANES), axis) for axis in (0, 1)
    )
    first = jnp.where(lane < pixels, row - (lane & (PATCH - 1)) * pixels - (lane >> 4), -1)
    for q in range(PATCH):  # coarse pixels of column q of a patch: from row, channel to planes
        chosen = (first == 3 * q).astype(jnp.float32).astype(at.columns.dtype)
        columns = dot(at.coarse_in[...], chosen).astype(at.columns.dtype)
        at.columns[:, q * LANES : (q + 1) * LANES] = columns


def padded(at: SimpleNamespace, parts: dict[int, jax.Array]) -> jax.Array:
    """`[128, 128]` of zeros but for some rows' first columns, by the first row of each part."""
    at.padded[...] = jnp.zeros(at.padded.shape, jnp.float32)
    for row, part in parts.items():
        rows, columns = part.shape
        at.padded[row : row + rows, :columns] = part.astype(jnp.float32)
    return at.padded[...].astype(at.leave.dtype)


def place(r) -> jax.Array:
    """Where strip `r` lies in what is kept."""
    return jax.lax.rem(r + RING, RING)


def blank(r, *kept) -> None:
    """Strip `r` lies above or below the picture, where there is nothing."""
    for held in kept:
        held[place(r)] = jnp.zeros(held.shape[1:], jnp.float32)


def strip_in(at: SimpleNamespace, r) -> None:
    """The pixels of a strip, and what its tokens make of them, to cells; cells to squares."""
    dtype, (cells, columns), squares = at.tokens.dtype, at.across.shape, at.spread.shape[1]
    tokens = norm(at.tokens[...].astype(jnp.float32)).astype(dtype)
    at.steer[place(r)] = dot(at.across[...], dot(tokens, at.steering[...]).astype(dtype))
    at.turned[...] = turned(at.planes, 0)
    coarse = dot(tokens, at.columns[...]).astype(dtype).astype(jnp.float32)
    for q in range(PATCH):
        column = pl.ds(q, columns, stride=PATCH)
        at.coarse[column, :] = coarse[:, q * LANES : (q + 1) * LANES]
    found = jnp.zeros((cells, STRIP * LANES), jnp.float32)
    for px in range(CELL):
        column = pl.ds(px, cells, stride=CELL)
        found += dot(at.turned[column, :].astype(dtype), at.to_cells[px])
        found += dot(at.coarse[column, :].astype(dtype), at.coarse_to_cells[px])
    for y in range(STRIP):
        at.cells[place(r), y, pl.ds(EDGE, cells), :] = found[:, y * LANES : (y + 1) * LANES]
    for y in range(2):
        inside = [
            at.cells[place(r), SQUARE // CELL * y + dy, pl.ds(EDGE + dx, squares, stride=4), :]
            for dy, dx in STEPS
        ]
        total = dot(jnp.concatenate(inside, axis=1).astype(dtype), at.gather[...])
        at.squares[place(r), y, pl.ds(EDGE, squares), :] = gelu(total)


def strip_features(at: SimpleNamespace, r, rows: int) -> None:
    """The first convolution of a strip of cells, with its surroundings, as its tokens steer it."""
    found = convolve(at.cells, r, at.enter)
    cells, squares = at.spread.shape
    around = convolve(at.squares, r, at.ring).reshape(2, squares, LANES).astype(at.spread.dtype)
    around = [dot(at.spread[...], around[y]) for y in range(2)]
    beside = [place(strip) for strip in neighbours(r, rows)]
    for y in range(STRIP):
        here = slice(y * cells, (y + 1) * cells)
        scale, shift = steered(at, beside, y, 0, 1)
        x = (found[here] + around[y // (STRIP // 2)]) * (1 + scale) + shift
        at.features[place(r), y, pl.ds(EDGE, cells), :] = gelu(x)


def strip_out(at: SimpleNamespace, r, rows: int) -> None:
    """The second convolution, what it and the recoloured pixels make of a strip, as pixels."""
    dtype, cells = at.tokens.dtype, at.across.shape[0]
    found = convolve(at.features, r, at.mix)
    beside = [place(strip) for strip in neighbours(r, rows)]
    features, colours = [], []
    for y in range(STRIP):
        here = slice(y * cells, (y + 1) * cells)
        scale, shift, colour = steered(at, beside, y, 2, 3, 4)
        x = at.features[place(r), y, pl.ds(EDGE, cells), :]
        features.append((x + gelu(found[here] * (1 + scale) + shift)).astype(dtype))
        colours.append(colour.astype(dtype))
    x, colour = jnp.concatenate(features), jnp.concatenate(colours)  # [8 x cells, 128]
    inside = at.cells[place(r), :, pl.ds(EDGE, cells), :].reshape(x.shape).astype(dtype)
    out = dot(x, at.leave[...]) + dot(inside, at.recolour[6])
    for c in range(3):
        out += dot(inside, at.recolour[c]) * dot(colour, at.recolour[3 + c])
    lines = [out[y * cells : (y + 1) * cells].astype(dtype) for y in range(STRIP)]
    found = jnp.concatenate(lines, axis=1)  # [cells, 8 x 128]
    for px in range(CELL):
        at.turned[pl.ds(px, cells, stride=CELL), :] = dot(found, at.to_pixels[px])
    pixels = at.turned[...].T
    for c, name in enumerate(OUT):
        getattr(at, name)[...] = pixels[c * PATCH : (c + 1) * PATCH].astype(dtype)


def surrounded(held, r, columns) -> jax.Array:
    """Some columns of a strip, of the row above it and of the row below, `[rows + 2, ...]`."""
    last = held.shape[1] - 1
    beside = (-1, pl.ds(last, 1)), (0, slice(None)), (1, pl.ds(0, 1))
    return jnp.concatenate([held[place(r + k), rows, columns, :] for k, rows in beside])


def convolve(held, r, kernel) -> jax.Array:
    """A 3x3 convolution of strip `r`, `[rows * columns, 128]`."""
    rows, columns = held.shape[1], held.shape[2] - 2 * EDGE
    total = jnp.zeros((rows * columns, LANES), jnp.float32)
    for dx in range(3):
        near = surrounded(held, r, pl.ds(EDGE - 1 + dx, columns)).astype(kernel.dtype)
        taps = [near[dy : dy + rows].reshape(rows * columns, LANES) for dy in range(3)]
        total += dot(jnp.concatenate(taps, axis=1), kernel[dx])
    return total


def neighbours(r, rows: int) -> list[jax.Array]:
    """The strips between which lie the cells of strip `r`: at an end there is none but itself."""
    return [jnp.clip(r + k, 0, rows - 1) for k in (-1, 0, 1)]


def steered(at: SimpleNamespace, beside: list[jax.Array], y: int, *groups: int) -> list[jax.Array]:
    """Some groups of what tokens say to row `y` of the cells of a strip, `[cells, 128]`: a share of
    what those of the strips `beside` say."""
    shares = [(strip, float(s)) for strip, s in zip(beside, DOWN[:, y], strict=True) if s]

    def of(group: int) -> jax.Array:
        lanes = slice(group * LANES, (group + 1) * LANES)
        return functools.reduce(jnp.add, [at.steer[strip, :, lanes] * s for strip, s in shares])

    return [of(group) for group in groups]
