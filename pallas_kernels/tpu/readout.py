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
from pallas_kernels.tpu import detail
from pallas_kernels.tpu.cells import CELL, SQUARE, STEPS, STRIP, recolour, to_cells, to_pixels
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.detail import EDGE, GROUPS, OUT, RING
from pallas_kernels.tpu.loops import Interpret
from pallas_kernels.tpu.pictures import INTERPRETED_ROOM, PATCH, PLANES, planes_of, vmem_limit
from pallas_kernels.tpu.plan import LANES
from pallas_kernels.tpu.planner import limit_bytes


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
    interpret: Interpret = False,
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
        "across": np.ascontiguousarray(interpolation(columns, picture.cells).T).astype(dtype),
        "spread": np.repeat(np.eye(picture.squares), SQUARE // CELL, 0).astype(dtype),
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

    def body(*references):
        named = dict(zip(names, references[len(planes) :], strict=True))
        detail.step(rows, SimpleNamespace(planes=references[: len(planes)], **named))

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
