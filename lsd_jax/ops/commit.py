"""`commit`: a finished frame's keys and values go into the KV buffer.

The body here, in plain `jnp`, is the specification of every kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from einops import reduce
from jaxtyping import Array, Float, Int

from lsd_jax.ops.dispatch import Backend, op
from lsd_jax.types import EMPTY, SINK, KVBuffer


@jax.tree_util.register_static
@dataclass(frozen=True)
class Retention:
    """What a buffer keeps of the frames that are committed to it."""

    sinks: int
    periods: tuple[int, ...]  # frames between two renewals, of each memory slot
    grid: tuple[int, int]  # rows and columns of a frame's tokens


@op(
    Backend("pallas", "pallas_kernels.tpu.commit:commit"),
    Backend("pallas-interpret", "pallas_kernels.tpu.commit:interpreted", automatic=False),
    minor=True,
)
def commit(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    retention: Retention,
) -> KVBuffer:
    """Remembers a finished frame: in the oldest window slot, for a stream's first `sinks` frames
    in a sink slot for ever and, now and then, in the memory.
    """
    kv = keep(kv, k, v, retention) if retention.periods else kv
    age, starts = places(kv, k.shape[2], retention.sinks)
    k_buffer, v_buffer = kv.k, kv.v
    for i in range(starts.shape[1]):
        k_buffer = _write(k_buffer, k, starts[:, i])
        v_buffer = _write(v_buffer, v, starts[:, i])
    return replace(kv, k=k_buffer, v=v_buffer, age=age)


def places(
    kv: KVBuffer, tokens: int, sinks: int
) -> tuple[Int[Array, "b s"], Int[Array, "b places"]]:
    """The ages after a frame, and the first key of each place that it is written to: the oldest
    window slot and, if there are sinks, the first free one, or else the same place again."""
    batch, slots = kv.age.shape
    sessions = jnp.arange(batch)
    window = kv.age[:, sinks:]
    chosen = [sinks + jnp.argmax(jnp.where(window == EMPTY, slots + 1, window), axis=1)]
    age = jnp.where(kv.age > SINK, kv.age + 1, kv.age).at[sessions, chosen[0]].set(1)
    if sinks:
        free = kv.age[:, :sinks] == EMPTY
        slot, has_free = jnp.argmax(free, axis=1), jnp.any(free, axis=1)
        chosen.append(jnp.where(has_free, slot, chosen[0]))
        age = age.at[sessions, slot].set(SINK)
    start_of_slots = kv.k.shape[2] - slots * tokens
    return age, start_of_slots + jnp.stack(chosen, axis=1).astype(jnp.int32) * tokens


def compress(
    x: Float[Array, "l b t h k"], grid: tuple[int, int]
) -> Float[Array, "l b quarter h k"]:
    """The keys or values of a frame by which a memory slot holds it: the mean of each 2x2 tokens.

    Their norm is at most that of the keys pooled, so QK-RMSNorm goes on bounding the logits.
    """
    return reduce(x, "l b (y two x too) h k -> l b (y x) h k", "mean", y=grid[0] // 2, two=2, too=2)


def keep(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    retention: Retention,
) -> KVBuffer:
    """The memory after a frame. The first slot takes a frame every `periods[0]` frames, and hands
    what it held to the next slot if that one's period is over or it is empty, and so on: so the
    slots reach back over times that grow fourfold, whatever the age of the stream."""
    count, start = len(retention.periods), kv.pinned.shape[1]
    due = (kv.memory == EMPTY) | (kv.memory + 1 >= jnp.asarray(retention.periods))
    moves = [due[:, 0]]
    for slot in range(1, count):
        moves.append(moves[-1] & (kv.memory[:, slot - 1] != EMPTY) & due[:, slot])
    renewed = jnp.stack(moves, axis=1)  # [B, R]
    keys = k.shape[2] // 4

    def write(buffer, new):
        """The oldest slot first, each in an update of its own: XLA does one update of them all in
        place, and for one session on a CPU then reads what it has just written."""
        pooled = compress(new, retention.grid).astype(buffer.dtype)
        for slot in reversed(range(count)):
            at = start + slot * keys
            held = buffer[:, :, at : at + keys]
            newer = buffer[:, :, at - keys : at] if slot else pooled
            kept = jnp.where(renewed[None, :, slot, None, None, None], newer, held)
            buffer = jax.lax.dynamic_update_slice_in_dim(buffer, kept, at, axis=2)
        return buffer

    older = jnp.where(kv.memory == EMPTY, EMPTY, kv.memory + 1)
    return replace(kv, k=write(kv.k, k), v=write(kv.v, v), memory=jnp.where(renewed, 0, older))


def _write(buffer: Array, new: Array, start: Int[Array, " b"]) -> Array:
    """Writes `new [L, B, T, H, K]` into `buffer [L, B, N, H, K]`, at each session's own key."""

    def one_session(buffer, new, start):
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis=1)

    return jax.vmap(one_session, in_axes=(1, 1, 0), out_axes=1)(
        buffer, new.astype(buffer.dtype), start
    )


def read(buffer: Array, start: Int[Array, " b"], length: int) -> Array:
    """`length` keys of `buffer [L, B, N, H, K]`, from each session's own on, which have to be in
    it: where they are not, Neuron raises and others give anything."""
    sessions, keys = jnp.arange(len(start))[:, None], start[:, None] + jnp.arange(length)
    return buffer.at[:, sessions, keys].get(mode="promise_in_bounds")
