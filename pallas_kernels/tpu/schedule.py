"""The megakernel as a program: frozen instructions, in the order in which they run.

A layer is `modulate, for each group of heads (project, attend, project out), modulate, for each
chunk of the MLP (both products)`, with the traffic of the tiles between. `interpret.py` runs the
program in plain `jnp`, `kernel.py` on a TPU.

A tile comes in three steps. `Fill` starts the copies of a ring's first tiles, before the first
layer. `Await` waits for the tile of this step. `Refill` says that it was used, and starts copying
the one that is due when the ring has come round, maybe of the next layer, into its place. `Emit`
starts the way back of new keys and values, `Drain` waits until they are there.

Of a frame that is to be remembered nothing is wanted but keys and values, so its last layer ends
with them.

Where several chips share the heads and the MLP features of a layer, each has all rows of the
residual stream and its share of what is to be added to them. `ProjectOut` and `Mlp` then offer each
block of rows to the chip that adds it up as soon as the last tile has passed over it, so that it
travels under the products of the next block; `Combine` adds up, tells all others, and waits for
what they tell. Two cores of a chip offer each other all rows, and both add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pallas_kernels.tpu.plan import Plan

Ring = Literal["heads", "mlp"]
Part = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Meet:
    """Waits until all chips are here: before, nobody may write to another's memory."""


@dataclass(frozen=True)
class Load:
    """The residual stream into its float32 buffer."""


@dataclass(frozen=True)
class Fill:
    """Starts the copies of the first tiles of a ring, as many as it holds."""

    ring: Ring


@dataclass(frozen=True)
class Await:
    """Waits for the tile of this step."""

    ring: Ring


@dataclass(frozen=True)
class Refill:
    """Starts the copy of the tile that is due when the ring has come round, if there is one."""

    ring: Ring


@dataclass(frozen=True)
class Modulate:
    """`h = rms_norm(x) * (1 + scale) + shift`, by the rows of `part`."""

    part: Part


@dataclass(frozen=True)
class Project:
    """Queries, keys and values of the group's heads, with QK-norm and rotary position."""


@dataclass(frozen=True)
class Emit:
    """Starts copying the group's new keys and values to HBM."""


@dataclass(frozen=True)
class Attend:
    """One softmax per query head over the session's buffer and its own frame."""


@dataclass(frozen=True)
class ProjectOut:
    """`x += gate * (attended @ out)`, the group's share."""


@dataclass(frozen=True)
class Drain:
    """Waits until the group's new keys and values are in HBM."""


@dataclass(frozen=True)
class Mlp:
    """`x += gate * (gelu(h @ up) @ down)`, the chunk's share."""


@dataclass(frozen=True)
class Combine:
    """`x += ` the sum of all chips' or cores' shares, the same to the last bit on each of them."""

    part: Part


@dataclass(frozen=True)
class Store:
    """The residual stream out of its float32 buffer."""


Instruction = (
    Meet
    | Load
    | Fill
    | Await
    | Refill
    | Modulate
    | Project
    | Emit
    | Attend
    | ProjectOut
    | Drain
    | Mlp
    | Combine
    | Store
)


@dataclass(frozen=True)
class Loop:
    """`body` for each of so many layers, from the `first` on, or for each tile of one."""

    over: Literal["layer", "tile"]
    times: int
    body: tuple[Instruction | Loop, ...]
    first: int = 0


@dataclass(frozen=True)
class Step:
    """An instruction at its place."""

    instruction: Instruction
    layer: int
    tile: int


Program = tuple[Instruction | Loop | Step, ...]


def program(plan: Plan) -> Program:
    """The whole pass."""
    keys = Await("heads"), Project(), Emit()
    heads = (*keys, Attend(), ProjectOut(), Refill("heads"))

    def together(part: Part) -> tuple[Combine, ...]:
        return (Combine(part),) if plan.sharers > 1 else ()

    layer = (
        Modulate("attention"),
        Loop("tile", plan.groups, heads),
        *together("attention"),
        Modulate("mlp"),
        Loop("tile", plan.chunks, (Await("mlp"), Mlp(), Refill("mlp"))),
        *together("mlp"),
        Loop("tile", plan.groups, (Drain(),)),
    )
    last = (
        Modulate("attention"),
        Loop("tile", plan.groups, (*keys, Refill("heads"))),
        Loop("tile", plan.groups, (Drain(),)),
    )
    whole = plan.whole_layers
    layers = Loop("layer", whole, layer), Loop("layer", plan.shape.layers - whole, last, whole)
    meet = (Meet(),) if plan.chips > 1 else ()
    return Fill("heads"), Fill("mlp"), Load(), *meet, *layers, Store()


def steps(program: Program, layer: int = 0, tile: int = 0) -> Iterator[Step]:
    """The program without its loops."""
    for node in program:
        if isinstance(node, Loop):
            for i in range(node.times):
                place = (node.first + i, tile) if node.over == "layer" else (layer, i)
                yield from steps(node.body, *place)
        else:
            yield node if isinstance(node, Step) else Step(node, layer, tile)


def prefix(plan: Plan, program: Program, count: int) -> tuple[Step, ...]:
    """The first `count` steps, and after them a wait for each copy that is still under way."""
    done = list(steps(program))[:count]
    started: list[Step] = []
    for step in done:
        match step.instruction:
            case Fill(ring):
                tiles = plan.tiles(ring)
                first = range(min(plan.ahead, plan.all_tiles(ring)))
                started += [Step(Await(ring), *divmod(i, tiles)) for i in first]
            case Refill(ring):
                due = plan.due(ring, step.layer, step.tile)
                started += [Step(Await(ring), *due)] if due else []
            case Emit():
                started.append(Step(Drain(), step.layer, step.tile))
            case Await() | Drain():
                started.remove(step)
    return (*done, *started)
