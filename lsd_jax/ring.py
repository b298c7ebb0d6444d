"""The KV buffer: pinned tokens, compressed older frames, sink frames and a window of recent frames,
in fixed memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lsd_jax.config import ModelConfig
from lsd_jax.ops import commit as op
from lsd_jax.types import EMPTY, KVBuffer

INVALID = -1e9  # added to the logit of a key that must not be seen
_AXES: Any = {"k": 1, "v": 1, "pinned": 0, "age": 0, "memory": 0}
SESSION = KVBuffer(**_AXES)
"""The axis of each of a buffer's arrays that counts sessions."""


def empty(config: ModelConfig, batch: int, dtype) -> KVBuffer:
    """A cold buffer: nothing pinned, no frame remembered."""
    shape = (config.layers, batch, config.keys, config.key_heads, config.head_dim)
    return KVBuffer(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        pinned=jnp.zeros((batch, config.pinned), bool),
        age=jnp.full((batch, config.slots), EMPTY, jnp.int32),
        memory=jnp.full((batch, config.memory), EMPTY, jnp.int32),
    )


def bias(kv: KVBuffer) -> Float[Array, "b n"]:
    """0 for each key that holds something, `INVALID` for the rest."""
    keys, pinned = kv.k.shape[2], kv.pinned.shape[1]
    slots, memory = kv.age.shape[1], kv.memory.shape[1]
    tokens = 4 * (keys - pinned) // max(4 * slots + memory, 1)
    sizes = np.array([pinned, *[tokens // 4] * memory, *[tokens] * slots])
    ends = np.cumsum(sizes)[1:, None]
    of_slot = (ends - sizes[1:, None] <= np.arange(keys)) & (np.arange(keys) < ends)  # [R + S, N]
    cold = jnp.concatenate([kv.memory, kv.age], axis=1) == EMPTY
    # A choice for each key among all slots: one operation, where repeating each slot's is many.
    invalid = jnp.any(cold[:, :, None] & of_slot, axis=1)
    invalid |= jnp.pad(~kv.pinned, ((0, 0), (0, keys - pinned)))
    return jnp.where(invalid, INVALID, 0.0).astype(jnp.float32)


def pin(
    kv: KVBuffer,
    k: Float[Array, "l b p h k"],
    v: Float[Array, "l b p h k"],
    valid: Bool[Array, "b p"],
    sessions: Bool[Array, " b"],
) -> KVBuffer:
    """Replaces the pinned keys and values of the chosen `sessions`; frame slots stay as they
    are."""

    def write(buffer, new):
        old = buffer[:, :, : new.shape[2]]
        chosen = jnp.where(sessions[None, :, None, None, None], new.astype(buffer.dtype), old)
        return jax.lax.dynamic_update_slice_in_dim(buffer, chosen, 0, axis=2)

    return replace(
        kv,
        k=write(kv.k, k),
        v=write(kv.v, v),
        pinned=jnp.where(sessions[:, None], valid, kv.pinned),
    )


def commit(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    config: ModelConfig,
) -> KVBuffer:
    """Remembers a finished frame, see `ops.commit`."""
    return op.commit(kv, k, v, retention(config))


def retention(config: ModelConfig) -> op.Retention:
    """What a buffer keeps of a frame."""
    periods = tuple(config.memory_period(slot) for slot in range(config.memory))
    return op.Retention(config.sinks, periods, config.grid)


def forget(kv: KVBuffer, sessions: Bool[Array, " b"]) -> KVBuffer:
    """Forgets the frames of the chosen sessions; what is pinned stays."""
    age, memory = (jnp.where(sessions[:, None], EMPTY, x) for x in (kv.age, kv.memory))
    return replace(kv, age=age, memory=memory)


def clear(kv: KVBuffer, sessions: Bool[Array, " b"]) -> KVBuffer:
    """Forgets the frames and pinned tokens of the chosen sessions, for a new stream in their
    place."""
    pinned = jnp.where(sessions[:, None], False, kv.pinned)
    return replace(forget(kv, sessions), pinned=pinned)
