"""`ops.readout` in one launch: pictures come and go as planes, and are cells inside.

Dimensions: those of `lsd_jax.types`, and of a picture of `R x S` patches of 16 x 16 pixels, in
cells of 2 x 2 and squares of 8 x 8. A strip is one row of patches: 16 rows of pixels, 8 of cells,
2 of squares.

Memory budget: the planes, and the features of all cells and squares in float32, in VMEM.

Pseudocode: for each strip, its pixels to cells, by a transposition and a product with zeros and
ones, and cells to squares; then the convolutions, strip by strip, each as nine products of shifted
cells; then cells to pixels, as they came.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lsd_jax.ops.partition import one_chip
from lsd_jax.ops.readout import ReadoutWeights, Sizes, interpolation
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.kernel import dot, gelu, norm
from pallas_kernels.tpu.loops import loop
from pallas_kernels.tpu.pictures import (
    INTERPRETED_ROOM,
    PATCH,
    PLANES,
    planes_of,
    turned,
    vmem_limit,
)
from pallas_kernels.tpu.plan import LANES
from pallas_kernels.tpu.planner import limit_bytes

CELL, SQUARE = 2, 8
STRIP = PATCH // CELL  # rows of cells
EDGE = 8  # columns of zeros beside a picture, a whole register
INSIDE = 3 * 3 + 1  # planes of a cell's pixel: input, noisy, coarse, a control
TAPS = [(dy, dx) for dy in range(3) for dx in range(3)]
STEPS = [(dy, dx) for dy in range(SQUARE // CELL) for dx in range(SQUARE // CELL)]


def readout(
    tokens: Float[Array, "b t d"],
    source: Float[Array, "b h w c"],
    noisy: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: ReadoutWeights,
    sizes: Sizes,
) -> Float[Array, "b h w c"]:
    """`ops.readout` on the TPU that this is traced for.

    Raises NotImplementedError where that is none, or the shape is not one for it.
    """
    room = limit_bytes(chip_here())
    return launch(tokens, source, noisy, controls, weights, sizes, room)


def interpreted(
    tokens: Float[Array, "b t d"],
    source: Float[Array, "b h w c"],
    noisy: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: ReadoutWeights,
    sizes: Sizes,
) -> Float[Array, "b h w c"]:
    """The same kernel, interpreted on whatever is here."""
    simulated = pltpu.InterpretParams()
    return launch(tokens, source, noisy, controls, weights, sizes, interpret=simulated)


@dataclass(frozen=True)
class Picture:
    """Sizes of a picture, in patches, and of what is known of a token and of a cell."""

    rows: int
    columns: int
    dim: int
    hidden: int
    dtype: str

    @property
    def cells(self) -> int:
        """Cells in a row."""
        return self.columns * STRIP

    @property
    def squares(self) -> int:
        """Squares in a row."""
        return self.columns * PATCH // SQUARE

    def scratch(self) -> dict[str, tuple[int, ...]]:
        """What is kept in VMEM, float32, by name."""
        rows, width = self.rows * STRIP + 2, self.cells + 2 * EDGE
        squares = self.rows * 2, self.squares
        return {
            "turned": (PATCH * self.columns, LANES),
            "coarse": (PATCH * self.columns, LANES),
            "grid": (self.rows, self.columns, self.dim),
            "columns": (self.dim, PATCH * LANES),
            "cells": (rows, width, LANES),
            "features": (rows, width, LANES),
            "squares": (squares[0] + 2, squares[1] + 2 * EDGE, LANES),
            "around": (*squares, LANES),
            "steer": (self.rows, self.columns, 5 * LANES),
            "gather": (len(STEPS), LANES, LANES),
            "steering": (self.dim, 5 * LANES),
            "leave": (LANES, LANES),
            **{name: (len(TAPS), LANES, LANES) for name in ("enter", "mix", "ring")},
        }

    def check(self, sizes: Sizes, controls: int) -> None:
        """Raises NotImplementedError where this is no picture for the kernel."""
        if (sizes.patch, sizes.cell, sizes.square) != (PATCH, CELL, SQUARE):
            raise NotImplementedError("readout: takes patches of 16, cells of 2, squares of 8")
        if controls != 1 or self.hidden > LANES or self.columns % STRIP:
            raise NotImplementedError(
                f"readout: takes one control, not {controls}; at most {LANES} detail features, "
                f"not {self.hidden}; and widths in {LANES} pixels, not {PATCH * self.columns}"
            )


def launch(
    tokens: Float[Array, "b t d"],
    source: Float[Array, "b h w c"],
    noisy: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: ReadoutWeights,
    sizes: Sizes,
    room: int = INTERPRETED_ROOM,
    interpret: pltpu.InterpretParams | bool = False,
) -> Float[Array, "b h w c"]:
    """One `pallas_call`, a session after the other, in at most `room` bytes of VMEM."""
    one_chip("readout")
    batch, height, width, _ = source.shape
    dtype = tokens.dtype
    rows, columns = height // sizes.patch, width // sizes.patch
    picture = Picture(rows, columns, tokens.shape[2], weights.mix.shape[3], dtype.name)
    picture.check(sizes, controls.shape[3])
    planes = planes_of(source, noisy, controls)
    constants = {
        "to_cells": to_cells(dtype),
        "coarse_to_cells": coarse_to_cells(dtype),
        "to_pixels": to_pixels(),
        "across": np.ascontiguousarray(interpolation(columns, picture.cells).T),
        "spread": np.repeat(np.eye(picture.squares, dtype=np.float32), SQUARE // CELL, 0),
        "recolour": recolour(dtype),
    }
    held = {f"{name}_in": w for name, w in vars(weights).items()}
    inputs = {"planes": planes, "tokens": tokens, **held, **constants}
    scratch = picture.scratch()
    held_twice = {name: ((2, *x.shape[-4:]), x.dtype.itemsize) for name, x in inputs.items()}
    strip = {"strip": ((6, STRIP * picture.cells, LANES), 4)}  # what a convolution has in hand
    kept = {name: (shape, 4) for name, shape in scratch.items()}
    limit = vmem_limit("readout", {**held_twice, **strip, **kept}, room)
    down = interpolation(3, 3 * STRIP)[:, STRIP : 2 * STRIP]  # [3, 8]: from the strips beside

    def body(*references):
        at = SimpleNamespace(**dict(zip((*inputs, "out", *scratch), references, strict=True)))
        compute(picture, at, down)

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b: (0,) * x.ndim)

    def one(*shape):
        return pl.BlockSpec((None, *shape), lambda b: (b, *(0,) * len(shape)))

    out = pl.pallas_call(
        body,
        grid=(batch,),
        out_shape=jax.ShapeDtypeStruct((batch, 3, height, width), dtype),
        in_specs=[
            one(*planes.shape[1:]),
            one(*tokens.shape[1:]),
            *(whole(x) for x in (*held.values(), *constants.values())),
        ],
        out_specs=one(3, height, width),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=limit),
        name="readout",
        interpret=interpret,
    )(*inputs.values())
    return jnp.moveaxis(out, 1, 3)


def compute(picture: Picture, at: SimpleNamespace, down: np.ndarray) -> None:
    """All of a session's picture."""
    pack(at)
    dtype, shape = at.tokens.dtype, (picture.rows, picture.columns, -1)
    grid = norm(at.tokens[...].astype(jnp.float32)).astype(dtype)
    at.grid[...] = grid.astype(jnp.float32).reshape(picture.rows, picture.columns, picture.dim)
    at.steer[...] = dot(grid, at.steering[...].astype(dtype)).reshape(shape)
    loop(picture.rows, lambda r: strip_in(picture, at, r))
    squares = 2 * picture.rows
    at.around[...] = convolve(at.squares, 0, squares, picture.squares, at.ring, dtype).reshape(
        squares, picture.squares, LANES
    )
    loop(picture.rows, lambda r: strip_features(picture, at, r, down))
    loop(picture.rows, lambda r: strip_out(picture, at, r, down))


def pack(at: SimpleNamespace) -> None:
    """Weights into whole registers, zeros beside them; and zeros around cells and squares."""
    for name in ("cells", "features", "squares", "enter", "mix", "ring", "gather", "steering"):
        getattr(at, name)[...] = jnp.zeros(getattr(at, name).shape, jnp.float32)
    at.leave[...] = jnp.zeros(at.leave.shape, jnp.float32)
    features, results = at.leave_in.shape
    at.leave[:features, :results] = at.leave_in[...].astype(jnp.float32)
    for target, source in ((at.enter, at.enter_in), (at.mix, at.mix_in), (at.ring, at.around_in)):
        for i, (dy, dx) in enumerate(TAPS):
            at_tap = source[dy, dx].astype(jnp.float32)
            target[i, : at_tap.shape[0], :features] = at_tap
    gather, half = at.gather_in[...].astype(jnp.float32), CELL * INSIDE
    for i, (dy, dx) in enumerate(STEPS):
        for py in range(CELL):  # the pixels of a cell's row lie together
            start = ((CELL * dy + py) * SQUARE + CELL * dx) * INSIDE
            at.gather[i, py * half : (py + 1) * half, :features] = gather[start : start + half]
    film = at.film_in[...].astype(jnp.float32)
    for group in range(4):
        at.steering[:, group * LANES : group * LANES + features] = film[
            :, group * features : (group + 1) * features
        ]
    at.steering[:, 4 * LANES : 4 * LANES + 9] = at.colour_in[...].astype(jnp.float32)
    pixels = 3 * PATCH
    row, lane = (
        jax.lax.broadcasted_iota(jnp.int32, (PATCH * pixels, LANES), axis) for axis in (0, 1)
    )
    for q in range(PATCH):  # coarse pixels of column q of a patch: from row, channel to planes
        wanted = (lane & (PATCH - 1)) * pixels + q * 3 + (lane >> 4)
        chosen = ((row == wanted) & (lane < pixels)).astype(jnp.float32).astype(at.coarse_in.dtype)
        at.columns[:, q * LANES : (q + 1) * LANES] = dot(at.coarse_in[...], chosen)


def strip_in(picture: Picture, at: SimpleNamespace, r) -> None:
    """The pixels of a strip, and what its tokens make of them, to cells; cells to squares."""
    dtype, cells, squares = at.tokens.dtype, picture.cells, picture.squares
    at.turned[...] = turned(at.planes, r)
    coarse = dot(at.grid[r].astype(dtype), at.columns[...].astype(dtype)).astype(dtype)
    coarse = coarse.astype(jnp.float32)
    for q in range(PATCH):
        column = pl.ds(q, picture.columns, stride=PATCH)
        at.coarse[column, :] = coarse[:, q * LANES : (q + 1) * LANES]
    found = jnp.zeros((cells, STRIP * LANES), jnp.float32)
    for px in range(CELL):
        column = pl.ds(px, cells, stride=CELL)
        found += dot(at.turned[column, :].astype(dtype), at.to_cells[px])
        found += dot(at.coarse[column, :].astype(dtype), at.coarse_to_cells[px])
    for y in range(STRIP):
        at.cells[1 + STRIP * r + y, pl.ds(EDGE, cells), :] = found[:, y * LANES : (y + 1) * LANES]
    for y in range(2):
        total = jnp.zeros((squares, LANES), jnp.float32)
        for i, (dy, dx) in enumerate(STEPS):
            row = 1 + STRIP * r + SQUARE // CELL * y + dy
            inside = at.cells[row, pl.ds(EDGE + dx, squares, stride=SQUARE // CELL), :]
            total += dot(inside.astype(dtype), at.gather[i].astype(dtype))
        at.squares[1 + 2 * r + y, pl.ds(EDGE, squares), :] = gelu(total)


def strip_features(picture: Picture, at: SimpleNamespace, r, down: np.ndarray) -> None:
    """The first convolution of a strip of cells, with its surroundings, as its tokens steer it."""
    found = convolve(at.cells, STRIP * r, STRIP, picture.cells, at.enter, at.tokens.dtype)
    around = [dot(at.spread[...], at.around[2 * r + y]) for y in range(2)]
    for y in range(STRIP):
        here = slice(y * picture.cells, (y + 1) * picture.cells)
        scale, shift = steered(picture, at, r, down[:, y], 0, 1)
        x = (found[here] + around[y // (STRIP // 2)]) * (1 + scale) + shift
        at.features[1 + STRIP * r + y, pl.ds(EDGE, picture.cells), :] = gelu(x)


def strip_out(picture: Picture, at: SimpleNamespace, r, down: np.ndarray) -> None:
    """The second convolution, what it and the recoloured pixels make of a strip, as pixels."""
    dtype, cells = at.tokens.dtype, picture.cells
    found = convolve(at.features, STRIP * r, STRIP, cells, at.mix, dtype)
    rows = []
    for y in range(STRIP):
        here = slice(y * cells, (y + 1) * cells)
        scale, shift, colour = steered(picture, at, r, down[:, y], 2, 3, 4)
        row, column = 1 + STRIP * r + y, pl.ds(EDGE, cells)
        x = at.features[row, column, :] + gelu(found[here] * (1 + scale) + shift)
        inside = at.cells[row, column, :].astype(dtype)
        out = dot(x.astype(dtype), at.leave[...].astype(dtype)) + dot(inside, at.recolour[6])
        for c in range(3):
            by = dot(colour.astype(dtype), at.recolour[3 + c])
            out += dot(inside, at.recolour[c]) * by
        rows.append(out)
    strip = jnp.concatenate(rows, axis=1)  # [cells, 8 x 128]
    for px in range(CELL):
        at.turned[pl.ds(px, cells, stride=CELL), :] = dot(strip, at.to_pixels[px])
    pixels = at.turned[...].T[: 3 * PATCH].reshape(3, PATCH, -1)
    at.out[:, pl.ds(PATCH * r, PATCH), :] = pixels.astype(at.out.dtype)


def convolve(held, row, rows: int, columns: int, kernel, dtype) -> jax.Array:
    """A 3x3 convolution of `rows` from the one at `row`, `[rows * columns, 128]`."""
    total = jnp.zeros((rows * columns, LANES), jnp.float32)
    for i, (dy, dx) in enumerate(TAPS):
        near = held[pl.ds(row + dy, rows), pl.ds(EDGE - 1 + dx, columns), :]
        near = near.reshape(rows * columns, LANES)
        total += dot(near.astype(dtype), kernel[i].astype(dtype))
    return total


def steered(picture: Picture, at: SimpleNamespace, r, shares, *groups: int) -> list[jax.Array]:
    """Some groups of what tokens say to a row of cells, `[cells, 128]`: between the patches of its
    strip and of those beside it."""
    strips = [jnp.clip(r - 1 + k, 0, picture.rows - 1) for k in range(3)]
    found = []
    for group in groups:
        lanes = pl.ds(group * LANES, LANES)
        row = jnp.zeros((picture.columns, LANES), jnp.float32)
        for strip, share in zip(strips, shares, strict=True):
            row += at.steer[strip, :, lanes] * float(share)
        found.append(dot(at.across[...], row))
    return found


def to_cells(dtype) -> np.ndarray:
    """`[2, 128, 8 x 128]`: of the pixels in even and odd columns of a strip, from their planes to
    the place that they have in a cell of each row."""
    found = np.zeros((CELL, PLANES, PATCH, STRIP, LANES), np.float32)
    for px in range(CELL):
        for y in range(PATCH):
            pixel = (y % CELL * CELL + px) * INSIDE
            for plane, place in enumerate((0, 1, 2, 3, 4, 5, 9)):
                found[px, plane, y, y // CELL, pixel + place] = 1
    return found.reshape(CELL, LANES, STRIP * LANES).astype(dtype)


def coarse_to_cells(dtype) -> np.ndarray:
    """The same, for the three planes of the coarse picture."""
    found = np.zeros((CELL, PLANES, PATCH, STRIP, LANES), np.float32)
    for px in range(CELL):
        for y in range(PATCH):
            pixel = (y % CELL * CELL + px) * INSIDE
            for c in range(3):
                found[px, c, y, y // CELL, pixel + 6 + c] = 1
    return found.reshape(CELL, LANES, STRIP * LANES).astype(dtype)


def to_pixels() -> np.ndarray:
    """`[2, 8 x 128, 128]`: the way back, from the cells' pixels to three planes."""
    found = np.zeros((CELL, STRIP, LANES, PLANES, PATCH), np.float32)
    for px in range(CELL):
        for y in range(PATCH):
            for c in range(3):
                found[px, y // CELL, (y % CELL * CELL + px) * 3 + c, c, y] = 1
    return found.reshape(CELL, STRIP * LANES, LANES)


def recolour(dtype) -> np.ndarray:
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
    return found.astype(dtype)
