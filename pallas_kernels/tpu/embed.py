"""`ops.embed` in one launch.

Dimensions: those of `lsd_jax.types`, in a picture of `R x S` patches of 16 x 16 pixels.

Memory budget: in VMEM, planes and tokens of a band of strips, rows of patches; and weights, in
float32 and twice.

Pseudocode: a band after the other, each strip turned, so that a column of pixels is a row; then,
for each of the sixteen columns of a patch, its pixels of all patches times that column's weights.
"""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lsd_jax.ops.embed import patch_of
from lsd_jax.ops.partition import one_chip
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.kernel import dot
from pallas_kernels.tpu.loops import Interpret, loop
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

BAND = 512  # patches at once, at most


def embed(
    source: Float[Array, "b h w c"],
    latent: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: Float[Array, "pixels d"],
    position: Float[Array, "t d"],
) -> Float[Array, "b t d"]:
    """`ops.embed` on the TPU that this is traced for.

    Raises NotImplementedError where that is none, or the shape is not one for it.
    """
    room = limit_bytes(chip_here())
    return launch(source, latent, controls, weights, position, room)


def interpreted(
    source: Float[Array, "b h w c"],
    latent: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: Float[Array, "pixels d"],
    position: Float[Array, "t d"],
) -> Float[Array, "b t d"]:
    """The same kernel, interpreted on whatever is here."""
    simulated = pltpu.InterpretParams()
    return launch(source, latent, controls, weights, position, interpret=simulated)


def launch(
    source: Float[Array, "b h w c"],
    latent: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
    weights: Float[Array, "pixels d"],
    position: Float[Array, "t d"],
    room: int = INTERPRETED_ROOM,
    interpret: Interpret = False,
) -> Float[Array, "b t d"]:
    """One `pallas_call`, a session after the other, in at most `room` bytes of VMEM."""
    one_chip("embed")
    batch, height, width, channels = source.shape
    tokens, dim = position.shape
    used = 2 * channels + controls.shape[3]
    rows, columns = height // PATCH, width // PATCH
    if patch_of((height, width), tokens) != PATCH or width % LANES or used > PLANES or dim % LANES:
        raise NotImplementedError(
            f"embed: takes patches of {PATCH}, widths in {LANES} pixels, not {width}, at most "
            f"{PLANES} planes, not {used}, and dim in {LANES}, not {dim}"
        )
    strips = strips_of(rows, columns)
    scratch = {
        "turned": (strips, width, PLANES * PATCH),
        "rows": (dim // LANES, weights.shape[0], LANES),
        "packed": (PATCH, PLANES * PATCH, dim),
        "x": (strips, columns, dim),
    }
    size, many = position.dtype.itemsize, strips * columns
    held = {name: (shape, 4) for name, shape in scratch.items()}
    held |= {  # inputs and outputs: two of each, one in use
        "planes": ((2, PLANES, strips * PATCH, width), size),
        "weights": ((2, *weights.shape), size),
        "tokens": ((4, many, dim), size),
    }
    limit = vmem_limit("embed", held, room)
    planes, parts = planes_of((source, latent, controls), strips * PATCH)
    names = ("weights", "position", "out", *scratch)

    def body(*references):
        named = dict(zip(names, references[used:], strict=True))
        compute(used, SimpleNamespace(planes=references[:used], **named))

    return pl.pallas_call(
        body,
        grid=(batch, rows // strips),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, dim), position.dtype),
        in_specs=[
            *parts,
            pl.BlockSpec(weights.shape, lambda b, i: (0, 0)),
            pl.BlockSpec((many, dim), lambda b, i: (i, 0)),
        ],
        out_specs=pl.BlockSpec((None, many, dim), lambda b, i: (b, i, 0)),
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=limit),
        name="embed",
        interpret=interpret,
    )(*planes, weights, position)


def strips_of(rows: int, columns: int) -> int:
    """How many of so many strips make a band: the more, the less often weights go through the
    matrix unit."""
    divisors = (n for n in range(1, rows + 1) if rows % n == 0)
    return max(n for n in divisors if n == 1 or n * columns <= BAND)


def compute(used: int, at: SimpleNamespace) -> None:
    """The tokens of a band."""
    pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))(lambda: pack(used, at))
    strips, columns, dim = at.x.shape
    dtype = at.weights.dtype

    def strip(r) -> None:
        at.turned[r] = turned(at.planes, r)

    loop(strips, strip)
    at.x[...] = at.position[...].astype(jnp.float32).reshape(strips, columns, dim)
    for q in range(PATCH):
        pixels = at.turned[:, pl.ds(q, columns, stride=PATCH), :].reshape(strips * columns, -1)
        share = dot(pixels.astype(dtype), at.packed[q].astype(dtype))
        at.x[...] += share.reshape(strips, columns, dim)
    at.out[...] = at.x[...].reshape(strips * columns, dim).astype(at.out.dtype)


def pack(used: int, at: SimpleNamespace) -> None:
    """Weights by column of a patch and plane: they are in row, column, channel order."""
    at.packed[...] = jnp.zeros(at.packed.shape, jnp.float32)
    for block in range(at.x.shape[2] // LANES):
        lanes = slice(block * LANES, (block + 1) * LANES)
        at.rows[block] = at.weights[:, lanes].astype(jnp.float32)
        for q in range(PATCH):
            for plane in range(used):
                of_column = pl.ds(q * used + plane, PATCH, stride=PATCH * used)
                place = slice(plane * PATCH, (plane + 1) * PATCH)
                at.packed[q, place, lanes] = at.rows[block, of_column, :]
