"""`ops.commit` in one launch: the frame's keys and values go into the buffer where it lies.

Dimensions: those of `lsd_jax.types`. Ages are scalars and decide where to copy, so no array is
made of them; what is not written is not touched.

Memory budget: where there is a memory, a layer's new keys and its older memory slots in VMEM.

Pseudocode: of each session, its frame to the oldest window slot, and to a sink that is free;
then, layer by layer, older memory slots one further, and the mean of each 2x2 tokens to the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lsd_jax.ops.commit import Retention
from lsd_jax.ops.partition import one_chip
from lsd_jax.types import EMPTY, SINK, KVBuffer
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.kernel import dot
from pallas_kernels.tpu.loops import Interpret, in_hbm, loop
from pallas_kernels.tpu.plan import LANES
from pallas_kernels.tpu.planner import limit_bytes


def commit(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    retention: Retention,
) -> KVBuffer:
    """`ops.commit` on the TPU that this is traced for.

    Raises NotImplementedError where that is none, or the shape is not one for it.
    """
    return launch(kv, k, v, retention, limit_bytes(chip_here()))


def interpreted(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    retention: Retention,
) -> KVBuffer:
    """The same kernel, interpreted on whatever is here."""
    return launch(kv, k, v, retention, interpret=pltpu.InterpretParams())


def launch(
    kv: KVBuffer,
    k: Float[Array, "l b t h k"],
    v: Float[Array, "l b t h k"],
    retention: Retention,
    vmem_limit_bytes: int | None = None,
    interpret: Interpret = False,
) -> KVBuffer:
    """One `pallas_call`, of buffers with heads before keys, as the megakernel takes them."""
    one_chip("commit")
    place = Place.of(kv, k, retention)
    layers, batch, tokens, heads, k_dim = k.shape
    place.check(k_dim, k.dtype)
    count, quarter = len(retention.periods), tokens // 4
    older = (heads, max((count - 1) * quarter, 1), k_dim)
    scratch = {"arrived": pltpu.SemaphoreType.DMA((2,)), "left": pltpu.SemaphoreType.DMA((2,))}
    if count:
        scratch |= {
            "new": pltpu.VMEM((heads, tokens, k_dim), k.dtype),
            "pooled": pltpu.VMEM((heads, quarter, k_dim), k.dtype),
            "older": pltpu.VMEM(older, k.dtype),
        }
    memory = kv.memory if count else jnp.zeros((batch, 1), jnp.int32)
    mean = pooling(retention.grid) if count else np.zeros((8, LANES), np.float32)
    inputs = (kv.age, memory, jnp.asarray(mean, k.dtype))
    frames = tuple(  # back into the shape in which the megakernel hands them over
        jnp.transpose(x.astype(kv.k.dtype), (0, 3, 1, 2, 4)).reshape(layers, heads, -1, k_dim)
        for x in (k, v)
    )
    buffers = tuple(jnp.swapaxes(x, 2, 3) for x in (kv.k, kv.v))
    frames, buffers = in_hbm((frames, buffers), interpret)
    names = ("age_in", "memory_in", "mean_in", "k_new", "v_new", "k_in", "v_in")
    out = ("age", "memory", "k", "v")
    sram, vmem, hbm = (
        pl.BlockSpec(memory_space=space) for space in (pltpu.SMEM, pltpu.VMEM, pltpu.HBM)
    )

    def body(*references):
        at = SimpleNamespace(**dict(zip((*names, *out, *scratch), references, strict=True)))
        for session in range(batch):
            remember(place, at, session)

    age, memory, *kept = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (kv.age, memory, *buffers)],
        in_specs=[sram, sram, vmem, hbm, hbm, hbm, hbm],
        out_specs=[sram, sram, hbm, hbm],
        scratch_shapes=list(scratch.values()),
        input_output_aliases={5: 2, 6: 3},
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=vmem_limit_bytes),
        name="commit",
        interpret=interpret,
    )(*inputs, *frames, *buffers)
    k_kept, v_kept = (jnp.swapaxes(x, 2, 3) for x in kept)
    return replace(kv, k=k_kept, v=v_kept, age=age, memory=memory if count else kv.memory)


@dataclass(frozen=True)
class Place:
    """Where things lie along the key axis."""

    layers: int
    tokens: int
    pinned: int
    slots: int
    start_of_slots: int
    retention: Retention

    @classmethod
    def of(cls, kv: KVBuffer, k: jax.Array, retention: Retention) -> Place:
        slots, tokens = kv.age.shape[1], k.shape[2]
        start = kv.k.shape[2] - slots * tokens
        return cls(k.shape[0], tokens, kv.pinned.shape[1], slots, start, retention)

    def check(self, k_dim: int, dtype: jnp.dtype) -> None:
        """Raises NotImplementedError where what is copied is no whole number of tiles."""
        sublanes = 32 // jnp.dtype(dtype).itemsize
        sizes = {"head_dim": (k_dim, LANES), "tokens": (self.tokens, sublanes)}
        if self.retention.periods:
            sizes["tokens of a memory slot"] = self.tokens // 4, sublanes
        sizes["pinned"] = self.pinned, sublanes
        for name, (size, multiple) in sizes.items():
            if size % multiple:
                raise NotImplementedError(
                    f"commit: {name}={size} is no multiple of {multiple} ({dtype} tiles); "
                    "use one, or backend xla"
                )


def remember(place: Place, at: SimpleNamespace, session: int) -> None:
    """Of one session: its frame to its slots, its memory, and its ages."""
    retention, sinks = place.retention, place.retention.sinks
    ages = [at.age_in[session, slot] for slot in range(place.slots)]
    oldest, age = jnp.int32(sinks), jnp.int32(-1)
    for slot in range(sinks, place.slots):
        rank = jnp.where(ages[slot] == EMPTY, place.slots + 1, ages[slot])
        oldest, age = jnp.where(rank > age, slot, oldest), jnp.maximum(rank, age)
    free, sink = jnp.bool_(False), jnp.int32(0)
    for slot in reversed(range(sinks)):
        empty = ages[slot] == EMPTY
        free, sink = free | empty, jnp.where(empty, slot, sink)
    for slot, old in enumerate(ages):
        new = jnp.where(old > SINK, old + 1, old)
        new = jnp.where(oldest == slot, 1, new)
        at.age[session, slot] = jnp.where(free & (sink == slot), SINK, new)

    own = pl.ds(session * place.tokens, place.tokens)

    def copies(slot):
        start = place.start_of_slots + slot * place.tokens
        keys = pl.ds(pl.multiple_of(start, place.tokens & -place.tokens), place.tokens)
        return [
            pltpu.make_async_copy(new.at[:, :, own], held.at[:, session, :, keys], at.left.at[i])
            for i, (new, held) in enumerate(((at.k_new, at.k), (at.v_new, at.v)))
        ]

    run(copies(oldest))
    if sinks:
        pl.when(free)(lambda: run(copies(sink)))
    if retention.periods:
        keep(place, at, session, own)


def keep(place: Place, at: SimpleNamespace, session: int, own) -> None:
    """The memory of a session after its frame, see `ops.commit`."""
    count, quarter = len(place.retention.periods), place.tokens // 4
    old = [at.memory_in[session, slot] for slot in range(count)]
    renewed = []
    for slot, period in enumerate(place.retention.periods):
        due = (old[slot] == EMPTY) | (old[slot] + 1 >= period)
        renewed.append(due if slot == 0 else renewed[-1] & (old[slot - 1] != EMPTY) & due)
    for slot in range(count):
        age = jnp.where(old[slot] == EMPTY, EMPTY, old[slot] + 1)
        at.memory[session, slot] = jnp.where(renewed[slot], 0, age)

    def layer(i) -> None:
        def keys(slot: int):
            return pl.ds(place.pinned + slot * quarter, quarter)

        for new, held in ((at.k_new, at.k), (at.v_new, at.v)):
            arriving = [pltpu.make_async_copy(new.at[i, :, own], at.new, at.arrived.at[0])]
            if count > 1:
                shifted = pl.ds(place.pinned, (count - 1) * quarter)
                source = held.at[i, session, :, shifted]
                arriving.append(pltpu.make_async_copy(source, at.older, at.arrived.at[1]))
            run(arriving)
            for head in range(at.new.shape[0]):
                at.pooled[head] = dot(at.mean_in[...], at.new[head]).astype(at.pooled.dtype)
            run([pltpu.make_async_copy(at.pooled, held.at[i, session, :, keys(0)], at.left.at[0])])
            for slot in range(1, count):
                source = at.older.at[:, pl.ds((slot - 1) * quarter, quarter)]
                target = held.at[i, session, :, keys(slot)]

                @pl.when(renewed[slot])
                def _(source=source, target=target):
                    run([pltpu.make_async_copy(source, target, at.left.at[0])])

    pl.when(renewed[0])(lambda: loop(place.layers, layer))


def pooling(grid: tuple[int, int]) -> np.ndarray:
    """`[T / 4, T]`: takes the tokens of a frame to the mean of each 2x2 of them."""
    rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    cell = y // 2 * (columns // 2) + x // 2
    return np.where(cell == np.arange(rows * columns // 4)[:, None], 0.25, 0).astype(np.float32)


def run(copies: list) -> None:
    """Starts copies, and waits until all have arrived."""
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.wait()
