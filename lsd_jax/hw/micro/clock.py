"""The clock: seconds of a function on whatever device JAX finds.

An operation of microseconds drowns in the cost of a call. So it runs in a loop on the device, once
for `n` and once for `2 n` turns, and a sample is the difference by `n`: what a call costs, and what
starting the loop costs, cancels. Each turn hangs on the one before by one element that the compiler
cannot foresee, so it can neither drop nor hoist nor merge turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lsd_jax.hw.micro.case import Case

_NEVER = 1234.5  # an element of a result never has this value
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Budget:
    """How long to look: seconds of a short loop, and samples."""

    short_s: float = 0.008
    samples: int = 16

    def __post_init__(self):
        if self.short_s <= 0 or self.samples < 2:
            raise ValueError(f"{self} must have short_s > 0 and at least 2 samples")


QUICK = Budget(0.004, 12)


@dataclass(frozen=True)
class Samples:
    """Seconds of one operation, see `Measurement`."""

    samples: tuple[float, ...]
    fastest: float
    turns: int = 1


def by_loops(function: Callable, arguments: tuple, budget: Budget) -> Samples:
    """Times `function(*arguments)` on the device by the difference of two lengths of loop."""
    loop, carry, others = in_a_loop(function, arguments)
    looped = jax.jit(loop, donate_argnums=1).lower(jnp.int32(1), carry, others).compile()

    def run(turns: int) -> float:
        nonlocal carry
        count = jnp.asarray(turns, jnp.int32)
        start = time.perf_counter()
        carry = jax.block_until_ready(looped(count, carry, others))
        return time.perf_counter() - start

    run(1)
    turns, most = 1, 20 * budget.short_s
    while (short := min(run(turns), run(turns))) < most:
        gained = min(run(2 * turns), run(2 * turns)) - short
        if gained >= budget.short_s:
            break
        grow = budget.short_s / gained if gained > 0 else 2
        turns = max(turns + 1, int(turns * min(1.1 * grow, 10)))
    short, long = [], []
    for _ in range(budget.samples):
        short.append(run(turns))
        long.append(run(2 * turns))
    differences = tuple((b - a) / turns for a, b in zip(short, long, strict=True))
    return Samples(differences, min(*short, *(t / 2 for t in long)) / turns, turns)


def by_calls(
    call: Callable[[Any], Any], budget: Budget, prepare: Callable[[], Any] = tuple
) -> Samples:
    """Times `call(prepare())` from the host until its result is there, without the preparation."""
    samples, begun = [], time.perf_counter()
    jax.block_until_ready(call(jax.block_until_ready(prepare())))
    seconds, most = 3 * budget.short_s * budget.samples, 100
    while len(samples) < budget.samples or (
        time.perf_counter() - begun < seconds and len(samples) < most
    ):
        given = jax.block_until_ready(prepare())
        start = time.perf_counter()
        jax.block_until_ready(call(given))
        samples.append(time.perf_counter() - start)
    return Samples(tuple(samples), min(samples))


def stepper(case: Case) -> Callable[[], Any]:
    """Compiles a case `function(model, state, *inputs) -> (state, out)` whose state is donated;
    each call takes the next step."""
    model, state, *inputs = jax.tree.map(lambda s: jax.device_put(on_host(s)), case.arguments)
    step = jax.jit(case.function, donate_argnums=1).lower(model, state, *inputs).compile()

    def once():
        nonlocal state
        state, out = step(model, state, *inputs)
        return state, out

    return once


def by_compilations(function: Callable, arguments: tuple, times: int) -> Samples:
    """Times tracing and compilation, each anew."""
    samples = []
    for i in range(times + 1):
        anew = lambda *args, i=i: function(*args)  # noqa: E731 - JAX knows a function by identity
        start = time.perf_counter()
        jax.jit(anew).lower(*arguments).compile()
        samples.append(time.perf_counter() - start)
    return Samples(tuple(samples[1:]), min(samples[1:]))  # the first one also warms the compiler


def in_a_loop(function: Callable, arguments: tuple) -> tuple[Callable, tuple, list]:
    """`loop(turns, carry, others)`, which gives the carry back, and its first carry and others.

    The carry is the first argument's array, one element of it again, and the last result.
    """
    (first, *others), structure = jax.tree.flatten(arguments)
    shapes = jax.eval_shape(function, *arguments)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    corner = jnp.copy(first[(slice(0, 1),) * first.ndim])

    def loop(turns: Array, carry: tuple, others: list):
        def turn(_, carry):
            first, corner, _ = carry
            out = function(*jax.tree.unflatten(structure, [first, *others]))
            out = jax.lax.optimization_barrier(out)
            return _hang(first, corner, jax.tree.leaves(out)[0]), corner, out

        return jax.lax.fori_loop(0, turns, turn, carry)

    return loop, (jnp.copy(first), corner, blank), others  # a carry is donated


def _hang(first: Array, corner: Array, out: Array) -> Array:
    """The same array, in such a way that its corner seems to depend on `out`.

    The corner is given beside it: reading it here would make XLA copy the array.
    """
    seen = out[(0,) * out.ndim].astype(jnp.float32) == _NEVER
    new = jnp.where(seen, jnp.zeros_like(corner), corner)
    return jax.lax.dynamic_update_slice(first, new, (0,) * first.ndim)


def measure(case: Case, budget: Budget) -> Samples:
    """Times a case by its method."""
    if case.method == "compile":
        return by_compilations(case.function, case.arguments, max(2, budget.samples // 6))
    if case.method == "step":
        step = stepper(case)
        return by_calls(lambda _: step(), budget)
    arguments = jax.tree.map(on_host, case.arguments)
    if case.method == "send":
        return by_calls(jax.device_put, budget, lambda: arguments)
    placed = jax.tree.map(
        lambda x, spec: jax.device_put(x, spec.sharding), arguments, case.arguments
    )
    if case.method == "fetch":  # JAX keeps what it has fetched, so each time a new array

        def fetch(arrays):
            for array in arrays:
                array.copy_to_host_async()
            return [np.array(array) for array in arrays]

        return by_calls(fetch, budget, lambda: jax.tree.map(jnp.copy, placed))
    if case.method == "call":
        compiled = jax.jit(case.function).lower(*placed).compile()
        return by_calls(lambda _: compiled(*placed), budget)
    return by_loops(case.function, placed, budget)


def on_host(spec: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of this shape and dtype, of numbers about 1 in size, or of small integers."""
    block = np.random.default_rng(0).standard_normal(_BLOCK).astype(np.float32)
    values = np.resize(block, spec.shape)
    if jnp.issubdtype(spec.dtype, jnp.integer):
        values = np.clip(np.rint(values * 40), 0, 127)
    return values.astype(spec.dtype)
