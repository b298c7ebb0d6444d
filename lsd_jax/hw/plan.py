"""Where the time of a frame goes on a chip, before anyone rents it: `lsd plan`.

The denoise stack takes what its kernel's own cost model says, through the entry points below, or
what XLA takes where the kernel refuses; everything else takes what `roofline` says. A CPU takes
what was measured on it (`cpu`). All figures are `modelled`.
"""

from __future__ import annotations

import math
import pkgutil
from dataclasses import dataclass, replace
from typing import Any

from lsd_jax.config import Config
from lsd_jax.hw import cpu, roofline
from lsd_jax.hw.chips import Chip, cores_of_device
from lsd_jax.hw.memory import Held, held
from lsd_jax.hw.stack import Size, StackShape
from lsd_jax.hw.work import (
    REMEMBERING,
    Stage,
    by_xla_alone,
    commit_ops,
    frame_work,
    stack_ops,
)

KERNELS = {
    "trainium": "nki_kernels.bench:stack_seconds",
    "tpu": "pallas_kernels.bench:stack_seconds",
}
"""By the chip's family, who times the stack: `module:f`, where `f(shape, chip, ranks)` gives
seconds, what bounds them, and how. It raises NotImplementedError where the kernel refuses."""

ROUGH = {"trainium": "nki_kernels.closed_form:stacks_seconds"}
"""Who says the same at next to no cost, of families whose kernel has to be simulated: `f(shapes,
chip, ranks)` gives an array of seconds, infinity where it does not know."""
ROUGH_ERROR = 0.2  # of a frame; more than has been seen, see docs/plan.md

WRITE_THE_RING = ("trainium",)
"""Families whose kernel remembers a frame all by itself, see `lsd_jax.ops.remember`."""

KIND = "modelled"
BY_XLA = "stack by XLA"
ROUGHLY = "stack by the megakernel, roughly"
RESERVE = 0.9  # of a chip's memory; the rest is code, fragments and the runtime's


@dataclass(frozen=True)
class StageTime:
    """A stage of the frame and what bounds it."""

    name: str
    ms: float
    bound_by: str
    kind: str = KIND


@dataclass(frozen=True)
class FramePlan:
    """A frame on so many cores: all figures are of all `sessions` together."""

    sessions: int
    ranks: int  # cores that share one stream
    stages: tuple[StageTime, ...]
    held: Held
    room_bytes: float  # of those cores
    notes: tuple[str, ...] = ()
    kind: str = KIND
    error: float = 0.0  # by which a rough plan may miss `ms`, as a share

    @property
    def ms(self) -> float:
        return sum(stage.ms for stage in self.stages)

    @property
    def picture_ms(self) -> float:
        """Until the picture is out; behind it the frame is remembered."""
        return sum(stage.ms for stage in self.stages if stage.name not in REMEMBERING)

    @property
    def range_ms(self) -> tuple[float, float]:
        """The least and the most that the exact plan can say."""
        return (1 - self.error) * self.ms, (1 + self.error) * self.ms

    @property
    def fits(self) -> bool:
        return self.held.total <= self.room_bytes


def plan_frame(
    config: Config, chip: Chip, ranks: int = 1, sessions: int = 1, rough: bool = False
) -> FramePlan:
    """One `stream.frame_step` for so many sessions, shared by the cores `ranks`.

    Heads and MLP are divided over the ranks, with two all-reduces a layer; the picture's rows in
    all other stages. A rough plan costs next to nothing on any chip, and knows its error; it does
    not know what bounds a stack. Raises ValueError where the heads cannot be divided.
    """
    model = config.model
    room = RESERVE * ranks * memory_bytes(chip)
    if chip.family == "cpu":
        if ranks > 1:
            raise ValueError(f"chip {chip.name} is planned as a whole; use --chips 1")
        times = tuple(
            StageTime(stage.name, 1e3 * stage.total, "as measured")
            for stage in cpu.frame_times(config, chip, sessions)
        )
        dtype = config.stream.compute_dtype
        notes = (f"prices are of float32, not of {dtype}",) if dtype != "float32" else ()
        return FramePlan(sessions, 1, times, held(config, sessions), room, notes)
    if ranks % cores_of_device(chip) and ranks > 1:
        raise ValueError(f"{ranks} cores are no whole devices of {cores_of_device(chip)} each")
    if not shareable(model.key_heads, model.mlp, chip, ranks):
        raise ValueError(
            f"{model.key_heads} heads of keys and {model.mlp} MLP features do not share {ranks} "
            "cores"
        )
    times, notes, stacks, by_xla = [], [], {}, by_xla_alone(config.stream)
    for stage in frame_work(config, sessions):
        if (stack := stage.stack) is not None:
            if stack not in stacks:
                stacks[stack] = stack_seconds(stack, chip, ranks, rough, by_xla)
            seconds, bound, note = stacks[stack]
            notes.append(note)
        else:
            if stage.name == "commit" and chip.family in WRITE_THE_RING and BY_XLA not in notes[-1]:
                written = commit_ops(model, sessions, config.stream.compute_dtype, written=True)
                stage = replace(stage, ops=tuple(written))
            seconds, bound = stage_seconds(stage, chip, ranks)
        times.append(StageTime(stage.name, 1e3 * seconds, bound))
    times.append(StageTime("launch", chip["launch_ns"] * 1e-6, "launch"))
    kept = held(config, sessions, by_kernel=not any(BY_XLA in note for note in notes))
    error = ROUGH_ERROR if any(ROUGHLY in note for note in notes) else 0.0
    notes = tuple(dict.fromkeys(notes))
    return FramePlan(sessions, ranks, tuple(times), kept, room, notes, error=error)


def stage_seconds(stage: Stage, chip: Chip, ranks: int) -> tuple[float, str]:
    """By the roofline, rows of the picture divided over the devices; kernels of pixels and the
    commit run on one core of each."""
    if all(op.kind == "host" for op in stage.ops):
        return sum(op.read_bytes for op in stage.ops) / chip["host_bandwidth"], "host"
    return bounded(stage, roofline.rates(chip), shared_by(chip, ranks)[0])


def bounded(stage: Stage, rates: roofline.Rates, ranks: int) -> tuple[float, str]:
    """Seconds of a stage's operations by the roofline, and what most of them are bound by."""
    spent: dict[str, float] = {}
    for op in stage.ops:
        seconds, bound = roofline.operation_seconds(op, rates)
        least = op.times * rates.operation_s
        spent[bound] = spent.get(bound, 0.0) + max(seconds / ranks, least)
    return sum(spent.values()), max(spent, key=lambda bound: spent[bound])


def stack_seconds(
    shape: StackShape, chip: Chip, ranks: int, rough: bool = False, by_xla: bool = False
) -> tuple[float, str, str]:
    """Of the denoise stack: seconds, what bounds it, and who computes it."""
    if by_xla:
        return xla_seconds(shape, chip, ranks, "as asked")
    if chip.family not in KERNELS:
        return xla_seconds(shape, chip, ranks, "there is no kernel of ours")
    if rough and chip.family in ROUGH:
        alone = replace(shape, sessions=1)
        seconds = float(pkgutil.resolve_name(ROUGH[chip.family])([alone], chip, ranks)[0])
        if math.isfinite(seconds):
            return shape.sessions * seconds, "", ROUGHLY
    try:
        return pkgutil.resolve_name(KERNELS[chip.family])(shape, chip, ranks)
    except NotImplementedError as refusal:
        return xla_seconds(shape, chip, ranks, f"the kernel refuses: {refusal}")


def xla_seconds(shape: StackShape, chip: Chip, ranks: int, why: str) -> tuple[float, str, str]:
    """Of the stack by plain XLA, and its all-reduces on several ranks."""
    stage = Stage("stack", tuple(stack_ops(shape)), shape)
    seconds, bound = bounded(stage, roofline.rates(chip), ranks)
    links = all_reduce_seconds(shape, chip, shared_by(chip, ranks)[0])
    bound = "links" if links > seconds else bound
    return seconds + links, bound, f"{BY_XLA} ({why})"


def all_reduce_seconds(shape: StackShape, chip: Chip, ranks: int) -> float:
    """Two all-reduces of the residual stream in each layer: a start, and each byte out twice but
    for a rank's own share, by all links of a chip (one way half of what they carry both ways)."""
    if ranks == 1:
        return 0.0
    size = shape.rows * shape.dim * shape.itemsize
    both_ways = "ici_bandwidth" in chip.numbers
    links = chip["ici_bandwidth"] / 2 if both_ways else chip["link_bandwidth"]
    start = chip["collective_ns" if "collective_ns" in chip.numbers else "all_reduce_ns"] * 1e-9
    return 2 * shape.layers * (start + 2 * size * (ranks - 1) / ranks / links)


def memory_bytes(chip: Chip) -> float:
    """Of a core."""
    for name in ("hbm_bytes_per_core", "hbm_bytes", "memory_bytes"):
        if name in chip.numbers:
            return chip[name]
    return float("inf")


def shared_by(chip: Chip, ranks: int) -> tuple[int, int]:
    """The devices, and the cores of each, that so many cores are: of a device all, or one."""
    cores = cores_of_device(chip)
    return (1, 1) if ranks == 1 else (-(-ranks // cores), cores)


def shares(chip: Chip, ranks: int) -> int:
    """The parts into which so many cores divide heads: one for each core of a device, or one for
    each of several devices."""
    devices, cores = shared_by(chip, ranks)
    return devices if devices > 1 else cores


def shareable(key_heads: Size, mlp: Size, chip: Chip, ranks: int) -> Any:
    """Whether so many cores can share blocks of these sizes: all of them divide the heads, and
    devices the MLP features, too (`stream.compile_stream`)."""
    devices, _ = shared_by(chip, ranks)
    return (key_heads % shares(chip, ranks) == 0) & (mlp % devices == 0)


def cores_per_chip(chip: Chip) -> int:
    """Cores of a chip; `chips.cores_of_device` says which of them a stream is given together."""
    return int(chip["cores_per_chip"]) if "cores_per_chip" in chip.numbers else 1
