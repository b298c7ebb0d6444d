"""`attend`: the softmax attention of a block, in the specification of `ops.denoise_stack`.

Training runs that specification, and so does a stream whose stack no megakernel takes: a kernel
here serves both, and gives gradients, too. The body is what it has to meet.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax.ops.dispatch import Backend, op

ATTENDED = "attended"
"""The name of what a fused backward pass wants of the forward one, to a policy of
`jax.checkpoint`."""


@op(
    Backend("pallas", "pallas_kernels.tpu.attend:attend", gradient=True),
    Backend(
        "pallas-interpret",
        "pallas_kernels.tpu.attend:interpreted",
        automatic=False,
        gradient=True,
    ),
)
def attend(
    q: Float[Array, "b t h k"],
    keys: Float[Array, "b s h k"],
    values: Float[Array, "b s h k"],
    bias: Float[Array, "b n"],
) -> Float[Array, "b t h k"]:
    """Each query's mean of the values, weighted by the softmax of its products with the keys.

    Args:
        q: queries. Those of query heads that share a head of keys count as more tokens.
        keys, values: of the KV buffer, with the terms of their ages, then of the current frame.
        bias: float32, added to the logits of the first `n` keys, divided by `sqrt(k)` already; the
            other keys have none. 0, or very negative for a key that is not to be seen; each
            session sees one at least. Gradients take it for a constant.

    Returns:
        Weighted values, in their dtype; logits, softmax and sums are float32.
    """
    logits = jnp.einsum("bthk,bshk->bhts", q, keys, preferred_element_type=jnp.float32)
    logits = logits * (q.shape[-1] ** -0.5)
    bias = jax.lax.stop_gradient(bias)
    bias = jnp.pad(bias, ((0, 0), (0, keys.shape[1] - bias.shape[1])))
    weights = jax.nn.softmax(logits + bias[:, None, None], axis=-1).astype(values.dtype)
    return jnp.einsum("bhts,bshk->bthk", weights, values)
