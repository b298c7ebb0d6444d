"""The pieces of the denoiser: attention over a KV buffer, norm, modulation, rotary positions."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp

from lsd_jax.codec import PixelCodec
from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites.matrices import DTYPES, spec
from lsd_jax.layers import modulate, rms_norm, rope_table, rotate
from lsd_jax.ops.attend import attend
from lsd_jax.ops.readout import upsample


def attention(quick: bool) -> list[Case]:
    """`tokens` queries over `slots` remembered frames and the current one, of so wide heads."""
    if quick:
        sizes = [(64, 3, 2, 64), (64, 3, 2, 128), (256, 3, 2, 64), (256, 0, 4, 64)]
    else:
        sizes = [*product((64, 256), (0, 3, 6), (1, 2, 4), (64, 128)), (1024, 0, 2, 64)]
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
        operations, moved, attend.reference, (q, k, k, bias),
    )  # fmt: skip


def blocks(quick: bool) -> list[Case]:
    """What lies between the products of a layer, and what the codec and the read-out add."""
    sizes = ((64, 256), (256, 512)) if quick else ((64, 128), (64, 256), (256, 256), (256, 512))
    found: list[Case] = []
    for tokens, dim in sizes:
        x, row = spec("f32", 1, tokens, dim), spec("f32", 1, dim)
        shapes = {"t": tokens, "d": dim}
        found += [
            _block("norm", rms_norm, shapes, 3, 0, 2, x),
            _block("modulate", modulate, shapes, 5, 0, 2, x, row, row),
            _block("rope", _rotate, shapes, 3, 0, 2, spec("f32", 1, tokens, dim // 64, 64)),
            _block("residual", lambda x, y, row: x + y * row, shapes, 2, 0, 3, x, x, row),
            _block("softmax", jax.nn.softmax, shapes, 6, 1, 2, x),
        ]
    for side in (64,) if quick else (32, 64, 128):
        x = spec("f32", side * side, 64)
        picture = jax.ShapeDtypeStruct((side, side, 3), jnp.uint8)
        found += [
            _block("steer", _steer, {"s": side}, 12, 1, 5, x, x, x, x),
            _block(
                "decode", PixelCodec().decode, {"s": side}, 6, 0, 1.25, spec("f32", side, side, 3)
            ),
            _block("encode", PixelCodec().encode, {"s": side}, 3, 0, 1.25, picture),
            _block("noise", _noise, {"s": side}, 110, 2, 1, jax.ShapeDtypeStruct((2,), jnp.uint32)),
            recolour_case(side),
        ]
        found[-2] = replace(found[-2], operations=112 * 3 * side**2, bytes=12 * side**2)
        found[-2] = replace(found[-2], function=partial(_noise, side=side))
    for grid, fine, channels in ((8, 64, 265),) if quick else ((8, 32, 137), (8, 64, 265)):
        x = spec("f32", 1, grid, grid, channels)
        found.append(upsample_case(grid, fine, channels, x))
    return found


def recolour_case(side: int) -> Case:
    """A product of 4 x 3 and 3 x 3 for each of `side` squared cells."""
    cells = side * side

    def products(x, y):
        return jnp.einsum("npc,ncd->npd", x, y)

    return Case(
        "blocks", "recolour", {"s": side}, "f32", 72 * cells, 4 * 33 * cells, products,
        (spec("f32", cells, 4, 3), spec("f32", cells, 3, 3)),
    )  # fmt: skip


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


def _steer(x, scale, shift, y):
    return y + jax.nn.gelu(x * (1 + scale) + shift)


def _noise(key, side: int = 1):
    return jax.random.normal(jax.random.wrap_key_data(key), (side, side, 3))


def _block(
    op: str,
    function,
    shapes: dict[str, int],
    flops: int,
    transcendentals: int,
    moved: int | float,
    *specs,
) -> Case:
    """Elementwise but for a norm's sums: what it does for an element, and numbers it moves."""
    count = math.prod(specs[0].shape)
    operations = (flops + transcendentals) * count
    return Case("blocks", op, shapes, "f32", operations, 4 * moved * count, function, specs)
