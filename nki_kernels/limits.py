"""What Neuron's JAX does not take, as a check of any traced function.

Source: AWS Neuron documentation, "JAX on Neuron: known limitations" (SDK 2.32): no `lax.cond`, no
`while_loop` with a trip count known only at run time, no host callbacks, no `dlpack`, no sparse
arrays, no complex numbers, no `reduce_precision`, no integer matrix products, fp8 only as e4m3 and
e5m2, `lax.sort` with simple comparators only, and the `rbg` generator for randomness.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

REFUSED = {
    "cond": "lax.cond and lax.switch; select by jnp.where",
    "while": "loops whose length is known at run time; use lax.scan or a Python loop",
    "pure_callback": "host callbacks",
    "io_callback": "host callbacks",
    "debug_callback": "host callbacks, jax.debug.print among them",
    "debug_print": "host callbacks",
    "reduce_precision": "lax.reduce_precision",
    "eigh": "decompositions",
    "svd": "decompositions",
    "lu": "decompositions",
    "qr": "decompositions",
    "cholesky": "decompositions",
    "fft": "Fourier transforms, as they are complex",
    "complex": "complex numbers",
    "infeed": "infeed",
    "outfeed": "outfeed",
}
_FP8 = {jnp.dtype(t) for t in (jnp.float8_e4m3fn, jnp.float8_e4m3, jnp.float8_e5m2)}


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
    name = equation.primitive.name
    if name in REFUSED:
        yield REFUSED[name]
    if name == "sort" and equation.params.get("num_keys", 1) > 1:
        yield "lax.sort by several keys"
    dtypes = [
        v.aval.dtype for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, "dtype")
    ]
    if name == "dot_general" and any(jnp.issubdtype(d, jnp.integer) for d in dtypes):
        yield "integer matrix products"
    for dtype in dtypes:
        if jnp.issubdtype(dtype, jnp.complexfloating):
            yield "complex numbers"
        if "float8" in str(dtype) and dtype not in _FP8:
            yield f"{dtype}; use float8_e4m3 or float8_e5m2"
