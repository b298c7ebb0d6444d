"""`denoise_stack` on a CPU: layer after layer, each with matrices of its own.

XLA copies what a loop takes out of a stack before a CPU's matrix product reads it: in every pass
all weights are read and written once more than they are read to be used. So there is no loop here,
and the matrices are taken apart once, when a stream is loaded. The arithmetic is the
specification's.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lsd_jax.ops.attend import attend
from lsd_jax.ops.denoise_stack import block
from lsd_jax.ops.partition import device_kind
from lsd_jax.types import KVBuffer, MatrixScales, Rope, StackWeights


def denoise_stack(
    x: Array, weights: StackWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope
) -> tuple[Array, Array, Array]:
    """`lsd_jax.ops.denoise_stack`, with weights that may be `apart`.

    Raises NotImplementedError, with the remedy, on anything but a CPU, and on a mesh, which is laid
    out for stacked weights.
    """
    if (device := device_kind()) != "cpu":
        raise NotImplementedError(f"it is for CPUs, and this is {device!r}; use xla")
    if not jax.sharding.get_abstract_mesh().empty:
        raise NotImplementedError("it runs on no mesh; use xla")
    return each_layer(x, weights, kv, bias, modulation, rope)


def each_layer(
    x: Array, weights: StackWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope
) -> tuple[Array, Array, Array]:
    """The same on whatever device."""
    run = partial(block, age=kv.age, bias=bias, rope=rope, attend=attend.reference)
    k_new, v_new = [], []
    for i in range(modulation.shape[0]):
        layer = jax.tree.map(lambda x, i=i: x[i], weights, is_leaf=lambda x: isinstance(x, tuple))
        x, (k, v) = run(x, (layer, kv.k[i], kv.v[i], modulation[i]))
        k_new.append(k)
        v_new.append(v)
    return x, jnp.stack(k_new), jnp.stack(v_new)


def apart(weights: StackWeights) -> StackWeights:
    """The same weights with each matrix as a tuple of those of the layers."""
    names = (field.name for field in fields(MatrixScales))
    return replace(weights, **{name: tuple(getattr(weights, name)) for name in names})
