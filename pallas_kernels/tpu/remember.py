"""`ops.remember` by the megakernel, whose last layer ends with the keys and values."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Bool, Float

from lsd_jax.ops.commit import Retention
from lsd_jax.ops.remember import kept, pinned_alone
from lsd_jax.types import KVBuffer, Rope, StackWeights
from pallas_kernels.tpu import denoise_stack

Result = tuple[KVBuffer, Bool[Array, " b"]]


def remember(
    x: Float[Array, "b t d"],
    weights: StackWeights,
    kv: KVBuffer,
    bias: Float[Array, "b p"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
    retention: Retention,
    stack: Callable = denoise_stack.denoise_stack,
) -> Result:
    """`ops.remember` on the TPU that this is traced for, or on those of the mesh in use; the commit
    is whoever's `ops.commit` chooses. `stack` computes the pass, as `denoise_stack` does.

    Raises NotImplementedError where that is none, or the shape is not one for it.
    """
    _, k, v = stack(x, weights, pinned_alone(kv), bias, modulation, rope, places=1)
    return kept(kv, k, v, retention)


def interpreted(
    x: Float[Array, "b t d"],
    weights: StackWeights,
    kv: KVBuffer,
    bias: Float[Array, "b p"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
    retention: Retention,
) -> Result:
    """The same kernel, interpreted on whatever is here."""
    arguments = x, weights, kv, bias, modulation, rope, retention
    return remember(*arguments, stack=denoise_stack.interpreted)
