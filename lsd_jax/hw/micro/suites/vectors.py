"""Elementwise arithmetic, memory over size, and changes of layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites.matrices import DTYPES, spec
from lsd_jax.layers import patchify, unpatchify

OPERATIONS = {
    "add": lambda x: x + 1,
    "multiply_add": lambda x: x * 0.5 + 0.25,
    "exp": jnp.exp,
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "tanh": jnp.tanh,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "rsqrt": lambda x: jax.lax.rsqrt(jnp.abs(x) + 0.1),
    "sin": jnp.sin,
    "erf_inv": lambda x: jax.lax.erf_inv(x * 0.1),
    "divide": lambda x: 1 / (x + 10),
    "round": jnp.round,
}
"""By name, from one number to one."""

_STEPS = {"multiply_add": 2, "gelu": 8, "log1p": 2, "rsqrt": 3, "erf_inv": 2, "divide": 2}
"""Operations of those of more than one, a transcendental function counted as one."""


def elementwise(quick: bool) -> list[Case]:
    """One number in, one out, for sizes that fit the nearest memory and that do not."""
    sizes = (1 << 12, 1 << 18) if quick else (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
    found = [elementwise_case(op, "f32", n) for op in OPERATIONS for n in sizes]
    if quick:
        return found
    return found + [elementwise_case(op, "bf16", 1 << 16) for op in ("add", "exp", "gelu")]


def elementwise_case(op: str, dtype: str, n: int) -> Case:
    """`op` of `n` numbers."""
    moved = 2 * DTYPES[dtype].itemsize * n
    function = OPERATIONS[op]
    steps = _STEPS.get(op, 1)
    return Case("elementwise", op, {"n": n}, dtype, steps * n, moved, function, (spec(dtype, n),))


def memory(quick: bool) -> list[Case]:
    """Copies and sums from a few kilobytes to past the last cache: where the rate falls, a memory
    is full."""
    powers = range(12, 27, 4) if quick else range(12, 28)
    found = [copy_case(1 << p) for p in powers]
    return found + ([] if quick else [sum_case(1 << p) for p in powers])


def copy_case(size: int) -> Case:
    """Reads `size` bytes and writes as many. A negation, since a bare copy may be optimised out."""
    return Case(
        "memory", "copy", {"bytes": size}, "f32", 0, 2 * size, jnp.negative,
        (spec("f32", size // 4),),
    )  # fmt: skip


def sum_case(size: int) -> Case:
    """Reads `size` bytes."""
    return Case(
        "memory", "sum", {"bytes": size}, "f32", size // 4, size, jnp.sum, (spec("f32", size // 4),)
    )


def layout(quick: bool) -> list[Case]:
    """Transposes, patches and back, rows by number, one layer of a stack."""
    found = [transpose_case(n) for n in ((256, 1024) if quick else (64, 256, 1024, 2048))]
    for size, patch in ((128, 16), (128, 2)) if quick else ((64, 8), (128, 16), (128, 2), (256, 2)):
        found += [patch_case(size, patch), unpatch_case(size, patch)]
    found += [gather_case(n, 256) for n in ((4096,) if quick else (256, 4096, 16384))]
    return found + [layer_case(n) for n in ((1 << 18,) if quick else (1 << 14, 1 << 18, 1 << 20))]


def transpose_case(n: int) -> Case:
    """A square matrix, transposed."""
    moved = 8 * n * n
    return Case(
        "layout", "transpose", {"n": n}, "f32", 0, moved, lambda x: -x.T, (spec("f32", n, n),)
    )


def patch_case(size: int, patch: int) -> Case:
    """A picture of ten planes, as patches."""
    x = spec("f32", 1, size, size, 10)

    def patches(x):
        return -patchify(x, patch)

    return Case(
        "layout", "patchify", {"s": size, "p": patch}, "f32", 0, 8 * int(np.prod(x.shape)), patches,
        (x,),
    )  # fmt: skip


def unpatch_case(size: int, patch: int) -> Case:
    """Patches of three planes, as a picture."""
    x = spec("f32", 1, size // patch, size // patch, 3 * patch**2)

    def picture(x):
        return -unpatchify(x, patch)

    return Case(
        "layout", "unpatchify", {"s": size, "p": patch}, "f32", 0, 8 * int(np.prod(x.shape)),
        picture, (x,),
    )  # fmt: skip


def gather_case(rows: int, width: int) -> Case:
    """All rows of a table, in a random order."""
    order = np.random.default_rng(0).permutation(rows)

    def gathered(x):
        return x[order]

    return Case(
        "layout", "gather", {"rows": rows, "w": width}, "f32", 0, 8 * rows * width, gathered,
        (spec("f32", rows, width),),
    )  # fmt: skip


def layer_case(n: int) -> Case:
    """One layer of four, at a place that is known only when it runs."""

    def layer(i, x):
        return jax.lax.dynamic_index_in_dim(x, i[0] % 4, keepdims=False)

    specs = spec("i8", 1), spec("f32", 4, n)
    return Case("layout", "layer", {"n": n}, "f32", 0, 8 * n, layer, specs)
