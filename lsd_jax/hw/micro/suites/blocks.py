"""The pieces of the denoiser: attention over a KV buffer, norm, modulation, rotary positions."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp

from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites.matrices import DTYPES, spec
from lsd_jax.layers import modulate, rms_norm, rope_table, rotate
from lsd_jax.ops.denoise_stack import attend
from lsd_jax.readout import upsample


def attention(quick: bool) -> list[Case]:
    """`tokens` queries over `slots` remembered frames and the current one, of so wide heads."""
    if quick:
        sizes = [(64, 3, 2, 64), (64, 3, 2, 128), (256, 3, 2, 64), (256, 0, 4, 64)]
    else:
        sizes = [*product((64, 256), (0, 3, 6), (1, 2, 4), (64, 128)), (1024, 3, 2, 64)]
    found = [attention_case("f32", *s) for s in sizes]
    return found + ([] if quick else [attention_case("bf16", 256, 3, 2, 128)])


def attention_case(dtype: str, tokens: int, slots: int, heads: int, head_dim: int) -> Case:
    """Softmax attention of a frame over itself and the frames remembered, every one valid."""
    keys = tokens * (slots + 1)
    each = heads * head_dim
    bias = jax.ShapeDtypeStruct((1, tokens * slots), jnp.float32)
    operations = 4 * tokens * keys * each
    moved = DTYPES[dtype].itemsize * (2 * tokens + 2 * keys) * each
    q, k = spec(dtype, 1, tokens, heads, head_dim), spec(dtype, 1, keys, heads, head_dim)
    return Case(
        "attention", "attention", {"t": tokens, "s": slots, "h": heads, "d": head_dim}, dtype,
        operations, moved, attend, (q, k, k, bias),
    )  # fmt: skip


def blocks(quick: bool) -> list[Case]:
    """What lies between the products of a layer, and the interpolation of the read-out."""
    sizes = ((64, 256), (256, 512)) if quick else ((64, 128), (64, 256), (256, 256), (256, 512))
    found: list[Case] = []
    for tokens, dim in sizes:
        x, row = spec("f32", 1, tokens, dim), spec("f32", 1, dim)
        found += [
            _block("norm", rms_norm, {"t": tokens, "d": dim}, 4, 2, x),
            _block("modulate", modulate, {"t": tokens, "d": dim}, 6, 2, x, row, row),
            _block("rope", _rotate, {"t": tokens, "d": dim}, 3, 2, spec("f32", 1, tokens, 1, dim)),
        ]
    for grid, fine, channels in ((8, 64, 265),) if quick else ((8, 32, 137), (8, 64, 265)):
        x = spec("f32", 1, grid, grid, channels)
        found.append(upsample_case(grid, fine, channels, x))
    return found


def upsample_case(grid: int, fine: int, channels: int, x: jax.ShapeDtypeStruct) -> Case:
    """Bilinear interpolation from `grid` squared to `fine` squared cells."""
    operations = 2 * channels * (grid * grid * fine + grid * fine * fine)
    moved = 4 * channels * (grid**2 + fine**2)
    return Case(
        "blocks", "upsample", {"g": grid, "f": fine, "c": channels}, "f32", operations, moved,
        lambda x: upsample(x, (fine, fine)), (x,),
    )  # fmt: skip


def _rotate(x):
    tokens, width = x.shape[1], x.shape[-1]
    side = int(tokens**0.5)
    return rotate(x, rope_table(side, tokens // side, width))


def _block(op: str, function, shapes: dict[str, int], steps: int, passes: int, *specs) -> Case:
    count = specs[0].size
    return Case("blocks", op, shapes, "f32", steps * count, 4 * passes * count, function, specs)
