"""Pictures as planes, as they lie in HBM, and strips of them turned so that columns are rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.tpu.plan import Buffer
from pallas_kernels.tpu.planner import SPARE_BYTES

INTERPRETED_ROOM = 120 << 20  # of VMEM, where none is
PATCH = 16  # pixels along a side of a patch
PLANES = 8  # that a transposition takes at once: those of input, latent and controls, and none


def planes_of(
    pictures: tuple[Float[Array, "b h w n"], ...], rows: int, which: Callable = lambda i: i
) -> tuple[list[Float[Array, "b n h w"]], list[pl.BlockSpec]]:
    """What a kernel takes for each plane of some pictures, and the part that it sees in step
    `[b, i]` of its grid: `rows` rows, number `which(i)`, of session b, in one piece in HBM.

    No copy: a TPU's compiler lays out pictures as planes by itself.
    """

    def part(plane: int, width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, rows, width), lambda b, i: (b, plane, which(i), 0))

    given = [(x, plane) for x in pictures for plane in range(x.shape[3])]
    return [jnp.moveaxis(x, 3, 1) for x, _ in given], [part(n, x.shape[2]) for x, n in given]


def turned(planes: list, r) -> jax.Array:
    """Strip `r`, a row of patches, of at most 8 planes `[H, W]`: `[W, 8 x 16]` float32, a column of
    pixels a row, with its planes one after the other."""
    strips = [plane[pl.ds(PATCH * r, PATCH), :].astype(jnp.float32) for plane in planes]
    blank = jnp.zeros(((PLANES - len(planes)) * PATCH, strips[0].shape[1]), jnp.float32)
    return jnp.concatenate([*strips, blank]).T


def vmem_limit(what: str, held: dict[str, tuple[tuple[int, ...], int]], room: int) -> int:
    """VMEM to ask for: for the arrays that are `held`, by their shapes and the bytes of a number,
    and for what the compiler adds.

    Raises NotImplementedError where that is more than the `room` that a kernel may have.
    """
    need = SPARE_BYTES
    for shape, itemsize in held.values():
        need += Buffer(shape, "float32").bytes * itemsize // 4
    if need > room:
        raise NotImplementedError(
            f"{what}: keeps {need / 1e6:.0f} MB in VMEM, of {room / 1e6:.0f} MB; use a "
            "narrower picture, or backend xla"
        )
    return need
