"""The seam by each of its implementations, as cases to compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lsd_jax.hw.stack import StackShape, abstract_arguments
from lsd_jax.ops import partition
from lsd_jax.ops.denoise_stack import denoise_stack as op
from lsd_jax.ops.unrolled import each_layer
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.denoise_stack import by_kernel, denoise_stack
from pallas_kernels.tpu.plan import Plan
from pallas_kernels.tpu.planner import limit_bytes

Case = tuple[Callable, tuple, tuple[int, ...], tuple]
"""A function, its abstract arguments, the numbers of those donated, where they lie on a mesh."""


def stack(
    implementation: str,
    planned_layers: int = 0,
    share_of: int = 1,
    part_of: int = 1,
    cores: int | None = None,
    **shape,
) -> Case:
    """`ops.denoise_stack` of `StackShape(**shape)` by `pallas`, `xla` (layers unrolled) or
    `xla-scan`; the kernel with the tiles that it has at `planned_layers`, if given, on one of
    `share_of` chips, or on so many `cores`, and with `part_of` times the heads and MLP
    features."""
    kernel = partial(
        denoise_stack,
        planned_layers=planned_layers,
        share_of=share_of,
        part_of=part_of,
        places=shape.get("places", 0),
        cores=cores,
    )
    run = {"pallas": kernel, "xla": each_layer, "xla-scan": op.reference}[implementation]
    stack_shape = StackShape(**shape)
    return run, abstract_arguments(stack_shape), (), partition.arguments(stack_shape.weight_dtype)


def planned(tiles: tuple, **shape) -> Case:
    """The megakernel of `StackShape(**shape)` in tiles of our own: `planner.tiles_of`, and the rows
    that fill up a session."""
    *chosen, filled = tiles
    plan = Plan(StackShape(**shape), *chosen, filled=filled)
    run = partial(by_kernel, plan, vmem_limit_bytes=limit_bytes(chip_here()))
    return run, abstract_arguments(plan.shape), (), ()
