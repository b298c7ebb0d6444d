"""What is computed for the sessions in the slots of one state: steps, in two parts, and changes.

A step shows pictures, then remembers them (`stream.show`, `stream.remember`): on a CPU for one slot
after the other, on accelerators for all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, UInt8

from lsd_jax import ring, stream
from lsd_jax.live.yuv import yuv420
from lsd_jax.stream import StreamModel
from lsd_jax.types import StreamState

_AXES = StreamState(kv=ring.SESSION, key=0, frame=0)  # pyright: ignore[reportArgumentType]


class Asked(NamedTuple):
    """What a step is given: a frame and control planes for each slot, and which of the slots are
    listed, the first `count` of `order`."""

    frames: UInt8[Array, "b height width 3"]
    controls: UInt8[Array, "b height width n"]
    order: Int[Array, " b"]
    count: Int[Array, ""]


def read(state: StreamState, slot: Int[Array, ""]) -> StreamState:
    """The session in `slot`, as a state of one session."""
    return jax.tree.map(
        lambda axis, x: lax.dynamic_slice_in_dim(x, slot, 1, axis), _AXES, state
    )  # fmt: skip


def write(state: StreamState, one: StreamState, slot: Int[Array, ""]) -> StreamState:
    """`state` with the session `one` in `slot`."""
    return jax.tree.map(
        lambda axis, x, new: lax.dynamic_update_slice_in_dim(x, new, slot, axis), _AXES, state, one
    )


def pin(
    state: StreamState,
    pinned: tuple[Array, Array, Array],
    slot: Int[Array, ""],
    anew: Bool[Array, "1"],
) -> StreamState:
    """Gives the session in `slot` what `Denoiser.pin` made; `anew` forgets what it has shown."""
    one = read(state, slot)
    steered = one.replace(kv=ring.pin(one.kv, *pinned, jnp.ones(1, bool)))
    return write(state, stream.forget(steered, anew), slot)


def show_listed(
    model: StreamModel, state: StreamState, asked: Asked
) -> tuple[Array, Array, Bool[Array, " b"]]:
    """The next pictures of the listed slots, one after the other; their planes for a video encoder,
    and whether they are finite.

    For CPUs: costs what the waiting sessions cost, and the bits are those of a session alone.
    """

    def one(i, shown):
        row, put = _at(asked.order[i])
        image, _, good = stream.show(
            model, read(state, asked.order[i]), row(asked.frames), row(asked.controls)
        )
        return jax.tree.map(put, shown, (image, yuv420(image), good))

    b, height, width = asked.frames.shape[:3]
    planes = jnp.zeros((b, height * 3 // 2, width), jnp.uint8)
    nothing = jnp.zeros_like(asked.frames), planes, jnp.zeros(b, bool)
    return lax.fori_loop(0, asked.count, one, nothing)


def remember_listed(
    model: StreamModel,
    state: StreamState,
    asked: Asked,
    images: UInt8[Array, "b height width 3"],
) -> tuple[StreamState, Bool[Array, " b"]]:
    """The state once those slots have remembered what they have shown, and whether that is
    finite."""

    def one(i, carry):
        state, kept = carry
        row, put = _at(asked.order[i])
        seen = stream.seen(model, row(asked.frames), row(images), row(asked.controls))
        alone, good = stream.remember(model, read(state, asked.order[i]), seen)
        return write(state, alone, asked.order[i]), put(kept, good)

    return lax.fori_loop(0, asked.count, one, (state, jnp.ones(asked.order.shape, bool)))


def _at(slot: Int[Array, ""]) -> tuple[Callable, Callable]:
    """What takes a slot's row out of an array, and what puts it into one."""
    row = partial(lax.dynamic_slice_in_dim, start_index=slot, slice_size=1, axis=0)
    return row, partial(lax.dynamic_update_slice_in_dim, start_index=slot, axis=0)


def show_masked(
    model: StreamModel, state: StreamState, asked: Asked
) -> tuple[Array, Array, Bool[Array, " b"]]:
    """`show_listed` for accelerators: all slots at once and without a branch."""
    images, _, finite = stream.show(model, state, asked.frames, asked.controls)
    return images, yuv420(images), finite


def remember_masked(
    model: StreamModel,
    state: StreamState,
    asked: Asked,
    images: UInt8[Array, "b height width 3"],
) -> tuple[StreamState, Bool[Array, " b"]]:
    """`remember_listed` for accelerators; slots that are not listed keep their state."""
    order, places = asked.order, jnp.arange(asked.order.size)
    chosen = jnp.zeros(order.shape, bool).at[order].set(places < asked.count)
    seen = stream.seen(model, asked.frames, images, asked.controls)
    after, kept = stream.remember(model, state, seen)

    def keep(axis, old, new):
        shape = [-1 if a == axis else 1 for a in range(old.ndim)]
        return jnp.where(chosen.reshape(shape), new, old)

    return jax.tree.map(keep, _AXES, state, after), kept
