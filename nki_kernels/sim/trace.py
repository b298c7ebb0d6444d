"""What a kernel did: instructions with their cost, and the regions they read and write.

Costs are written down as names of a chip's numbers, not as cycles, so that one trace can be timed
on the chip as it is, on either edge of its uncertainty, and on a recalibrated one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from lsd_jax.hw.chips import Chip
from nki_kernels.sim.tensor import Region

ENGINES = ("pe", "act", "dve", "pool", "sp")
NAMES = {
    "pe": "TensorE", "act": "ScalarE", "dve": "VectorE", "pool": "GpSimd", "sp": "SyncE",
    "dma": "DMA", "cc": "collectives",
}  # fmt: skip


class Cost(NamedTuple):
    """`elements * product(chip[rates]) + sum(chip[extras]) + cycles` cycles of the engine's clock,
    at least its issue interval, and `fixed` nanoseconds beside."""

    elements: float = 0.0
    rates: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    cycles: float = 0.0
    fixed: tuple[str, ...] = ()

    def cycles_on(self, chip: Chip) -> float:
        """Cycles of the engine, without the fixed nanoseconds."""
        scaled = self.elements
        for rate in self.rates:
            scaled *= chip[rate]
        total = scaled + sum(chip[extra] for extra in self.extras) + self.cycles
        return max(chip["issue_cycles"], total)

    def ns(self, chip: Chip, engine: str) -> float:
        """Nanoseconds for which the engine is busy."""
        return self.cycles_on(chip) * 1e9 / chip[f"{engine}_clock"] + sum(
            chip[name] for name in self.fixed
        )


@dataclass(frozen=True)
class Transfer:
    """What the DMA engines move: `rows` contiguous pieces of `row_bytes`."""

    rows: int
    row_bytes: int
    hbm_bytes: int  # that cross the HBM interface, reads and writes together
    share: str = ""  # number of the chip: the share of its bandwidth that such a transfer reaches

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Collective:
    """A step that all ranks (or both cores) take together."""

    fixed: str  # number of the chip, nanoseconds
    bytes_per_rank: int = 0
    ranks: int = 1

    def ns(self, chip: Chip) -> float:
        """`fixed + bytes * (n - 1) / n / (half of the link)`, a mesh inside one chip."""
        wire = self.bytes_per_rank * (self.ranks - 1) / self.ranks
        return chip[self.fixed] + wire * 1e9 / (
            chip["link_bandwidth"] * chip["collective_efficiency"]
        )


@dataclass(slots=True)
class Instruction:
    """One instruction of one engine."""

    op: str
    engine: str  # that executes it, or that issues the transfer
    cost: Cost
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    flops: int = 0  # of a matmul: 2 * K * M * N
    accumulates: bool = False
    table: str = ""  # ScalarE function set; empty: any will do
    transfer: Transfer | None = None
    collective: Collective | None = None
    after: tuple[int, ...] = ()  # numbers of instructions named by depends_on
    name: str = ""
    number: int = -1

    def depends_on(self, *producers: Instruction) -> Instruction:
        """Adds an order that the regions do not show."""
        self.after = (*self.after, *(p.number for p in producers))
        return self


@dataclass
class Trace:
    """The instructions of one core, in program order, and the storages they touch."""

    rank: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    lifetimes: dict[int, Lifetime] = field(default_factory=dict)

    def add(self, instruction: Instruction) -> Instruction:
        instruction.number = len(self.instructions)
        self.instructions.append(instruction)
        for region in (*instruction.reads, *instruction.writes):
            if region.storage in self.lifetimes:
                self.lifetimes[region.storage].touch(instruction.number)
        return instruction

    def peak_bytes_per_partition(self, buffer: str) -> tuple[int, list[str]]:
        """The most bytes of a partition of `buffer` alive at once, and the largest tensors then."""
        lives = [v for v in self.lifetimes.values() if v.buffer == buffer and v.first >= 0]
        changes: dict[int, int] = {}
        for life in lives:
            changes[life.first] = changes.get(life.first, 0) + life.bytes
            changes[life.last + 1] = changes.get(life.last + 1, 0) - life.bytes
        now = peak = when = 0
        for number in sorted(changes):
            now += changes[number]
            if now > peak:
                peak, when = now, number
        alive = sorted(
            (life for life in lives if life.first <= when <= life.last), key=lambda x: -x.bytes
        )
        return peak, [f"{life.name or 'unnamed'} {life.bytes} B" for life in alive[:8]]


@dataclass
class Lifetime:
    """From the first write of an on-chip storage to its last use, in program order."""

    name: str
    buffer: str
    bytes: int
    first: int = -1
    last: int = -1

    def touch(self, number: int) -> None:
        self.first = number if self.first < 0 else self.first
        self.last = number
