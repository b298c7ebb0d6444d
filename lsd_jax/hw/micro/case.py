"""What is timed, and what came of it: a `Case` in, a `Measurement` out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["measured", "compiled", "modelled"]
Method = Literal["loop", "call", "step", "send", "fetch", "compile"]


@dataclass(frozen=True)
class Operation:
    """What is timed, at one shape.

    Attributes:
        suite: the group by which it is chosen.
        op: what is done, such as `matmul`; `name` adds dtype and sizes and is unique.
        shapes: sizes by name, in the order in which `name` gives them.
        dtype: of the operands, short: f32, bf16, f8, i8.
        operations: of arithmetic, a multiply-add counts as two.
        bytes: that have to move at least: each operand read once, each result written once.
    """

    suite: str
    op: str
    shapes: dict[str, int]
    dtype: str
    operations: int | float
    bytes: int | float

    @property
    def name(self) -> str:
        sizes = (f"{key}{value}" for key, value in self.shapes.items())
        return " ".join((self.op, self.dtype, *sizes))


@dataclass(frozen=True)
class Case(Operation):
    """An operation as a function that can be run or compiled.

    Attributes:
        function: of arrays, to arrays.
        arguments: shapes and dtypes of the arrays.
        method: `loop` times the function in a loop on the device; `call` one call from the host;
            `step` likewise, but the second argument is donated and taken from the result;
            `send` and `fetch` time its arguments' way to the device, or back; `compile` times how
            long it compiles.
    """

    function: Callable[..., Any] = field(compare=False)
    arguments: tuple[Any, ...] = field(compare=False)
    method: Method = "loop"


@dataclass(frozen=True)
class Measurement(Operation):
    """All that was seen of an operation: every sample in the order taken, none left out.

    Attributes:
        kind: who says so; figures of different kinds never share a file.
        samples: seconds of one operation. With the method `loop` each is the difference between a
            loop of `2 * turns` and one of `turns`, by `turns`.
        fastest: seconds by the fastest run alone, what the operation takes while nobody else uses
            the machine; of loops by their number of turns, so with its share of a call.
        cycles: of the chip's clock, where the kind knows them.
        refused: why there is no figure.
    """

    method: str
    kind: Kind
    chip: str
    versions: dict[str, str]
    commit: str | None
    samples: tuple[float, ...] = ()
    fastest: float | None = None
    turns: int = 1
    cycles: int | None = None
    refused: str | None = None

    @property
    def seconds(self) -> float:
        """By the fastest run; infinite where there is no figure."""
        return self.fastest or math.inf

    @property
    def p50(self) -> float:
        """Median of the samples, seconds."""
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        """The sample that 99 % are at most, seconds."""
        return sorted(self.samples)[math.ceil(0.99 * len(self.samples)) - 1]

    @property
    def max(self) -> float:
        """The slowest sample, seconds."""
        return max(self.samples)
