"""`remember`: the pass over a finished frame, whose keys and values go into the KV buffer.

It is two other ops in a row. Who computes both at once need not hand the keys and values over: the
body here says what has to come out.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lsd_jax.ops.commit import Retention, commit
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.ops.dispatch import Backend, op
from lsd_jax.types import KVBuffer, Rope


@op(
    Backend("nki", "nki_kernels.backend:remember"),
    Backend("nki-sim", "nki_kernels.backend:remember_simulated", automatic=False),
    Backend("pallas", "pallas_kernels.tpu.remember:remember"),
    Backend("pallas-interpret", "pallas_kernels.tpu.remember:interpreted", automatic=False),
    minor=True,
    fused=True,
)
def remember(
    x: Float[Array, "b t d"],
    weights: Any,
    kv: KVBuffer,
    bias: Float[Array, "b p"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
    retention: Retention,
) -> tuple[KVBuffer, Bool[Array, " b"]]:
    """Runs the blocks over a finished frame of each session, and remembers it.

    Args:
        x, weights, modulation, rope: as `ops.denoise_stack` takes them; the weights in whatever
            form its backend wants.
        kv: what is remembered so far. The frame attends to the pinned tokens and itself alone.
        bias: of the pinned keys, as `ops.denoise_stack` has it.
        retention: what the buffer keeps of a frame.

    Returns:
        The buffer after it, see `ops.commit`, and whether what a session remembers is finite.
    """
    _, k, v = denoise_stack(x, weights, pinned_alone(kv), bias, modulation, rope)
    return kept(kv, k, v, retention)


def kept(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    retention: Retention,
) -> tuple[KVBuffer, Bool[Array, " b"]]:
    """What `remember` returns, from the keys and values of the frame."""
    return commit(kv, k, v, retention), finite(k, 1) & finite(v, 1)


def pinned_alone(kv: KVBuffer) -> KVBuffer:
    """The buffer without any frame."""
    pinned = kv.pinned.shape[1]
    k, v = kv.k[:, :, :pinned], kv.v[:, :, :pinned]
    return KVBuffer(k, v, kv.pinned, kv.age[:, :0], kv.memory[:, :0])


def finite(values: Array, axis: int) -> Bool[Array, " b"]:
    """Whether all of a session's values are finite; sessions lie along `axis`."""
    others = tuple(a for a in range(values.ndim) if a != axis)
    return jnp.all(jnp.isfinite(values), axis=others)
