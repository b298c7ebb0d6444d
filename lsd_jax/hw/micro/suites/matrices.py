"""Matrix products and convolutions: widths of models, few rows, and sizes beside a tile's edge."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from lsd_jax.hw.micro.case import Case

DTYPES = {
    "f32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8": np.dtype(ml_dtypes.float8_e4m3fn),
    "i8": np.dtype(np.int8),
}
"""Dtypes by the short name that cases give them."""


def spec(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
    """An array of this shape and dtype, by the dtype's short name."""
    return jax.ShapeDtypeStruct(shape, DTYPES[dtype])


def matmul(quick: bool) -> list[Case]:
    """`[M, K] x [K, N]`: squares, the products of a transformer, edges of tiles, narrow dtypes."""
    rows = (64, 256) if quick else (16, 64, 144, 256, 1024)
    layers = ((128, 512), (512, 128), (256, 768), (256, 1024), (1024, 256), (512, 2048))
    narrow = ((4096, 40, 64), (4096, 64, 12), (1024, 8, 512), (256, 16, 64), (4096, 8, 64))
    edges = (127, 128, 129) if quick else (63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513)
    f32 = [(m, k, n) for m, (k, n) in product(rows, layers)] + [(m, m, m) for m in edges]
    f32 += narrow if quick else [*narrow, (16384, 8, 64), (1024, 64, 256), (1024, 1024, 1024)]
    other = [(256, 256, 1024)] if quick else [*product((16, 256), (256,), (255, 256, 1024))]
    found = [matmul_case("f32", *sizes) for sizes in f32]
    return found + [matmul_case(d, *sizes) for d in ("bf16", "i8", "f8") for sizes in other]


def matmul_case(dtype: str, m: int, k: int, n: int) -> Case:
    """One product; it accumulates in float32, of integers in int32."""
    out = np.dtype(np.int32) if dtype == "i8" else np.dtype(np.float32)
    size = DTYPES[dtype].itemsize

    def product_of(a, b):
        return jax.lax.dot(a, b, preferred_element_type=out)

    return Case(
        "matmul", "matmul", {"m": m, "k": k, "n": n}, dtype, 2 * m * k * n,
        size * (m * k + k * n) + out.itemsize * m * n, product_of,
        (spec(dtype, m, k), spec(dtype, k, n)),
    )  # fmt: skip


def convolution(quick: bool) -> list[Case]:
    """3x3 convolutions that keep the size, as in the detail head: `[S, S, I]` to `[S, S, O]`."""
    sizes = [(16, 32, 32), (32, 64, 64), (64, 40, 64), (64, 64, 64)]
    if not quick:
        sizes += [(16, 64, 64), (32, 40, 32), (64, 32, 32), (128, 40, 64), (128, 64, 64)]
    return [convolution_case("f32", *s) for s in sizes]


def convolution_case(dtype: str, s: int, i: int, o: int) -> Case:
    """One convolution of a square picture."""

    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return Case(
        "convolution", "conv3x3", {"s": s, "i": i, "o": o}, dtype, 2 * s * s * 9 * i * o,
        DTYPES[dtype].itemsize * (s * s * (i + o) + 9 * i * o), convolved,
        (spec(dtype, 1, s, s, i), spec(dtype, 3, 3, i, o)),
    )  # fmt: skip


def short(dtype: jnp.dtype) -> str:
    """The short name of a dtype."""
    return next(name for name, known in DTYPES.items() if known == dtype)
