"""Kernels that do nothing but move bytes: what XLA's own copies do not show to microbenchmarks.

`load` streams HBM into VMEM, as the megakernel streams its weights; `touch` reads and writes VMEM;
`shift` hands an array on to the next chip, as `exchange` does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.tpu.loops import Index, aligned, loop

LANES = 128
SUBLANES = 8
"""A tile of float32 is `SUBLANES x LANES`, the least that is moved."""
BLOCK = 512
"""Rows of one turn of `touch`: long enough for a loop to cost nothing beside it."""

Interpret = bool | pltpu.InterpretParams
_HBM, _VMEM = (pl.BlockSpec(memory_space=space) for space in (pltpu.HBM, pltpu.VMEM))


def load(
    x: Float[Array, "pieces rows 128"], flight: int, interpret: Interpret = False
) -> Float[Array, "8 128"]:
    """Copies the pieces of `x` from HBM into VMEM, so many under way at once.

    Returns:
        The sum of the pieces' first tiles, so that each has to arrive.
    """
    pieces, rows, lanes = x.shape

    def body(hbm, total, buffer, arrived):
        def copy(i: Index):
            slot = i % flight
            return pltpu.make_async_copy(hbm.at[i], buffer.at[slot], arrived.at[slot])

        def turn(i: Index) -> None:
            copy(i).wait()
            total[...] += buffer[i % flight, :SUBLANES]
            pl.when(i + flight < pieces)(lambda: copy(i + flight).start())

        total[...] = jnp.zeros_like(total)
        for i in range(min(flight, pieces)):
            copy(i).start()
        loop(pieces, turn)

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct((SUBLANES, lanes), x.dtype),
        in_specs=[_HBM],
        out_specs=_VMEM,
        scratch_shapes=[
            pltpu.VMEM((flight, rows, lanes), x.dtype),
            pltpu.SemaphoreType.DMA((flight,)),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_room(flight * rows)),
        interpret=interpret,
        name="load",
    )(x if interpret else pltpu.with_memory_space_constraint(x, pltpu.HBM))


def touch(
    x: Float[Array, "8 128"], rows: int, turns: int, interpret: Interpret = False
) -> Float[Array, "8 128"]:
    """Fills `rows` of VMEM with copies of `x`, then reads, negates and writes them `turns` times.

    Returns:
        The last tile. The compiler refuses rows that it has no VMEM for.
    """
    block = min(rows, BLOCK)
    blocks = rows // block

    def body(tile, out, buffer):
        def some(i: Index):
            return pl.ds(aligned(i * block, block), block)

        def fill(i: Index) -> None:
            buffer[some(i)] = jnp.tile(tile[...], (block // SUBLANES, 1))

        def negate(i: Index) -> None:
            buffer[some(i)] = -buffer[some(i)]

        loop(blocks, fill)
        loop(turns * blocks, lambda i: negate(i % blocks))  # the profiler miscounts nested loops
        out[...] = buffer[rows - SUBLANES :]

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[_VMEM],
        out_specs=_VMEM,
        scratch_shapes=[pltpu.VMEM((rows, LANES), x.dtype)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_room(rows)),
        interpret=interpret,
        name="touch",
    )(x)


def shift(
    x: Float[Array, "rows 128"], axis: str, interpret: Interpret = False
) -> Float[Array, "rows 128"]:
    """What the device before this one along `axis` of the mesh has as `x`, written into this one's
    HBM by that one; inside `shard_map`."""

    def body(here, out, sent, received):
        at, devices = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
        after, before = ((at + step) % devices for step in (1, devices - 1))
        ready = pltpu.get_barrier_semaphore()
        for neighbour in (after, before):  # nobody writes into one that is not here yet
            pl.semaphore_signal(ready, 1, device_id={axis: neighbour})
        pl.semaphore_wait(ready, 2)
        copy = pltpu.make_async_remote_copy(here, out, sent, received, device_id={axis: after})
        copy.start()
        copy.wait()

    return pl.pallas_call(
        body,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[_HBM],
        out_specs=_HBM,
        scratch_shapes=[pltpu.SemaphoreType.DMA] * 2,
        compiler_params=pltpu.CompilerParams(collective_id=0),
        interpret=interpret,
        name="shift",
    )(x)


def _room(rows: int) -> int:
    """Bytes of VMEM for so many rows of float32 and the small operands."""
    return 4 * LANES * rows + (1 << 20)
