"""`ops.denoise_stack` by the megakernel: what it takes, the plan, and the way back to the seam."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lsd_jax.hw import stack
from lsd_jax.ops.partition import chips_here
from lsd_jax.types import KVBuffer, Rope, StackWeights
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.launch import launch
from pallas_kernels.tpu.plan import Plan, Shape
from pallas_kernels.tpu.planner import choose, choose_for, fastest, limit_bytes
from pallas_kernels.tpu.schedule import program
from pallas_kernels.tpu.tensor_parallel import over_chips

Result = tuple[Float[Array, "b t d"], Float[Array, "l b t h k"], Float[Array, "l b t h k"]]


def denoise_stack(
    x: Float[Array, "b t d"],
    weights: StackWeights,
    kv: KVBuffer,
    bias: Float[Array, "b n"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
    planned_layers: int = 0,
    share_of: int = 1,
    part_of: int = 1,
    places: int = 0,
    cores: int | None = None,
) -> Result:
    """`ops.denoise_stack` on the TPU that this is traced for, or on those of the mesh in use that
    lie along its axis `tensor`; on both cores of a chip that is one device where that is faster, or
    on as many `cores` as are given.

    What is profiled is less than what is streamed, in the tiles of the latter: some of
    `planned_layers`, if given, by itself what is a chip's among `share_of`, and one part of
    `part_of` of its heads and MLP features.

    Where `places` in the buffer wait for the frame, any number above 0, its keys and values are all
    that is wanted: then the last layer ends with them, and `x` is what entered it.

    Raises NotImplementedError where that is none, or the shape is not one for it.
    """
    chip, chips = chip_here(), chips_here()
    shape = replace(shape_of(x, weights, kv, modulation), places=places)
    planned = replace(
        shape,
        layers=planned_layers or shape.layers,
        heads=shape.heads * share_of * part_of,
        mlp=shape.mlp * share_of * part_of,
    )
    together = max(chips, share_of)
    if cores is None:
        plan = fastest(planned, chip, together).plan
    else:
        plan = choose_for(planned, chip, together, cores).plan
    part = stack.share(replace(plan.shape, layers=shape.layers), part_of)
    plan = replace(plan, shape=part, chips=chips)
    arguments = x, weights, kv, bias, modulation, rope
    return by_kernel(plan, *arguments, vmem_limit_bytes=limit_bytes(chip))


def interpreted(
    x: Float[Array, "b t d"],
    weights: StackWeights,
    kv: KVBuffer,
    bias: Float[Array, "b n"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
    places: int = 0,
) -> Result:
    """The same kernel, as planned for v6e, interpreted on whatever is here: slow, and right.

    Virtual devices of a CPU wait for one another in threads of one pool, so a process needs more of
    them than share a stack. Raises NotImplementedError where it has not.
    """
    if 1 < (chips := chips_here()) >= len(jax.devices()):
        raise NotImplementedError(
            f"{chips} devices that share an interpreted kernel wait for ever without more threads; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={2 * chips}"
        )
    shape = replace(shape_of(x, weights, kv, modulation), places=places)
    plan = choose(shape, "v6e", chips).plan
    arguments = x, weights, kv, bias, modulation, rope
    return by_kernel(plan, *arguments, interpret=pltpu.InterpretParams())


def by_kernel(plan: Plan, *arguments: Any, **options: Any) -> Result:
    """`ops.denoise_stack` of `arguments` by one launch, or by one on each chip of the plan; for
    `options` see `launch`."""

    def run(*arguments):
        return as_seam(launch(plan, program(plan), *arguments, **options))

    return (over_chips(run) if plan.chips > 1 else run)(*arguments)


def shape_of(x: jax.Array, weights: StackWeights, kv: KVBuffer, modulation: jax.Array) -> Shape:
    """The shape of these arguments. Raises NotImplementedError where dtypes are mixed."""
    eight = weights.matrix_scales is not None
    matrices = (weights.qkv, weights.out, weights.up, weights.down)
    others = (weights.q_scale, weights.k_scale, weights.age_k, weights.age_v)
    same = (x, others, kv.k, kv.v, modulation, () if eight else matrices)
    mixed = {a.dtype.name for a in jax.tree.leaves(same)}
    if len(mixed) > 1:
        raise NotImplementedError(f"dtypes are mixed ({', '.join(sorted(mixed))}); cast to one")
    layers, dim, parts, heads, head_dim = weights.qkv.shape
    return Shape(
        sessions=x.shape[0],
        tokens=x.shape[1],
        dim=dim,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        mlp=weights.up.shape[2],
        ageless=kv.k.shape[2] - kv.age.shape[1] * x.shape[1],
        slots=kv.age.shape[1],
        ages=weights.age_k.shape[1],
        modulations=modulation.shape[1],
        dtype=x.dtype.name,
        weight_dtype=weights.up.dtype.name if eight else "",
        per_kv=parts - 2,
    )


def as_seam(out: dict[str, jax.Array]) -> Result:
    """The kernel's results in the seam's shapes."""
    k, v = (jnp.transpose(out[name], (0, 2, 3, 1, 4)) for name in ("k_out", "v_out"))
    return out["x_out"], k, v
