"""`ops.readout` in one launch, a strip of the picture after the other.

Dimensions: those of `lsd_jax.types`, and of a picture of `R x S` patches, sorted into the cells and
squares of `cells.py`. A strip is one row of patches.

Memory budget: in VMEM, four strips of a session, the features of their cells and squares in
float32, so a picture's height costs nothing; and the weights, padded to whole registers.

Pseudocode: in step i strip i comes in, its pixels to cells by a transposition and a product with
zeros and ones, and its cells to squares; strip i - 1, whose neighbours are both known by then, goes
through the first convolutions; strip i - 2 through the second, and out, as it came. A convolution
is three products, each of the cells of three rows together, shifted by a column.
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
from pallas_kernels.tpu.cells import (
    CELL,
    INSIDE,
    SQUARE,
    STEPS,
    STRIP,
    recolour,
    to_cells,
    to_pixels,
)
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.kernel import dot, gelu, norm
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

RING = 4  # strips that are kept: the one that comes in, and three around the one that goes out
EDGE = 8  # columns of zeros beside a strip, a whole register
OUT = ("red", "green", "blue")  # a plane each: XLA puts them together where it shows them
GROUPS = 5  # of what tokens say to cells: scale and shift, twice, and a matrix of colours


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

    def scratch(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What is kept in VMEM, by name: its shape and dtype."""
        strip = RING, STRIP, self.cells + 2 * EDGE, LANES
        features = {
            "turned": (PATCH * self.columns, LANES),
            "coarse": (PATCH * self.columns, LANES),
            "cells": strip,
            "features": strip,
            "squares": (RING, 2, self.squares + 2 * EDGE, LANES),
            "steer": (RING, self.cells, GROUPS * LANES),
            "padded": (LANES, LANES),
        }
        weights = {
            "columns": (self.dim, PATCH * LANES),
            "steering": (self.dim, GROUPS * LANES),
            "gather": (len(STEPS) * LANES, LANES),
            "leave": (LANES, LANES),
            **{name: (3, 3 * LANES, LANES) for name in ("enter", "mix", "ring")},
        }
        found = {name: (shape, "float32") for name, shape in features.items()}
        return found | {name: (shape, self.dtype) for name, shape in weights.items()}

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
    constants = {
        "to_cells": to_cells((0, 1, 2, 3, 4, 5, 9), dtype),
        "coarse_to_cells": to_cells((6, 7, 8), dtype),
        "to_pixels": to_pixels(dtype),
        "across": np.ascontiguousarray(interpolation(columns, picture.cells).T),
        "spread": np.repeat(np.eye(picture.squares, dtype=np.float32), SQUARE // CELL, 0),
        "recolour": recolour(dtype),
    }
    held = {f"{name}_in": w for name, w in vars(weights).items()} | constants
    scratch = picture.scratch()
    strips = {  # two of each, one in use
        "planes": ((2, PLANES + len(OUT), PATCH, width), dtype.itemsize),
        "tokens": ((2, columns, picture.dim), dtype.itemsize),
        "in hand": ((8, STRIP * picture.cells, LANES), 4),  # of a convolution and what follows it
    }
    twice = {name: ((2, *x.shape), x.dtype.itemsize) for name, x in held.items()}
    kept = {name: (shape, jnp.dtype(kind).itemsize) for name, (shape, kind) in scratch.items()}
    limit = vmem_limit("readout", {**strips, **twice, **kept}, room)
    down = interpolation(3, 3 * STRIP)[:, STRIP : 2 * STRIP]  # [3, 8]: from the strips beside

    def body(*references):
        named = dict(zip(names, references[len(planes) :], strict=True))
        compute(picture, SimpleNamespace(planes=references[: len(planes)], **named), down)

    def coming(i):
        return jnp.minimum(i, rows - 1)

    def whole(x):
        return pl.BlockSpec(x.shape, lambda b, i: (0,) * x.ndim)

    planes, parts = planes_of((source, noisy, controls), PATCH, coming)
    names = ("tokens", *held, *OUT, *scratch)
    going = pl.BlockSpec((None, PATCH, width), lambda b, i: (b, jnp.maximum(i - 2, 0), 0))
    out = pl.pallas_call(
        body,
        grid=(batch, rows + 2),
        out_shape=[jax.ShapeDtypeStruct((batch, height, width), dtype) for _ in OUT],
        in_specs=[
            *parts,
            pl.BlockSpec((None, columns, picture.dim), lambda b, i: (b, coming(i), 0)),
            *(whole(x) for x in held.values()),
        ],
        out_specs=[going for _ in OUT],
        scratch_shapes=[pltpu.VMEM(shape, jnp.dtype(kind)) for shape, kind in scratch.values()],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=limit),
        name="readout",
        interpret=interpret,
    )(*planes, tokens, *held.values())
    return jnp.stack(out, -1)


def compute(picture: Picture, at: SimpleNamespace, down: np.ndarray) -> None:
    """A step: of one strip, and of the two before it."""
    session, i, rows = pl.program_id(0), pl.program_id(1), picture.rows
    pl.when((session == 0) & (i == 0))(lambda: pack(at))
    pl.when(i == 0)(lambda: blank(-1, at.cells, at.squares, at.features))
    pl.when(i < rows)(lambda: strip_in(picture, at, i))
    pl.when(i == rows)(lambda: blank(rows, at.cells, at.squares))
    pl.when((i > 0) & (i <= rows))(lambda: strip_features(picture, at, i - 1, down))
    pl.when(i == rows + 1)(lambda: blank(rows, at.features))
    pl.when(i > 1)(lambda: strip_out(picture, at, i - 2, down))


def pack(at: SimpleNamespace) -> None:
    """Weights into whole registers, zeros beside them; and zeros at both ends of a strip."""
    for held in (at.cells, at.squares, at.features):
        held[...] = jnp.zeros(held.shape, jnp.float32)
    at.leave[...] = padded(at, {0: at.leave_in[...]})
    for packed, source in ((at.enter, at.enter_in), (at.mix, at.mix_in), (at.ring, at.around_in)):
        for dy in range(3):
            for dx in range(3):
                packed[dx, dy * LANES : (dy + 1) * LANES] = padded(at, {0: source[dy, dx]})
    gather, half = at.gather_in[...], CELL * INSIDE
    for i, (dy, dx) in enumerate(STEPS):
        starts = [((CELL * dy + py) * SQUARE + CELL * dx) * INSIDE for py in range(CELL)]
        cell = {py * half: gather[start : start + half] for py, start in enumerate(starts)}
        at.gather[i * LANES : (i + 1) * LANES] = padded(at, cell)
    at.steering[...] = jnp.zeros(at.steering.shape, at.steering.dtype)
    film, features = at.film_in[...], at.leave_in.shape[0]
    for group in range(4):
        lanes = slice(group * LANES, group * LANES + features)
        at.steering[:, lanes] = film[:, group * features : (group + 1) * features]
    at.steering[:, 4 * LANES : 4 * LANES + 9] = at.colour_in[...]
    pixels = 3 * PATCH
    row, lane = (
        jax.lax.broadcasted_iota(jnp.int32, (PATCH * pixels, LANES), axis) for axis in (0, 1)
    )
    for q in range(PATCH):  # coarse pixels of column q of a patch: from row, channel to planes
        wanted = (lane & (PATCH - 1)) * pixels + q * 3 + (lane >> 4)
        chosen = ((row == wanted) & (lane < pixels)).astype(jnp.float32).astype(at.columns.dtype)
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


def strip_in(picture: Picture, at: SimpleNamespace, r) -> None:
    """The pixels of a strip, and what its tokens make of them, to cells; cells to squares."""
    dtype, cells, squares = at.tokens.dtype, picture.cells, picture.squares
    tokens = norm(at.tokens[...].astype(jnp.float32)).astype(dtype)
    at.steer[place(r)] = dot(at.across[...], dot(tokens, at.steering[...]))
    at.turned[...] = turned(at.planes, 0)
    coarse = dot(tokens, at.columns[...]).astype(dtype).astype(jnp.float32)
    for q in range(PATCH):
        column = pl.ds(q, picture.columns, stride=PATCH)
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


def strip_features(picture: Picture, at: SimpleNamespace, r, down: np.ndarray) -> None:
    """The first convolution of a strip of cells, with its surroundings, as its tokens steer it."""
    found = convolve(at.cells, r, at.enter)
    squares = convolve(at.squares, r, at.ring).reshape(2, picture.squares, LANES)
    wide = [dot(at.spread[...], squares[y]) for y in range(2)]
    for y in range(STRIP):
        here = slice(y * picture.cells, (y + 1) * picture.cells)
        scale, shift = steered(picture, at, r, down[:, y], 0, 1)
        x = (found[here] + wide[y // (STRIP // 2)]) * (1 + scale) + shift
        at.features[place(r), y, pl.ds(EDGE, picture.cells), :] = gelu(x)


def strip_out(picture: Picture, at: SimpleNamespace, r, down: np.ndarray) -> None:
    """The second convolution, what it and the recoloured pixels make of a strip, as pixels."""
    dtype, cells = at.tokens.dtype, picture.cells
    found = convolve(at.features, r, at.mix)
    rows = []
    for y in range(STRIP):
        here = slice(y * cells, (y + 1) * cells)
        scale, shift, colour = steered(picture, at, r, down[:, y], 2, 3, 4)
        column = pl.ds(EDGE, cells)
        x = at.features[place(r), y, column, :] + gelu(found[here] * (1 + scale) + shift)
        inside = at.cells[place(r), y, column, :].astype(dtype)
        out = dot(x.astype(dtype), at.leave[...]) + dot(inside, at.recolour[6])
        for c in range(3):
            by = dot(colour.astype(dtype), at.recolour[3 + c])
            out += dot(inside, at.recolour[c]) * by
        rows.append(out.astype(dtype))
    strip = jnp.concatenate(rows, axis=1)  # [cells, 8 x 128]
    for px in range(CELL):
        at.turned[pl.ds(px, cells, stride=CELL), :] = dot(strip, at.to_pixels[px])
    pixels = at.turned[...].T
    for c, name in enumerate(OUT):
        getattr(at, name)[...] = pixels[c * PATCH : (c + 1) * PATCH].astype(dtype)


def surrounded(held, r, columns) -> jax.Array:
    """Some columns of a strip, and of the row above it and of that below, `[rows + 2, ...]`."""
    above, here, below = (held[place(r + k), rows, columns, :] for k, rows in BESIDE.items())
    return jnp.concatenate([above, here, below])


BESIDE = {-1: slice(-1, None), 0: slice(None), 1: slice(0, 1)}


def convolve(held, r, kernel) -> jax.Array:
    """A 3x3 convolution of strip `r`, `[rows * columns, 128]`."""
    rows, columns = held.shape[1], held.shape[2] - 2 * EDGE
    total = jnp.zeros((rows * columns, LANES), jnp.float32)
    for dx in range(3):
        near = surrounded(held, r, pl.ds(EDGE - 1 + dx, columns)).astype(kernel.dtype)
        taps = [near[dy : dy + rows].reshape(rows * columns, LANES) for dy in range(3)]
        total += dot(jnp.concatenate(taps, axis=1), kernel[dx])
    return total


def steered(picture: Picture, at: SimpleNamespace, r, shares, *groups: int) -> list[jax.Array]:
    """Some groups of what tokens say to a row of cells, `[cells, 128]`: between the patches of its
    strip and of those beside it."""
    strips = [place(jnp.clip(r - 1 + k, 0, picture.rows - 1)) for k in range(3)]
    taken = [(strip, float(s)) for strip, s in zip(strips, shares, strict=True) if s]
    return [
        sum(at.steer[strip, :, group * LANES : (group + 1) * LANES] * s for strip, s in taken)
        for group in groups
    ]
