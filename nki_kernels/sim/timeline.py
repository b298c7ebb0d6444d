"""When each instruction of a trace runs: a modelled time, and what it went into.

Each engine takes its instructions in program order. One starts when its engine is free and what it
touches is ready:

* read after write: the producer's end, its engine's latency and, from another engine, a semaphore;
* write after write: likewise; on one engine the order is enough. So matmuls that accumulate into
  one tile follow each other without waiting for the latency;
* write after read: the reader's end.

A DMA costs its issuer some nanoseconds, then a fixed start, then as long as its rows take on the 16
DMA engines and its bytes take on the core's share of HBM, both of which queue in program order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from lsd_jax.hw.chips import Chip
from nki_kernels.sim.tensor import Region
from nki_kernels.sim.trace import Instruction, Trace

Order = Literal["overlapped", "serial"]
LANES = ("pe", "act", "dve", "pool", "sp", "dma", "cc")


class Queued(NamedTuple):
    """The share of a transfer that one of the DMA engines carries, in nanoseconds."""

    engines: np.ndarray  # their numbers
    starts: np.ndarray  # when each begins
    service: float  # how long each takes


@dataclass(slots=True)
class Span:
    """One instruction in time, nanoseconds. `lane` is where the work is done: an engine, `dma`
    or `cc` (collectives); `why` is the instruction that it waited for last, or -1; `queued` is
    what the DMA engines do of a transfer."""

    number: int
    op: str
    lane: str
    start: float
    end: float
    why: int = -1
    queued: Queued | None = None


@dataclass
class Timeline:
    """Modelled times of one core."""

    chip: Chip
    spans: list[Span]
    total_ns: float
    busy_ns: dict[str, float]
    flops: int
    hbm_bytes: int
    table_loads: int
    instructions: int

    def busy(self, lane: str) -> float:
        """Share of the total in which a lane works."""
        return self.busy_ns[lane] / self.total_ns if self.total_ns else 0.0

    @property
    def mfu(self) -> float:
        """Share of the tensor engine's bf16 peak that matmuls use: all of them, those of norms and
        rotations too, but no transposes."""
        return self.flops * 1e9 / (self.total_ns * self.chip["pe_flops_bf16"])

    @property
    def mbu(self) -> float:
        """Share of the core's HBM bandwidth that transfers use."""
        return self.hbm_bytes * 1e9 / (self.total_ns * self.chip["hbm_bandwidth"])

    def critical_path(self) -> dict[str, float]:
        """Nanoseconds of the path that decides the total, by lane; `wait` is latency and starts."""
        path = {lane: 0.0 for lane in LANES} | {"wait": 0.0}
        by_number = {span.number: span for span in self.spans}
        span = max(self.spans, key=lambda s: s.end, default=None)
        until = self.total_ns
        while span is not None:
            path["wait"] += max(0.0, until - span.end)
            path[span.lane] += max(0.0, min(until, span.end) - span.start)
            until = span.start
            span = by_number.get(span.why)
        path["wait"] += until
        return path


@dataclass(slots=True)
class _Access:
    """The last end of what engine did to a region, and by which instruction."""

    region: Region
    engine: str
    end: float  # when the engine is done with it
    ready: float  # when another may see the result
    number: int


@dataclass
class _Core:
    """The clocks of one core while its trace is laid out."""

    trace: Trace
    written: set[int]  # storages that something writes; reads of others hold nothing up
    queues: np.ndarray
    free: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    last: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, -1))
    hbm_free: float = 0.0
    writes: dict[int, list[_Access]] = field(default_factory=dict)
    reads: dict[int, dict[tuple[str, Region], _Access]] = field(default_factory=dict)
    ends: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LANES, 0.0))
    table: str = ""
    table_loads: int = 0
    next: int = 0


def schedule(
    traces: list[Trace], chip: Chip, order: Order = "overlapped", neighbours_idle: bool = False
) -> list[Timeline]:
    """Times the traces of cores that run together.

    Args:
        traces: of `run`.
        chip: whose numbers to take; `chip.at("fast")` and `chip.at("slow")` give the band.
        order: "serial" starts each instruction when the one before is over, the naive schedule.
        neighbours_idle: whether the core has its HBM stack for itself.
    """
    hbm = chip["hbm_bandwidth_alone" if neighbours_idle else "hbm_bandwidth"]
    engines = int(chip["dma_engines"])
    cores = [_Core(t, _written_storages(t), np.zeros(engines)) for t in traces]
    while any(core.next < len(core.trace.instructions) for core in cores):
        for core in cores:
            while core.next < len(core.trace.instructions):
                instruction = core.trace.instructions[core.next]
                if instruction.collective is not None:
                    break
                _place(core, instruction, chip, hbm, order)
        at_step = [c for c in cores if c.next < len(c.trace.instructions)]
        if at_step:
            _collective(at_step, chip, order)
    return [_finish(core, chip) for core in cores]


def _place(core: _Core, ins: Instruction, chip: Chip, hbm: float, order: Order) -> None:
    engine = ins.engine
    ready, why = _ready(core, ins, chip, order)
    start = max(ready, core.free[engine])
    if core.free[engine] >= ready:
        why = core.last[engine]
    duration = ins.cost.ns(chip, engine)
    if engine == "act" and ins.table and ins.table != core.table:
        duration += chip["act_table_load_ns"]
        core.table, core.table_loads = ins.table, core.table_loads + 1
    end = start + duration
    core.free[engine], core.last[engine] = end, ins.number
    core.busy[engine] += duration
    lane, begun, queued = engine, start, None
    if ins.transfer is not None:
        begun = end + chip["dma_start_ns"]
        end, queued = _transfer(core, ins, chip, hbm, begun)
        lane, visible = "dma", end + chip["semaphore_ns"]
    else:
        visible = end + chip[f"{engine}_latency"] * 1e9 / chip[f"{engine}_clock"]
    core.spans.append(Span(ins.number, ins.name or ins.op, lane, begun, end, why, queued))
    _remember(core, ins, lane, end, visible)


def _transfer(
    core: _Core, ins: Instruction, chip: Chip, hbm: float, begun: float
) -> tuple[float, Queued]:
    moved = ins.transfer
    assert moved is not None
    share = chip[moved.share] if moved.share else 1.0
    row_ns = max(chip["dma_row_ns"], moved.row_bytes * 1e9 / (chip["dma_engine_bandwidth"] * share))
    used = min(len(core.queues), moved.rows)
    service = moved.rows / used * row_ns
    chosen = np.argsort(core.queues, kind="stable")[:used]
    starts = np.maximum(core.queues[chosen], begun)
    core.queues[chosen] = starts + service
    end = float(core.queues[chosen].max())
    if moved.hbm_bytes:
        core.hbm_free = max(core.hbm_free, begun) + moved.hbm_bytes * 1e9 / hbm
        end = max(end, core.hbm_free)
    core.busy["dma"] += max(service * used / len(core.queues), moved.hbm_bytes * 1e9 / hbm)
    return end, Queued(chosen, starts, service)


def _collective(cores: list[_Core], chip: Chip, order: Order) -> None:
    """All of the cores have come to a step that they take together."""
    arrivals = []
    for core in cores:
        ins = core.trace.instructions[core.next]
        ready, why = _ready(core, ins, chip, order)
        arrivals.append((max(ready, core.free["cc"]), why))
    start = max(when for when, _ in arrivals)
    for core, (_, why) in zip(cores, arrivals, strict=True):
        ins = core.trace.instructions[core.next]
        assert ins.collective is not None
        end = start + ins.collective.ns(chip)
        core.free["cc"], core.last["cc"] = end, ins.number
        core.busy["cc"] += end - start
        core.spans.append(Span(ins.number, ins.op, "cc", start, end, why))
        _remember(core, ins, "cc", end, end + chip["semaphore_ns"])


def _ready(core: _Core, ins: Instruction, chip: Chip, order: Order) -> tuple[float, int]:
    """When what an instruction touches is ready, and the instruction that this hangs on."""
    if order == "serial":
        return (core.ends[-1], len(core.ends) - 1) if core.ends else (0.0, -1)
    ready, why, engine = 0.0, -1, ins.engine
    semaphore = chip["semaphore_ns"]
    for region in ins.reads:
        for access in core.writes.get(region.storage, ()):
            if access.region.overlaps(region):
                when = access.ready if access.engine == engine else access.ready + semaphore
                if when > ready:
                    ready, why = when, access.number
    for region in ins.writes:
        for access in core.writes.get(region.storage, ()):
            if access.region.overlaps(region):
                when = access.end if access.engine == engine else access.ready + semaphore
                if when > ready:
                    ready, why = when, access.number
        for access in core.reads.get(region.storage, {}).values():
            if access.region.overlaps(region):
                when = access.end if access.engine == engine else access.end + semaphore
                if when > ready:
                    ready, why = when, access.number
    for number in ins.after:
        if core.ends[number] > ready:
            ready, why = core.ends[number], number
    return ready, why


def _remember(core: _Core, ins: Instruction, lane: str, end: float, ready: float) -> None:
    core.next += 1
    core.ends.append(max(end, ready))
    for region in ins.writes:
        writes = [a for a in core.writes.get(region.storage, ()) if not region.covers(a.region)]
        writes.append(_Access(region, lane, end, ready, ins.number))
        core.writes[region.storage] = writes
        if reads := core.reads.get(region.storage):
            core.reads[region.storage] = {
                key: a for key, a in reads.items() if not region.covers(a.region)
            }
    for region in ins.reads:
        if region.storage in core.written:
            reads = core.reads.setdefault(region.storage, {})
            before = reads.get((lane, region))
            last = max(end, before.end) if before else end
            reads[lane, region] = _Access(region, lane, last, 0, ins.number)


def _written_storages(trace: Trace) -> set[int]:
    return {region.storage for ins in trace.instructions for region in ins.writes}


def _finish(core: _Core, chip: Chip) -> Timeline:
    instructions = core.trace.instructions
    return Timeline(
        chip,
        core.spans,
        max(core.ends, default=0.0),
        core.busy,
        sum(ins.flops for ins in instructions),
        sum(ins.transfer.hbm_bytes for ins in instructions if ins.transfer is not None),
        core.table_loads,
        len(instructions),
    )
