"""The KV buffer: pinned tokens, compressed older frames, sink frames and a window of recent frames,
in fixed memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Bool, Float, Int

from lsd_jax.config import ModelConfig
from lsd_jax.types import KVBuffer

EMPTY, SINK = -1, 0
INVALID = -1e9  # added to the logit of a key that must not be seen
_AXES: Any = {"k": 1, "v": 1, "pinned": 0, "age": 0, "memory": 0}
SESSION = KVBuffer(**_AXES)
"""The axis of each of a buffer's arrays that counts sessions."""


def empty(config: ModelConfig, batch: int, dtype) -> KVBuffer:
    """A cold buffer: nothing pinned, no frame remembered."""
    shape = (config.layers, batch, config.keys, config.heads, config.head_dim)
    return KVBuffer(
        k=jnp.zeros(shape, dtype),
        v=jnp.zeros(shape, dtype),
        pinned=jnp.zeros((batch, config.pinned), bool),
        age=jnp.full((batch, config.slots), EMPTY, jnp.int32),
        memory=jnp.full((batch, config.memory), EMPTY, jnp.int32),
    )


def bias(kv: KVBuffer) -> Float[Array, "b n"]:
    """0 for each key that holds something, `INVALID` for the rest."""
    slots, memory = kv.age.shape[1], kv.memory.shape[1]
    tokens = 4 * (kv.k.shape[2] - kv.pinned.shape[1]) // max(4 * slots + memory, 1)
    filled = jnp.repeat(kv.age != EMPTY, tokens, axis=1)
    kept = jnp.repeat(kv.memory != EMPTY, tokens // 4, axis=1)
    valid = jnp.concatenate([kv.pinned, kept, filled], axis=1)
    return jnp.where(valid, 0.0, INVALID).astype(jnp.float32)


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
    """Remembers a finished frame: in the oldest window slot, for a stream's first `config.sinks`
    frames in a sink slot for ever and, now and then, in the memory.
    """
    kv = _keep(kv, k, v, config) if config.memory else kv
    batch, slots = kv.age.shape
    sinks, tokens = config.sinks, k.shape[2]
    start_of_slots = kv.k.shape[2] - slots * tokens
    sessions = jnp.arange(batch)

    window = kv.age[:, sinks:]
    oldest = sinks + jnp.argmax(jnp.where(window == EMPTY, slots + 1, window), axis=1)
    age = jnp.where(kv.age > SINK, kv.age + 1, kv.age).at[sessions, oldest].set(1)
    k_buffer, v_buffer = (
        _write(buffer, new, start_of_slots + oldest * tokens)
        for buffer, new in ((kv.k, k), (kv.v, v))
    )
    if sinks:
        free = kv.age[:, :sinks] == EMPTY
        slot, has_free = jnp.argmax(free, axis=1), jnp.any(free, axis=1)
        start = start_of_slots + slot * tokens
        keep = ~has_free[:, None, None, None]
        k_buffer, v_buffer = (
            _write(buffer, jnp.where(keep, _read(buffer, start, tokens), new), start)
            for buffer, new in ((k_buffer, k), (v_buffer, v))
        )
        age = age.at[sessions, slot].set(SINK)
    return replace(kv, k=k_buffer, v=v_buffer, age=age)


def compress(
    x: Float[Array, "l b t h k"], grid: tuple[int, int]
) -> Float[Array, "l b quarter h k"]:
    """The keys or values of a frame by which a memory slot holds it: the mean of each 2x2 tokens.

    Their norm is at most that of the keys pooled, so QK-RMSNorm goes on bounding the logits.
    """
    return reduce(x, "l b (y two x too) h k -> l b (y x) h k", "mean", y=grid[0] // 2, two=2, too=2)


def _keep(
    kv: KVBuffer, k: Float[Array, "l b t h k"], v: Float[Array, "l b t h k"], config: ModelConfig
) -> KVBuffer:
    """The memory after a frame. The first slot takes a frame every `memory_period(0)` frames, and
    hands what it held to the next slot if that one's period is over or it is empty, and so on: so
    the slots reach back over times that grow fourfold, whatever the age of the stream."""
    periods = jnp.asarray([config.memory_period(slot) for slot in range(config.memory)])
    due = (kv.memory == EMPTY) | (kv.memory + 1 >= periods)
    moves = [due[:, 0]]
    for slot in range(1, config.memory):
        moves.append(moves[-1] & (kv.memory[:, slot - 1] != EMPTY) & due[:, slot])
    renewed = jnp.stack(moves, axis=1)  # [B, R]
    start, keys = kv.pinned.shape[1], config.memory_tokens
    chosen = jnp.repeat(renewed, keys, axis=1)[None, :, :, None, None]

    def write(buffer, new):
        held = buffer[:, :, start : start + config.memory * keys]
        pooled = compress(new, config.grid).astype(buffer.dtype)
        shifted = jnp.concatenate([pooled, held[:, :, : held.shape[2] - keys]], axis=2)
        return jax.lax.dynamic_update_slice_in_dim(
            buffer, jnp.where(chosen, shifted, held), start, axis=2
        )

    older = jnp.where(kv.memory == EMPTY, EMPTY, kv.memory + 1)
    return replace(kv, k=write(kv.k, k), v=write(kv.v, v), memory=jnp.where(renewed, 0, older))


def forget(kv: KVBuffer, sessions: Bool[Array, " b"]) -> KVBuffer:
    """Forgets the frames of the chosen sessions; what is pinned stays."""
    age, memory = (jnp.where(sessions[:, None], EMPTY, x) for x in (kv.age, kv.memory))
    return replace(kv, age=age, memory=memory)


def clear(kv: KVBuffer, sessions: Bool[Array, " b"]) -> KVBuffer:
    """Forgets the frames and pinned tokens of the chosen sessions, for a new stream in their
    place."""
    pinned = jnp.where(sessions[:, None], False, kv.pinned)
    return replace(forget(kv, sessions), pinned=pinned)


def _write(buffer: Array, new: Array, start: Int[Array, " b"]) -> Array:
    """Writes `new [L, B, T, H, K]` into `buffer [L, B, N, H, K]`, at each session's own key."""

    def one_session(buffer, new, start):
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis=1)

    return jax.vmap(one_session, in_axes=(1, 1, 0), out_axes=1)(
        buffer, new.astype(buffer.dtype), start
    )


def _read(buffer: Array, start: Int[Array, " b"], length: int) -> Array:
    def one_session(buffer, start):
        return jax.lax.dynamic_slice_in_dim(buffer, start, length, axis=1)

    return jax.vmap(one_session, in_axes=(1, 0), out_axes=1)(buffer, start)
