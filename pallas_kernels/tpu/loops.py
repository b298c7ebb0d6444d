"""Loops, rows and copies of a kernel's body, and where its operands lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Interpret = bool | pltpu.InterpretParams  # True: JAX's own, which has no effects, as gradients want
Index = Any  # an int, or a traced one
Rows = Any  # of pl.ds


def loop(times: int, body: Callable[[Index], None]) -> None:
    """`body(i)`, `times` times; straight-line where once is enough."""
    if times == 1:
        body(0)
    elif times:
        jax.lax.fori_loop(0, times, lambda i, carry: (body(i), carry)[1], None)


def aligned(start: Index, multiple: int) -> Index:
    """A row number that is known to be a multiple."""
    return start if isinstance(start, int) else pl.multiple_of(start, multiple)


def moved(*copies: Any) -> None:
    """Copies from start to end, all at once."""
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.wait()


def in_hbm(arrays: Any, interpret: Interpret) -> Any:
    """The same arrays in HBM, where the compiler may else copy what a kernel streams to VMEM in
    front of it."""
    if interpret:
        return arrays
    return jax.tree.map(lambda x: pltpu.with_memory_space_constraint(x, pltpu.HBM), arrays)
