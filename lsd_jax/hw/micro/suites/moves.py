"""Bytes moved by kernels of our own, on an accelerator alone: into the memory on its chip, within
it, and from chip to chip."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import partial

from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites.machine import around, rings
from lsd_jax.hw.micro.suites.matrices import spec

KERNELS = "pallas_kernels.tpu.copies"
LOADED = 1 << 26
"""Bytes of a load: enough for a launch to be next to nothing."""
MOST_ROOM = 1 << 24
"""Bytes of on-chip memory that pieces under way may take: all chips have them."""
TOUCHED = 1 << 25
"""Bytes that `touch` reads and writes in all, where it does not have more at once."""
_ROW = 512  # bytes of 128 float32


def load(quick: bool) -> list[Case]:
    """Bytes from HBM into the memory on the chip, over the size of a piece and how many are under
    way at once."""
    powers, flights = ((16,), (1, 8)) if quick else ((12, 14, 16, 18, 20), (1, 2, 4, 8, 16))
    return [
        load_case(1 << power, flight)
        for power in powers
        for flight in flights
        if flight << power <= MOST_ROOM
    ]


def load_case(size: int, flight: int) -> Case:
    """`LOADED` bytes in pieces of `size`, `flight` of them under way."""
    pieces = spec("f32", LOADED // size, size // _ROW, 128)
    return Case(
        "load", "load", {"bytes": size, "flight": flight}, "f32", 0, LOADED,
        partial(_kernel("load"), flight=flight), (pieces,),
    )  # fmt: skip


def on_chip(quick: bool) -> list[Case]:
    """Reads and writes of the memory on the chip, up to sizes that no chip has."""
    return [touch_case(1 << power) for power in ((16, 22) if quick else range(16, 28))]


def touch_case(size: int) -> Case:
    """Writes `size` bytes there, then reads and writes them over and over."""
    turns = max(1, TOUCHED // size)
    return Case(
        "on_chip", "touch", {"bytes": size, "turns": turns}, "f32",
        turns * size // 4, (2 * turns + 1) * size,
        partial(_kernel("touch"), rows=size // _ROW, turns=turns), (spec("f32", 8, 128),),
    )  # fmt: skip


def remote(quick: bool) -> list[Case]:
    """Copies from each device to the next, started by the device itself, over bytes and the length
    of the ring; none on a single device."""
    powers = (12, 20) if quick else (12, 14, 16, 18, 20, 22, 24)
    return [remote_case(1 << power, ring) for power in powers for ring in rings(quick)]


def remote_case(size: int, ring: int) -> Case:
    """`size` bytes a device on the first `ring` devices."""
    kernel = partial(_kernel("shift"), axis="ring")
    handed, whole = around(kernel, ring, (ring * size // _ROW, 128))
    shapes = {"bytes": size, "ring": ring}
    return Case("remote", "remote_copy", shapes, "f32", 0, size, handed, (whole,))


def _kernel(name: str) -> Callable:
    """A kernel by its name; imported when it is run or compiled."""

    def run(*arrays, **options):
        return pkgutil.resolve_name(f"{KERNELS}:{name}")(*arrays, **options)

    return run
