"""Pictures as planes, as they lie in HBM, and strips of them turned so that columns are rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.tpu.plan import Buffer
from pallas_kernels.tpu.planner import SPARE_BYTES

INTERPRETED_ROOM = 120 << 20  # of VMEM, where none is
PATCH = 16  # pixels along a side of a patch
PLANES = 8  # that a transposition takes at once: input, latent, controls, and none


def planes_of(
    source: Float[Array, "b h w c"],
    latent: Float[Array, "b h w c"],
    controls: Float[Array, "b h w n"],
) -> Float[Array, "b planes h w"]:
    """All planes of a picture, `PLANES` of them."""
    given = source, latent, controls
    blank = (*source.shape[:3], PLANES - sum(x.shape[3] for x in given))
    return jnp.moveaxis(jnp.concatenate([*given, jnp.zeros(blank, source.dtype)], -1), 3, 1)


def turned(planes, r) -> jax.Array:
    """Strip `r`, a row of patches, of `planes [8, H, W]`: `[W, 8 x 16]` float32, a column of pixels
    a row, with its planes one after the other."""
    strip = planes[:, pl.ds(PATCH * r, PATCH), :].astype(jnp.float32)
    return strip.reshape(PLANES * PATCH, -1).T


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
            f"{what}: keeps {need / 1e6:.0f} MB in VMEM, of {room / 1e6:.0f} MB; use a smaller "
            "picture, or backend xla"
        )
    return need
