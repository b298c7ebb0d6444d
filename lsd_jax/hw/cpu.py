"""How long a frame takes on a chip whose prices were fitted to measurements: a CPU, so far.

XLA runs a CPU's operations one after the other, each on all cores. So a frame takes the sum of its
operations, and an operation what it does times what that costs there: a start, multiply-adds, bytes
read and written. `features` says how much of each an operation has; `lsd bench fit` finds what one
costs (`hw.micro.fit`); a chip's file holds these prices in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lsd_jax.config import Config
from lsd_jax.hw.chips import Chip
from lsd_jax.hw.work import Op, by_xla_alone, frame_work, stack_ops

LANES = 16  # float32 numbers of a 512-bit register; narrower results leave lanes idle
TINY = 512  # multiply-adds; below it a batched product is a loop, not a product
LAYERS = {"weights of a layer", "buffer of a layer"}
"""Copies by name that take a layer out of a stack, which is what a loop over layers does."""
REARRANGED = {"patches", "coarse picture", "planes", "squares", "cells", "keys and values"}
"""Copies by name that change the order of elements."""

PRICES = {
    "launch": "a call of an executable, in ns",
    "matmul_start": "a matrix product, in ns",
    "matmul_mac": "one of its multiply-adds, its columns rounded up to 16, in ns",
    "matmul_left": "an element of its left operand, in ns",
    "matmul_right": "an element of its right operand, in ns",
    "matmul_out": "an element of its result, in ns",
    "batched_start": "a batch of products, in ns",
    "batched_mac": "one of its multiply-adds, in ns",
    "batched_in": "an element of its operands, in ns",
    "batched_out": "an element of its results, in ns",
    "tiny_product": "a product of a batch of those with a few elements, in ns",
    "convolution_start": "a convolution, in ns",
    "convolution_mac": "one of its multiply-adds, in ns",
    "convolution_in": "an element that it reads, in ns",
    "convolution_out": "an element that it writes, in ns",
    "loop_start": "an elementwise loop, in ns",
    "loop_element": "an element of it, in ns",
    "loop_flop": "an operation on one, in ns",
    "loop_transcendental": "a function on one that needs a series, in ns",
    "loop_byte": "a byte that it reads or writes, in ns",
    "noise": "a normal random number, in ns",
    "copy_start": "a copy, in ns",
    "copy_byte": "a byte that it reads or writes, in ns",
    "rearranged_byte": "the same where the order of elements changes, in ns",
    "layer_byte": "the same where a layer is taken out of a stack, in ns",
    "upsample_out": "an element that an interpolation writes, in ns",
    "cold_operation": "an operation of a frame, beyond what it costs in a loop of its own, in ns",
    "cold_byte": "a byte that one reads or writes, likewise, in ns",
}
"""What is paid for, by the name that a chip's file has for its price."""


@dataclass(frozen=True)
class Timed:
    """A stage of the frame, and its seconds by operation."""

    name: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def features(op: Op) -> dict[str, int | float]:
    """How much of what is paid for one execution of an operation has."""
    if op.kind == "matmul":
        if op.name.startswith("upsample"):
            return {"matmul_mac": op.flops / 2, "upsample_out": op.m * op.n}
        if op.m * op.k * op.n < TINY:
            return {"tiny_product": op.batch}
        macs = op.batch * op.m * op.k * -(-op.n // LANES) * LANES
        left, right, out = (op.batch * x for x in (op.m * op.k, op.k * op.n, op.m * op.n))
        if op.batch > 1:
            return {"batched_start": 1, "batched_mac": macs, "batched_in": left + right,
                    "batched_out": out}  # fmt: skip
        return {"matmul_start": 1, "matmul_mac": macs, "matmul_left": left, "matmul_right": right,
                "matmul_out": out}  # fmt: skip
    if op.kind == "convolution":
        return {"convolution_start": 1, "convolution_mac": op.m * op.k * op.n,
                "convolution_in": op.m * op.k / 9, "convolution_out": op.m * op.n}  # fmt: skip
    if op.name == "noise":
        return {"noise": op.elements}
    if op.kind == "elementwise":
        return {"loop_start": 1, "loop_element": op.elements, "loop_flop": op.flops,
                "loop_transcendental": op.transcendentals, "loop_byte": op.bytes}  # fmt: skip
    if op.kind == "copy":
        copied = "rearranged_byte" if op.name in REARRANGED else "copy_byte"
        return {"copy_start": 1, "layer_byte" if op.name in LAYERS else copied: op.bytes}
    return {}  # the host's copies and collectives are no part of the step


def amounts(ops: Iterable[Op], frames: int = 0) -> dict[str, int | float]:
    """The features of all operations together, as often as they run; `frames` is 1 where they are
    those of a frame, and so follow each other in one call."""
    total: dict[str, int | float] = dict.fromkeys(PRICES, 0)
    total["launch"] = frames
    for op in ops:
        has = features(op)
        if frames and has:
            has |= {"cold_operation": 1, "cold_byte": op.bytes}
        for name, amount in has.items():
            total[name] += op.times * amount
    return total


def seconds(op: Op, chip: Chip) -> float:
    """Of all executions of an operation in a frame. Raises ValueError for a chip without prices."""
    has = amounts([op], frames=1) | {"launch": 0}
    return sum(chip[name] * amount for name, amount in has.items() if amount) * 1e-9


def frame_times(config: Config, chip: Chip, sessions: int = 1) -> tuple[Timed, ...]:
    """The stages of `stream.frame_step` and the call itself, with their seconds. A CPU takes the
    sessions one by one. Prices are of float32, in whatever the config computes."""
    apart, stages = not by_xla_alone(config.stream), []
    for stage in frame_work(config):
        ops = stack_ops(stage.stack, apart) if stage.stack else stage.ops
        if spent := {op.name: sessions * seconds(op, chip) for op in ops if features(op)}:
            stages.append(Timed(stage.name, spent))
    return (*stages, Timed("launch", {"launch": chip["launch"] * 1e-9}))


def frame_seconds(config: Config, chip: Chip, sessions: int = 1) -> float:
    """Of one `stream.frame_step` for so many sessions."""
    return sum(stage.total for stage in frame_times(config, chip, sessions))
