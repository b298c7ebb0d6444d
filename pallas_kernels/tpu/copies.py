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

from pallas_kernels.tpu.loops import Index, Interpret, aligned, in_hbm, loop, moved
from pallas_kernels.tpu.plan import LANES, SUBLANES

BLOCK = 512
"""Rows that one turn of `touch` goes over, written out; more would only be more code."""

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
    )(in_hbm(x, interpret))


def touch(
    x: Float[Array, "8 128"], rows: int, turns: int, interpret: Interpret = False
) -> Float[Array, "8 128"]:
    """Fills `rows` of VMEM with copies of `x`, then reads, negates and writes them `turns` times.

    Returns:
        The sum of the last tiles of all blocks of `BLOCK` rows.

    Raises ValueError for rows that are not 8, 16 or so up to `BLOCK`, or a multiple of it; the
    compiler refuses more than it has VMEM for.
    """
    block = min(rows, BLOCK)
    if rows % block or block % SUBLANES:
        raise ValueError(f"{rows} rows are no whole blocks of {BLOCK}, nor of tiles")
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
        out[...] = jnp.zeros_like(out)

        def add(i: Index) -> None:
            out[...] += buffer[pl.ds(aligned((i + 1) * block - SUBLANES, SUBLANES), SUBLANES)]

        loop(blocks, add)

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
        pl.semaphore_signal(ready, 1, device_id={axis: before})  # which writes into this one
        pl.semaphore_wait(ready, 1)
        moved(pltpu.make_async_remote_copy(here, out, sent, received, device_id={axis: after}))

    return pl.pallas_call(
        body,
        out_shape=pltpu.HBM(x.shape, x.dtype),
        in_specs=[_HBM],
        out_specs=_HBM,
        scratch_shapes=[pltpu.SemaphoreType.DMA] * 2,
        compiler_params=pltpu.CompilerParams(collective_id=0),
        interpret=interpret,
        name="shift",
    )(in_hbm(x, interpret))


def _room(rows: int) -> int:
    """Bytes of VMEM for so many rows of float32 and the small operands."""
    return 4 * LANES * rows + (1 << 20)
