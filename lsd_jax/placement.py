"""Where a stream's weights and state lie: in the order in which its step reads, on one device or,
shared out, on several.

JAX lays out an array in the order of its axes. A TPU's kernel may read in another order, and then
the compiler copies what it reads, frame by frame. So the compiler of the step chooses once, and
weights and state are laid down that way when they are loaded. This module alone knows of JAX's
layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from lsd_jax.ops import partition

CHOOSING = ("tpu",)  # platforms whose compiler chooses; elsewhere arrays lie as JAX puts them
BLOCKS = ".denoiser.stack"  # the path of the weights of the blocks in a `stream.StreamModel`
Tree = TypeVar("Tree")


def compile_reader(function: Callable, model: Any, state: Any, *inputs: Any) -> jax.stages.Compiled:
    """`function(model, state, *inputs)`, which leaves the state as it is."""
    free = Format(Layout.AUTO) if jax.default_backend() in CHOOSING else None
    lies = (free, free, *(None for _ in inputs))
    return jax.jit(function, in_shardings=lies).lower(model, state, *inputs).compile()


def compile_step(
    function: Callable,
    model: Any,
    state: Any,
    *inputs: Any,
    mesh: Mesh | None = None,
    beside: jax.stages.Compiled | None = None,
) -> jax.stages.Compiled:
    """`function(model, state, *inputs) -> (state, ...)` with its state donated; a state comes out
    in the layout in which it went in, that of `beside` if there is one. On a `mesh`, its devices
    share the blocks of a `stream.StreamModel` and the history of a `StreamState`."""

    _, *others = jax.eval_shape(function, model, state, *inputs)
    lies = (None, None) if mesh is None else shared(model, state, mesh)
    whole = None if mesh is None else NamedSharding(mesh, partition.WHOLE)

    def compiled(model_lies: Any, state_lies: Any) -> jax.stages.Compiled:
        return jax.jit(
            function,
            donate_argnums=1,
            in_shardings=(model_lies, state_lies, *(whole for _ in inputs)),
            out_shardings=(state_lies, *(whole for _ in others)),
        ).lower(model, state, *inputs).compile()  # fmt: skip

    if jax.default_backend() not in CHOOSING:
        return compiled(*lies)
    if beside is not None:
        return compiled(*formats(beside))
    free = (Format(Layout.AUTO),) * 2
    if mesh is not None:
        free = jax.tree.map(lambda sharding: Format(Layout.AUTO, sharding), lies)
    step = compiled(*free)
    lies = formats(step)
    return step if step.output_formats[0] == lies[1] else compiled(*lies)


def shared(model: Any, state: Any, mesh: Mesh) -> tuple[Any, Any]:
    """The shardings of a `stream.StreamModel` and of a `StreamState`: heads and MLP features along
    the axis `tensor` of the mesh, all else on each of its devices."""
    eight_bits = {"int8", "float8_e4m3"} & {x.dtype.name for x in jax.tree.leaves(model)}
    blocks = leaves(partition.weights(*eight_bits or {""}))
    history = {f".kv{name}": spec for name, spec in leaves(partition.BUFFER).items()}

    def of_model(path: Any, _: Any) -> NamedSharding:
        others, _, name = keystr(path).partition(BLOCKS)
        name = name.replace(".prepared", "").removesuffix(".value")
        return NamedSharding(mesh, partition.WHOLE if others else blocks[name])

    def of_state(path: Any, _: Any) -> NamedSharding:
        return NamedSharding(mesh, history.get(keystr(path), partition.WHOLE))

    return tree_map_with_path(of_model, model), tree_map_with_path(of_state, state)


def leaves(specs: Any) -> dict[str, Any]:
    """Specs in the place of arrays, by their paths."""
    found = tree_leaves_with_path(specs, lambda node: isinstance(node, PartitionSpec))
    return {keystr(path): spec for path, spec in found}


def formats(step: jax.stages.Compiled) -> tuple[Any, Any]:
    """How model and state lie that a step of `compile_step` takes; None where that is as JAX puts
    them."""
    if jax.default_backend() in CHOOSING:
        (model, state, *_), _ = step.input_formats
        return model, state
    (model, state, *_), _ = step.input_shardings
    devices = {device for leaf in jax.tree.leaves(state) for device in leaf.device_set}
    return (model, state) if len(devices) > 1 else (None, None)


def everywhere(step: jax.stages.Compiled, model: Any, state: Any, mesh: Mesh | None) -> Any:
    """`formats`, on a mesh also of what the step does not read: it lies on all devices, too."""
    found = formats(step)
    if mesh is None:
        return found

    def known(sharding: Any, lies: Any) -> Any:
        return sharding if lies is None or getattr(lies, "layout", lies) is None else lies

    wanted, structure = jax.tree.flatten(shared(model, state, mesh))
    lying = jax.tree.leaves(found, is_leaf=lambda node: node is None)
    return structure.unflatten([known(*pair) for pair in zip(wanted, lying, strict=True)])


def place(values: Tree, formats: Any) -> Tree:
    """The same values, lying as `formats` says; copies those that lie otherwise."""
    return values if formats is None else jax.device_put(values, formats)
