"""What an instruction costs on a chip, modelled: which unit it keeps busy, and for how long.

The planner compares plans by it. Cycles that are reported as `compiled` come from the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from lsd_jax.hw.chips import Chip
from pallas_kernels.tpu.plan import Plan
from pallas_kernels.tpu.schedule import (
    Attend,
    Await,
    Emit,
    Instruction,
    Loop,
    Mlp,
    Modulate,
    Program,
    Project,
    ProjectOut,
    Step,
)  # fmt: skip

# Our readings of libtpu 0.0.51's static profile (steady products of 1024 x 1024 weights with 256 to
# 1024 rows, exponentials of float32, loops): what a block of rows pays beside its multiply-adds.
PUSH_CYCLES_PER_WEIGHT = 220 / 2**20
EXPONENTIALS_PER_CYCLE = 1024
ELEMENTS_PER_CYCLE = 4 * 1024  # four vector slots of 8 x 128 lanes
BLOCK_CYCLES = 300


@dataclass(frozen=True)
class Cost:
    """Cycles by unit, bytes from or to HBM, multiply-adds without padding."""

    mxu: float = 0
    vector: float = 0
    hbm_bytes: int = 0
    macs: int = 0
    blocks: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def cycles(self) -> float:
        """Of an instruction whose units overlap, but which fills and drains for each block."""
        return max(self.mxu, self.vector) + BLOCK_CYCLES * self.blocks


def product(m: int, k: int, n: int, chip: Chip) -> Cost:
    """`[m, k] @ [k, n]`; a matrix unit is filled in whole, whatever part of it is used."""
    width = int(chip["mxu_width"])
    padded = ceil(k / width) * ceil(n / width) * width**2
    cycles = m * padded / chip["macs_bf16"] + padded * PUSH_CYCLES_PER_WEIGHT
    return Cost(mxu=cycles, macs=m * k * n)


def cost(instruction: Instruction, plan: Plan, chip: Chip) -> Cost:
    """What one instruction costs. The bytes of a tile count where it is awaited."""
    s, width = plan.shape, plan.group * plan.shape.head_dim
    blocks = s.rows // plan.rows
    elements = s.rows * s.dim
    match instruction:
        case Await("heads"):
            weights = 4 * s.dim * width
            keys = 2 * s.sessions * s.keys * width
            return Cost(hbm_bytes=(weights + keys) * s.itemsize, blocks=1)
        case Await("mlp"):
            return Cost(hbm_bytes=2 * s.dim * plan.chunk * s.itemsize, blocks=1)
        case Emit():
            return Cost(hbm_bytes=2 * s.rows * width * s.itemsize)
        case Modulate():
            return Cost(vector=8 * elements / ELEMENTS_PER_CYCLE, blocks=blocks)
        case Project():
            each = product(plan.rows, s.dim, 3 * width, chip)
            vector = 2 * 12 * plan.rows * width / ELEMENTS_PER_CYCLE
            return times(blocks, each + Cost(vector=vector, blocks=1))
        case Attend():
            keys = s.keys + s.tokens
            heads = plan.group * s.rows // plan.queries
            logits = product(plan.queries, s.head_dim, keys, chip)
            values = product(plan.queries, keys, s.head_dim, chip)
            vector = plan.queries * keys * max(1 / EXPONENTIALS_PER_CYCLE, 4 / ELEMENTS_PER_CYCLE)
            turns = s.rows // plan.queries
            return times(heads, logits + values + Cost(vector=vector)) + Cost(blocks=turns)
        case ProjectOut():
            each = product(plan.rows, width, s.dim, chip) + Cost(blocks=1)
            return times(blocks, each + Cost(vector=3 * plan.rows * s.dim / ELEMENTS_PER_CYCLE))
        case Mlp():
            up = product(plan.rows, s.dim, plan.chunk, chip)
            down = product(plan.rows, plan.chunk, s.dim, chip)
            hidden = plan.rows * plan.chunk
            vector = (9 * hidden + 3 * plan.rows * s.dim) / ELEMENTS_PER_CYCLE
            return times(blocks, up + down + Cost(vector=vector, blocks=1))
    return Cost()


def times(count: int, one: Cost) -> Cost:
    return Cost(*(count * amount for amount in vars(one).values()))


@dataclass(frozen=True)
class Total:
    """A whole pass, modelled."""

    cycles: float
    compute_cycles: float  # of them, what computing alone would take
    hbm_bytes: int
    macs: int
    code_cycles: float  # of straight-line code, which is what a compiler has to schedule

    def floor_cycles(self, chip: Chip) -> float:
        """No implementation is faster: the multiply-adds at the chip's peak, or the bytes."""
        hbm = self.hbm_bytes * chip["clock"] / chip["hbm_bandwidth"]
        return max(self.macs / chip["macs_bf16"], hbm)


def total(program: Program, plan: Plan, chip: Chip) -> Total:
    """The cost of a program: its computation or its traffic, whichever is longer, after the first
    tile has come."""
    s = plan.shape
    streamed = 2 * s.rows * s.dim * s.itemsize  # the residual stream, in and out
    compute = code = macs = 0.0
    first = 0

    def walk(nodes: Program, repeats: int) -> None:
        nonlocal streamed, compute, code, macs, first
        for node in nodes:
            if isinstance(node, Loop):
                walk(node.body, repeats * node.times)
                continue
            one = cost(node.instruction if isinstance(node, Step) else node, plan, chip)
            first = first or one.hbm_bytes
            streamed += repeats * one.hbm_bytes
            compute += repeats * one.cycles
            macs += repeats * one.macs
            unrolled = repeats // s.layers if repeats >= s.layers else 1
            code += unrolled * one.cycles / max(one.blocks, 1)

    walk(program, 1)
    per_byte = chip["clock"] / chip["hbm_bandwidth"]
    cycles = max(compute, streamed * per_byte) + first * per_byte
    return Total(cycles, compute, int(streamed), int(macs), code)
