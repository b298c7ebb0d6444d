"""The mesh, and the one table that says which axis of it each named axis of a weight lies on."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lsd_jax.ops.partition import AXIS, BATCH_AXES

AXES = (*BATCH_AXES, AXIS)

RULES: dict[str, str] = {
    "embed": "fsdp",  # weights are gathered where they are used, as in ZeRO-3
    "heads": AXIS,  # attention and MLP split over chips, as in Megatron
    "mlp": AXIS,
}
"""Axis name in the model to axis of the mesh; a name that is not here is replicated."""

BATCH = PartitionSpec(BATCH_AXES)
"""Clips are split over every axis that does not split the model."""


def parts(mesh: Mesh) -> int:
    """Into how many parts clips are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh of all devices; -1 takes what the other axes leave.

    Raises ValueError where the devices do not split that way.
    """
    devices = np.array(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size > 0]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = devices.size // known
    if any(size < 1 for size in sizes) or int(np.prod(sizes)) != devices.size:
        wanted = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(f"{wanted} does not use the {devices.size} devices here exactly")
    return Mesh(devices.reshape(sizes), AXES)


def sharing(chips: int) -> Mesh | None:
    """The mesh of so many devices that share a frame, None for one. Raises ValueError where there
    are fewer."""
    here = jax.devices()
    if chips > len(here):
        raise ValueError(f"{chips} devices cannot share a frame: there are {len(here)} here")
    return None if chips == 1 else make_mesh(1, 1, chips, here[:chips])


def spread(tree: Any, place: NamedSharding) -> Any:
    """Arrays that every host has whole, over the mesh.

    `device_put` would send all of them to all hosts and onto each device, to compare them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, place)

    def give(x: np.ndarray | jax.Array) -> jax.Array:
        return jax.make_array_from_callback(x.shape, place, np.asarray(x).__getitem__)

    return jax.tree.map(give, tree)


def partition(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Where a weight of these named axes lies.

    The spec is canonical (no trailing None), since a second spelling would compile a second time.
    Raises ValueError where two axes fall on one mesh axis, or one does not split.
    """
    spec: list[str | None] = [RULES.get(axis) if axis else None for axis in axes]
    used = [axis for axis in spec if axis]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {axes} put two of their dimensions on one mesh axis: {spec}")
    for name, axis, size in zip(axes, spec, shape, strict=True):
        if axis and size % mesh.shape[axis]:
            raise ValueError(
                f"{name}={size} does not split over {axis}={mesh.shape[axis]}; "
                f"use a multiple of {mesh.shape[axis]}, or a smaller {axis}"
            )
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def parameter_shardings(model: nnx.Module, mesh: Mesh) -> dict:
    """The sharding of each parameter, in the shape of `nnx.to_pure_dict(nnx.state(model))`."""
    state = nnx.state(model, nnx.Param)
    specs = nnx.map_state(lambda _, p: NamedSharding(mesh, partition(p.axes, p.shape, mesh)), state)
    return nnx.to_pure_dict(specs)
