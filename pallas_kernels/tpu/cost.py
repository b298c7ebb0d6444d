"""What an instruction costs on a chip, modelled: which unit it keeps busy, and for how long.

The planner compares plans by it. Cycles that are reported as `compiled` come from the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import attended_macs, dense_macs
from pallas_kernels.tpu.plan import LANES, Plan, Shape, up
from pallas_kernels.tpu.schedule import (
    Attend,
    Await,
    Combine,
    Emit,
    Instruction,
    Load,
    Loop,
    Mlp,
    Modulate,
    Program,
    Project,
    ProjectOut,
    Step,
    Store,
)  # fmt: skip

Amount = Any  # a number, or an array of them


@dataclass(frozen=True)
class Readings:
    """What our megakernels pay beside their multiply-adds, in cycles; see `READINGS`."""

    push: float  # a weight, at least, however few the rows: it has to enter the matrix unit
    attended_push: float  # a key or value of attention, at least
    vector: float  # an operation on a register of 1024 elements
    logit: float  # a register of logits, from the product to the rounded weight
    overlap: float  # share of the shorter of the two units' work that the longer does not hide
    half: float  # products of keys and heads that both fill half of a matrix unit: all latency
    block: float  # filling and draining a block of rows
    tile: float  # taking over a tile that has come
    once: float  # of a launch beside its first wait: loading, storing, the last copies
    update: float  # operations of an element of the residual stream: `x += gate * product`
    rounding: float  # operations that bring an element into eight bits
    start: float  # of the time that the first copy needs alone: latency, and bytes at `copy_rate`
    copy_latency: float
    copy_rate: float  # bytes a cycle of one copy from HBM


FITTED = Readings(
    push=4.58e-4, attended_push=9.68e-4, vector=0.144, logit=1.71, overlap=0.157, half=128,
    block=299, tile=15.2, once=228, update=11.2, rounding=11.6, start=0.75, copy_latency=1040,
    copy_rate=776,
)  # fmt: skip
READINGS = {128: replace(FITTED, start=0.7, copy_latency=1600, copy_rate=491), 256: FITTED}
"""By the width of the chip's matrix units: what `python -m benchmarks.readings_tpu` fits to stacks
that libtpu 0.0.52 compiled for a v6e, in plans of ours and worse ones. A v5e runs the same kernel,
and what its matrix units do is in its `macs_bf16` and `mxu_width`: its stacks are missed by as
little. No stack of a v5p was tried for this. Copies: our reading of the same compiler's profile of
single ones. `python -m benchmarks.prediction_tpu` checks both on other shapes."""

REGISTER = 1024  # elements of a vector register
SCALING = 3  # of an element of a product of int8: from int32, and by two scales
COMBINE = 8  # of an element of the residual stream: shares are added up, then added to it
TURNED = 410  # cycles in which a head's block of queries fills and drains the units, compiled alone
CORE_LATENCY, CORE_RATE = 670, 1251  # cycles, bytes a cycle: our reading of the same compiler's
# profile of single copies on a v5p; one to HBM and one back bring a share to the other core


@dataclass(frozen=True)
class Cost:
    """Cycles of an instruction, bytes from or to HBM, multiply-adds without padding."""

    cycles: Amount = 0.0
    hbm_bytes: Amount = 0
    macs: Amount = 0


def read(chip: Chip) -> Readings:
    """The readings for a chip. Raises ValueError for matrix units that we have none of."""
    width = int(chip["mxu_width"])
    if width not in READINGS:
        raise ValueError(
            f"{chip.name}: matrix units of {width}, and we know those of {[*READINGS]}"
        )
    return READINGS[width]


def product(
    m: Amount, k: Amount, n: Amount, chip: Chip, readings: Readings, speed: float = 1.0
) -> Amount:
    """Cycles of `[m, k] @ [k, n]`: a matrix unit is filled in whole, used or not. `speed` is that
    of the operands' dtype over bfloat16's."""
    padded = filled(k, chip) * filled(n, chip)
    return np.maximum(m / chip["macs_bf16"] / speed, readings.push) * padded


def dense_speed(shape: Shape, chip: Chip) -> float:
    """How much faster products with weights are than in bfloat16."""
    return chip["ops_int8"] / chip["flops_bf16"] if shape.weight_dtype else 1.0


def least_cycles(shape: Shape, chip: Chip) -> Amount:
    """Of all multiply-adds of a pass at the chip's peak."""
    dense = dense_macs(shape) / dense_speed(shape, chip)
    return (dense + attended_macs(shape)) / chip["macs_bf16"]


def filled(size: Amount, chip: Chip) -> Amount:
    """A side of weights in whole matrix units."""
    return up(size, int(chip["mxu_width"]))


def both(mxu: Amount, vector: Amount, readings: Readings) -> Amount:
    """Cycles of the matrix and vector units side by side."""
    return np.maximum(mxu, vector) + readings.overlap * np.minimum(mxu, vector)


def cost(
    instruction: Instruction, plan: Plan, chip: Chip, readings: Readings | None = None
) -> Cost:
    """What one instruction costs, by the chip's readings or others. The bytes of a tile count
    where it is awaited.

    A plan may hold arrays in place of numbers; then the cost does, too.
    """
    s, width, r = plan.shape, plan.group * plan.shape.head_dim, readings or read(chip)
    asked = s.per_kv * width
    rows, blocks = plan.all_rows, plan.blocks
    vector = r.vector / REGISTER
    speed = dense_speed(s, chip)
    rounding, scaling = (r.rounding, SCALING) if s.weight_dtype else (0, 0)
    match instruction:
        case Await("heads"):
            weights = 2 * s.dim * (asked + width) * s.weight_itemsize
            keys = 2 * s.sessions * s.keys * width * s.itemsize
            return Cost(r.tile, hbm_bytes=weights + keys)
        case Await("mlp"):
            return Cost(r.tile, hbm_bytes=2 * s.dim * plan.chunk * s.weight_itemsize)
        case Emit():
            return Cost(hbm_bytes=2 * s.rows * width * s.itemsize)
        case Modulate():
            return Cost((4 + rounding) * rows * s.dim * vector + blocks * r.block)
        case Project():
            parts = s.per_kv + 2
            mxu = product(plan.rows, s.dim, parts * width, chip, r, speed)
            elements = (12 * (s.per_kv + 1) + parts * scaling) * plan.rows * width
            each = both(mxu, elements * vector, r) + r.block
            return Cost(blocks * each, macs=parts * s.rows * s.dim * width)
        case Attend():
            turns = rows // plan.queries
            head = sum(
                count * attend_cycles(keys, ages, plan, chip, r)
                for count, keys, ages in (
                    (1, s.ageless, 0),
                    (s.slots, s.tokens, 1),
                    (1, plan.session_rows, 0),
                )
            )
            straight = plan.group * s.per_kv * head + r.block
            alone = plan.group * s.per_kv * turned_cycles(plan, chip)
            macs = 2 * s.rows * (s.keys + s.tokens) * asked
            return Cost(turns * np.where(plan.turned, alone, straight), macs=macs)
        case ProjectOut():
            mxu = product(plan.rows, asked, s.dim, chip, r, speed)
            elements = plan.rows * ((r.update + scaling) * s.dim + rounding * asked)
            each = both(mxu, elements * vector, r) + r.block
            return Cost(blocks * each, macs=s.rows * s.dim * asked)
        case Mlp():
            mxu = product(plan.rows, s.dim, plan.chunk, chip, r, speed)
            mxu = mxu + product(plan.rows, plan.chunk, s.dim, chip, r, speed)
            hidden = 20 + scaling + rounding
            elements = plan.rows * (hidden * plan.chunk + (r.update + scaling) * s.dim)
            each = both(mxu, elements * vector, r) + r.block
            return Cost(blocks * each, macs=2 * s.rows * s.dim * plan.chunk)
        case Combine():  # what the links take is counted beside it, `hw.plan.all_reduce_seconds`
            added = COMBINE * rows * s.dim * vector + blocks * r.block
            if plan.cores == 1:
                return Cost(added)
            share = rows * s.dim * s.itemsize
            # The last block's is on its way out, then the other core's comes.
            copied = 2 * CORE_LATENCY + (plan.rows * s.dim * s.itemsize + share) / CORE_RATE
            return Cost(added + copied, hbm_bytes=2 * share)
        case Load() | Store() if plan.sharers > 1:  # else XLA brings it, before and after
            return Cost(r.copy_latency + s.rows * s.dim * s.itemsize / r.copy_rate)
    return Cost()


def attend_cycles(keys: Amount, ages: int, plan: Plan, chip: Chip, readings: Readings) -> Amount:
    """One query head's queries of a block against the keys of a slot, with their age embedding or
    without."""
    queries, k, r = plan.queries, plan.shape.head_dim, readings
    held = filled(k, chip) * up(keys, LANES)  # by the matrix units: keys, and then values
    mxu = 2 * held * np.maximum(queries / chip["macs_bf16"], r.attended_push)
    logits = queries * up(keys, LANES) * r.logit / REGISTER
    others = (4 * ages * keys * k + 2 * queries * k) * r.vector / REGISTER
    halves = (2 * k <= chip["mxu_width"]) & (2 * keys <= chip["mxu_width"])
    cycles = np.maximum(both(mxu, logits + others, r), halves * r.half)
    return np.where(keys > 0, cycles, 0.0)


def turned_cycles(plan: Plan, chip: Chip) -> Amount:
    """One query head's block of queries against all keys, where queries are along the lanes."""
    s, queries = plan.shape, filled(plan.queries, chip)
    keys = s.keys + s.tokens
    streamed = keys * filled(s.head_dim, chip) + s.head_dim * filled(keys, chip)
    return streamed * queries / chip["macs_bf16"] + TURNED


@dataclass(frozen=True)
class Total:
    """A whole pass, modelled."""

    cycles: Amount  # of the computation or the traffic, whichever is longer
    compute_cycles: Amount  # of the computation, after the first tile: what a compiler sees
    hbm_bytes: Amount
    macs: Amount
    code_cycles: Amount  # of straight-line code, which is what a compiler has to schedule


def total(program: Program, plan: Plan, chip: Chip, readings: Readings | None = None) -> Total:
    """The cost of a program: its computation or its traffic, whichever is longer, after the first
    tile has come; by the chip's readings or others. A plan of arrays gives arrays."""
    s, r = plan.shape, readings or read(chip)
    streamed = 2 * s.rows * s.dim * s.itemsize  # the residual stream, in and out
    compute = code = macs = 0

    def walk(nodes: Program, repeats: Amount, tiles: Amount) -> None:
        nonlocal streamed, compute, code, macs
        for node in nodes:
            if isinstance(node, Loop):
                straight = node.times if node.over == "tile" else node.times > 0
                walk(node.body, repeats * node.times, tiles * straight)
                continue
            one = cost(node.instruction if isinstance(node, Step) else node, plan, chip, r)
            streamed = streamed + repeats * one.hbm_bytes
            compute = compute + repeats * one.cycles
            macs = macs + repeats * one.macs
            turns = plan.all_rows // (plan.queries if isinstance(node, Attend) else plan.rows)
            if isinstance(node, Attend):
                turns = turns * np.where(plan.turned, plan.group, 1)
            code = code + tiles * one.cycles / turns

    walk(program, 1, 1)
    width = plan.group * s.head_dim
    first_weights, first_keys = s.dim * s.weight_itemsize, 2 * s.sessions * s.keys * s.itemsize
    largest = np.maximum((s.per_kv + 2) * first_weights, first_keys) * width
    compute = compute + r.once + r.start * (r.copy_latency + largest / r.copy_rate)
    first = (2 * (s.per_kv + 1) * first_weights + first_keys) * width
    traffic = (streamed + first) * chip["clock"] / chip["hbm_bandwidth"]
    return Total(np.maximum(compute, traffic), compute, streamed, macs, code)
