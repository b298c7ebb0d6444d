"""Two cores of one chip that share a stack: a launch on both, and the exchange of their shares.

They have the chip's HBM together and each a VMEM of its own. So a share goes to the other core by
way of HBM: it is written there, the other is told, and reads it. Both add up all rows.

Nothing is written over that is still wanted: attention's share and the MLP's lie in two places, and
a core that is told of the one knows that the other core has read its last one in the other place.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.tpu.loops import Index, Rows, moved
from pallas_kernels.tpu.plan import Plan
from pallas_kernels.tpu.schedule import Part

if TYPE_CHECKING:
    from pallas_kernels.tpu.kernel import Machine

CORE = "core"
"""The axis along which the cores of a chip lie."""

PARTS = get_args(Part)


def here() -> Index:
    """Which core this is."""
    return jax.lax.axis_index(CORE)


def offer(machine: Machine, part: Part, rows: Rows) -> Any:
    """The copy of this core's share in some rows to where the other reads it."""
    at = machine.at
    place = at.mail.at[PARTS.index(part), here(), rows]
    return pltpu.make_async_copy(at.offered.at[rows], place, at.sent)


def fetch(machine: Machine, part: Part, rows: Rows) -> Any:
    """The copy of the other core's share in some rows to this one."""
    at = machine.at
    place = at.mail.at[PARTS.index(part), 1 - here(), rows]
    return pltpu.make_async_copy(place, at.inbox.at[rows], at.received)


def told(machine: Machine) -> None:
    """Waits until the other core says that its share is to be read."""
    pl.semaphore_wait(machine.at.told, 1)


def combine(machine: Machine, part: Part) -> None:
    """`x += ` the sum of both cores' shares: of two numbers the same in any order, so the same to
    the last bit on both."""
    at, everything = machine.at, pl.ds(0, machine.plan.all_rows)
    offer(machine, part, everything).wait()
    pl.semaphore_signal(at.told, 1, core_index=1 - here())
    told(machine)
    moved(fetch(machine, part, everything))

    def block(rows: Rows, session: Index) -> None:
        at.x[rows] += at.offered[rows].astype(jnp.float32) + at.inbox[rows].astype(jnp.float32)

    machine.for_rows(block)


def launched(
    plan: Plan,
    run: Callable[[SimpleNamespace], None],
    age: jax.Array,
    small: dict[str, jax.Array],
    streamed: dict[str, jax.Array],
    out: dict[str, jax.ShapeDtypeStruct],
    scratch: dict[str, Any],
    dump: tuple[str, ...] = (),
    **options: Any,
) -> dict[str, jax.Array]:
    """`run` on both cores, in front of which the compiler has them meet. Each brings the `small`
    operands whole to its own VMEM.

    Returns the results `out`, which lie in HBM, and of the buffers named in `dump` a copy from each
    core.
    """
    given = {"age": age, **small}
    kept = {"age": pltpu.SMEM(age.shape, age.dtype)}
    kept |= {name: pltpu.VMEM(x.shape, x.dtype) for name, x in small.items()}
    mail = (len(PARTS), plan.cores, plan.all_rows, plan.shape.dim)
    out = out | {"mail": jax.ShapeDtypeStruct(mail, plan.shape.dtype)}
    # The compiler may else keep one in the VMEM of a core, which the other does not see.
    results = {name: pltpu.HBM(of.shape, of.dtype) for name, of in out.items()}
    copied = {
        f"dump_{name}": jax.ShapeDtypeStruct((plan.cores, *of.shape), of.dtype)
        for name, of in ((name, plan.buffers[name]) for name in dump)
    }
    kept |= scratch | {
        "sent": pltpu.SemaphoreType.DMA,
        "received": pltpu.SemaphoreType.DMA,
        "come": pltpu.SemaphoreType.DMA((len(given),)),
        "told": pltpu.SemaphoreType.REGULAR,
    }
    names = (*(f"{name}_given" for name in given), *streamed, *results, *copied, *kept)

    def body(*references: Any) -> None:
        refs = dict(zip(names, references, strict=True))
        copies = [
            pltpu.make_async_copy(refs[f"{name}_given"], refs[name], refs["come"].at[i])
            for i, name in enumerate(given)
        ]
        moved(*copies)
        run(SimpleNamespace(**refs))
        for name in dump:
            dumped = refs[f"dump_{name}"].at[here()]
            moved(pltpu.make_async_copy(refs[name], dumped, refs["sent"]))

    found: Any = pl.kernel(
        body,
        out_type=(*results.values(), *copied.values()),
        mesh=_mesh(plan.cores),
        scratch_types=list(kept.values()),
        **options,
    )(*given.values(), *streamed.values())
    return dict(zip((*results, *dump), found, strict=True))


def _mesh(cores: int) -> Any:
    """Of the cores of one chip, by the name that this version of JAX has for it."""
    since_0_11: Any = getattr(pltpu, "TensorCoreMesh", None)
    if since_0_11:
        return since_0_11(axis_name=CORE, num_cores=cores)
    return pltpu.create_tensorcore_mesh(CORE, num_cores=cores)
