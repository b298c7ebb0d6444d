"""What the host and the links cost: launches, copies, collectives, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites.matrices import spec

SHARED = P("ring")
"""How what is shared lies: its first axis over the devices of a ring."""


def launch(quick: bool) -> list[Case]:
    """One call of an executable that does next to nothing, by its number of arguments."""
    return [launch_case(n) for n in ((1, 16) if quick else (1, 4, 16, 64, 256))]


def launch_case(arguments: int) -> Case:
    """A call with so many scalars."""

    def first(*values):
        return values[0] + 1

    moved = 4 * (arguments + 1)
    return Case(
        "launch", "launch", {"args": arguments}, "f32", 1, moved, first,
        (spec("f32"),) * arguments, "call",
    )  # fmt: skip


def transfer(quick: bool) -> list[Case]:
    """Bytes from the host to the device and back, in one array and in eight at once.

    Where the two share a memory, JAX may hand over the array itself.
    """
    powers = (12, 20) if quick else (10, 12, 14, 16, 18, 20, 22, 24)
    counts = (1,) if quick else (1, 8)
    return [
        transfer_case(method, 1 << power, arrays)
        for power in powers
        for arrays in counts
        for method in ("send", "fetch")
    ]


def transfer_case(method: Literal["send", "fetch"], size: int, arrays: int) -> Case:
    """`size` bytes in all, split over so many arrays that travel at once."""
    one = jax.ShapeDtypeStruct((size // arrays,), jnp.uint8)
    return Case(
        "transfer", method, {"bytes": size, "arrays": arrays}, "u8", 0, size, lambda *x: x,
        (one,) * arrays, method,
    )  # fmt: skip


COLLECTIVES = {
    "all_reduce": lambda x: jax.lax.psum(x, "ring"),
    "all_gather": lambda x: jax.lax.all_gather(x, "ring"),
    "reduce_scatter": lambda x: jax.lax.psum_scatter(x, "ring", tiled=True),
    "all_to_all": lambda x: jax.lax.all_to_all(x, "ring", 0, 0, tiled=True),
    "shift": lambda x: jax.lax.ppermute(x, "ring", _neighbours()),
}
"""By name, of each device's part; `shift` sends it to the next device of the ring."""


def collective(quick: bool) -> list[Case]:
    """Collectives over bytes a device and the length of the ring; none on a single device."""
    powers = (12, 20) if quick else (12, 16, 20, 24)
    return [
        collective_case(op, 1 << power, ring)
        for op in COLLECTIVES
        for power in powers
        for ring in rings(quick)
    ]


def rings(quick: bool) -> list[int]:
    """Lengths of rings that the devices here can form, the longest of them last and alone where it
    is to be quick."""
    found = [ring for ring in (2, 4, 8, 16, 32, 64) if ring <= len(jax.devices())]
    return found[-1:] if quick else found


def around(
    function: Callable, ring: int, shape: tuple[int, ...], out: P = SHARED
) -> tuple[Callable, jax.ShapeDtypeStruct]:
    """`function` of each device's part on the first `ring` devices, and the float32 array of that
    shape in all whose first axis they share."""
    mesh = Mesh(np.array(jax.devices()[:ring]), ("ring",))
    whole = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, SHARED))
    run = jax.shard_map(function, mesh=mesh, in_specs=SHARED, out_specs=out, check_vma=False)
    return run, whole


def collective_case(op: str, size: int, ring: int) -> Case:
    """`size` bytes a device on the first `ring` devices; `bytes` is what a device sends at least
    in a ring."""
    parts = {"all_reduce": 2 * (ring - 1) / ring, "shift": 1, "all_gather": ring - 1}
    out = P() if op == "all_reduce" else SHARED
    run, whole = around(COLLECTIVES[op], ring, (size // 4 * ring,), out)
    moved = parts.get(op, (ring - 1) / ring) * size
    sizes = {"bytes": size, "ring": ring}
    return Case("collective", op, sizes, "f32", 0, moved, run, (whole,))


def _neighbours() -> list[tuple[int, int]]:
    ring = jax.lax.axis_size("ring")
    return [(i, (i + 1) % ring) for i in range(ring)]


def compilation(quick: bool) -> list[Case]:
    """Tracing and compiling a product, and a chain of them."""
    return [compile_case(n) for n in ((1, 16) if quick else (1, 4, 16, 64))]


def compile_case(products: int) -> Case:
    """A chain of so many products with a nonlinearity, each written out."""

    def chain(x, w):
        for _ in range(products):
            x = jnp.tanh(x @ w)
        return x

    square = spec("f32", 128, 128)
    return Case(
        "compile", "compile", {"products": products}, "f32", 2 * products * 128**3, 0, chain,
        (square, square), "compile",
    )  # fmt: skip
