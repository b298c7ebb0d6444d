"""The engine of `lsd bench micro` for TPUs: each case compiled by the real compiler."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites import chosen, find
from pallas_kernels import aot

SUITES = ("matmul", "convolution", "elementwise", "on_chip", "layout", "attention", "blocks")
QUICK = 2
"""Cases of a suite that a quick run takes: each is compiled in a process of its own."""


def cases(names: str | None, quick: bool) -> list[Case]:
    """Those of the suites named. Raises ValueError for one that does not compile alone."""
    found = chosen(names, quick, SUITES)
    if not quick:
        return found
    first = {suite: [c for c in found if c.suite == suite][:QUICK] for suite in SUITES}
    return [case for some in first.values() for case in some]


def versions() -> dict[str, str]:
    """Of the compiler. Raises ValueError, with the remedy, where it is not installed."""
    return {"libtpu": aot.libtpu_version()}


def engine(chip: Chip) -> Callable[[Case], dict]:
    """`engine(case)` gives the seconds and cycles that the compiler's static model says; it raises
    ValueError where the case does not compile, or the compiler's profiler stops at it."""

    def compiled(case: Case) -> dict[str, Any]:
        found = aot.compile_for(chip.name, f"{__name__}:arguments", {"name": case.name})
        if found.cycles is None:
            raise ValueError(f"it compiles, but the profiler stops: {found.no_profile}")
        moved = found.argument_bytes + found.output_bytes
        seconds = 1e-6 * aot.time_us(found.cycles, moved, chip)
        return {"samples": (seconds,), "fastest": seconds, "cycles": ceil(found.cycles)}

    return compiled


def arguments(name: str) -> tuple[Callable, tuple, tuple]:
    """A case by its name as `aot.compile_for` takes it."""
    case = find(name)
    return case.function, case.arguments, ()
