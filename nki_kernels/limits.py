"""What Neuron's JAX does not take, as a check of any traced function.

Source: AWS Neuron documentation (SDK 2.32), "JAX NeuronX Known Issues",
https://awsdocs-neuron.readthedocs-hosted.com/en/latest/frameworks/jax/setup/jax-neuronx-known-issues.html:
no `lax.cond`, no `while_loop` with a trip count known only at run time, no host callbacks, no
complex numbers, no `reduce_precision`, no integer matrix products, fp8 only as e4m3 and e5m2,
gathers that raise out of bounds, and the `rbg` generator for randomness. What else it does not take
it does not list. So only what the frame step uses passes here, and all else is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.lax import GatherScatterMode

ALLOWED = frozenset((
    "abs", "add", "and", "argmax", "bitcast_convert_type", "broadcast_in_dim", "concatenate",
    "conv_general_dilated", "convert_element_type", "div", "dot_general", "dynamic_update_slice",
    "eq", "erf_inv", "exp", "ge", "gt", "integer_pow", "iota", "is_finite", "lt", "max", "min",
    "mul", "ne", "neg", "not", "or", "pad", "random_bits", "random_split", "random_unwrap",
    "random_wrap", "reduce_and", "reduce_max", "reduce_or", "reduce_sum", "reshape", "round",
    "rsqrt", "scan", "scatter", "select_n", "shift_right_logical", "slice", "split", "sqrt",
    "square", "squeeze", "stack", "stop_gradient", "sub", "tanh", "tile", "transpose", "unstack",
    "jit", "pjit", "remat2", "checkpoint",  # what is within them counts; names differ by version
))  # fmt: skip
"""The primitives of the frame step, as the shipped configs have it."""

REFUSED = {
    "cond": "lax.cond and lax.switch; select by jnp.where",
    "while": "loops whose length is known at run time; use lax.scan or a Python loop",
    "pure_callback": "host callbacks",
    "io_callback": "host callbacks",
    "debug_callback": "host callbacks, jax.debug.print among them",
    "debug_print": "host callbacks",
    "reduce_precision": "lax.reduce_precision",
    "fft": "Fourier transforms, as they are complex",
    "gather": "a gather that is out of bounds raises there; index by a mask, or promise that it is "
    "not (mode='promise_in_bounds')",
}
"""Why not, of some; the rest nobody has tried."""

_FP8 = {jnp.dtype(t) for t in (jnp.float8_e4m3, jnp.float8_e5m2)}
_PRODUCTS = {
    "dot_general": "integer matrix products",
    "conv_general_dilated": "integer convolutions, which are matrix products",
}


def violations(function, *args) -> list[str]:
    """What Neuron would refuse in `function(*args)`, one line each; arguments may be shapes."""
    found = {}
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        for reason in _reasons(equation):
            found[f"{equation.primitive.name}: {reason}"] = None
    return list(found)


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """All equations, those of inner functions and loops too."""
    for equation in jaxpr.eqns:
        yield equation
        inner = jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))
        )
        for value in inner:
            if isinstance(value, (ClosedJaxpr, Jaxpr)):
                yield from equations(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def _reasons(equation) -> Iterator[str]:
    name, mode = equation.primitive.name, equation.params.get("mode")
    promised = name == "gather" and mode == GatherScatterMode.PROMISE_IN_BOUNDS
    if name not in ALLOWED and not promised:
        yield REFUSED.get(name, "not used so far; if Neuron's JAX takes it, add it to ALLOWED")
    dtypes = [
        v.aval.dtype for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "dtype")
    ]
    if name in _PRODUCTS and any(jnp.issubdtype(d, jnp.integer) for d in dtypes):
        yield _PRODUCTS[name]
    for dtype in dtypes:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and "rbg" not in str(dtype):
            yield f"{dtype}, keys of another generator; use jax.default_prng_impl('rbg')"
        if jnp.issubdtype(dtype, jnp.complexfloating):
            yield "complex numbers"
        if "float8" in str(dtype) and dtype not in _FP8:
            yield f"{dtype}; use float8_e4m3 or float8_e5m2"
