"""How a stream's weights and state lie in a TPU's memory: in the order in which its step reads.

JAX lays out an array in the order of its axes. A kernel may read in another order, and then the
compiler copies what it reads, frame by frame. So the compiler of the step chooses once, and weights
and state are laid down that way when they are loaded. This module alone knows of JAX's layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental.layout import Format, Layout

CHOOSING = ("tpu",)  # platforms whose compiler chooses; elsewhere arrays lie as JAX puts them
Tree = TypeVar("Tree")


def compile_step(function: Callable, model: Any, state: Any, *inputs: Any) -> jax.stages.Compiled:
    """`function(model, state, *inputs) -> (state, ...)` with its state donated; a state comes out
    in the layout in which it went in."""

    _, *others = jax.eval_shape(function, model, state, *inputs)

    def compiled(model_lies: Any, state_lies: Any) -> jax.stages.Compiled:
        return jax.jit(
            function,
            donate_argnums=1,
            in_shardings=(model_lies, state_lies, *(None for _ in inputs)),
            out_shardings=(state_lies, *(None for _ in others)),
        ).lower(model, state, *inputs).compile()  # fmt: skip

    if jax.default_backend() not in CHOOSING:
        return compiled(None, None)
    free = Format(Layout.AUTO)
    step = compiled(free, free)
    lies = formats(step)
    return step if step.output_formats[0] == lies[1] else compiled(*lies)


def formats(step: jax.stages.Compiled) -> tuple[Any, Any]:
    """How model and state lie that a step of `compile_step` takes; None where that is as JAX puts
    them."""
    if jax.default_backend() not in CHOOSING:
        return None, None
    (model, state, *_), _ = step.input_formats
    return model, state


def place(values: Tree, formats: Any) -> Tree:
    """The same values, lying as `formats` says; copies those that lie otherwise."""
    return values if formats is None else jax.device_put(values, formats)
