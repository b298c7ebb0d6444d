"""Counts the multiply-adds of a traced function: exact, at any size, without compiling it."""

from __future__ import annotations

from math import prod

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(function, *args) -> int:
    """Floating-point operations of the matrix products and convolutions of `function(*args)`.

    A multiply-add counts as two; loops count as often as they run; elementwise work, a few per
    cent of a transformer, is left out. `args` may be `ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            total += 2 * prod(out) * prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
            features_out = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * prod(out) * prod(kernel) // kernel[features_out]
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, (ClosedJaxpr, Jaxpr))
        ):
            if isinstance(inner, ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, Jaxpr):
                total += repeats * _count(inner)
    return total


def _shape(variable) -> tuple[int, ...]:
    return variable.aval.shape
