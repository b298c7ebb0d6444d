"""The planner's figure for a hundred thousand architectures at once.

A frame is a sum of stages, and each of them depends on a few sizes alone: so each combination of
those is planned once, by the planner's own functions. Stacks are timed at two depths, since their
layers are alike; a Trainium's by a closed form of the simulator's timeline.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lsd_jax.config import ModelConfig
from lsd_jax.hw import cpu, plan
from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape, stack_of
from lsd_jax.hw.work import (
    Stage,
    by_xla_alone,
    commit_ops,
    embed_ops,
    frame_work,
    readout_ops,
    stack_ops,
)
from lsd_jax.search.law import block_parameters
from lsd_jax.search.space import Candidates

DEPTHS = (2, 24)
CLOSED_FORMS = plan.ROUGH | {"tpu": "pallas_kernels.bench:stacks_seconds"}
"""By the chip's family: `module:f`, where `f(shapes, chip, ranks)` gives an array of seconds,
infinity where the kernel refuses."""


def frame_ms(found: Candidates, chip: Chip, ranks: int = 1) -> np.ndarray:
    """Milliseconds of one frame of one stream, of each candidate, shared by so many cores; infinity
    where its heads cannot be."""
    ms = np.full(len(found), np.inf)
    shared = plan.shareable(found.key_heads, found.mlp, chip, ranks)
    if shared.any():
        ms[shared] = _shared_ms(found.where(shared), chip, ranks)
    return ms


def _shared_ms(found: Candidates, chip: Chip, ranks: int) -> np.ndarray:
    dtype = found.base.stream.compute_dtype

    def timed(ops: Callable) -> Callable[[ModelConfig], float]:
        return lambda model: stage_seconds(Stage("", tuple(ops(model, 1, dtype))), chip, ranks)

    embed = by(found, ("dim", "patch"), timed(embed_ops))
    readout = by(found, ("dim", "patch"), timed(readout_ops))
    predict, _ = stacks(found, chip, ranks, commit=False)
    remember, by_kernel = stacks(found, chip, ranks, commit=True)
    written = ("layers", "key_heads", "head_dim", "patch", "sinks", "memory")
    commit = by(found, written, timed(commit_ops))
    if chip.family in plan.WRITE_THE_RING:
        less = by(found, written, timed(partial(commit_ops, written=True)))
        commit = np.where(by_kernel, less, commit)
    whole = found.passes * (embed + predict + readout) + embed + remember + commit
    return 1e3 * (whole + around(found, chip, ranks))


def around(found: Candidates, chip: Chip, ranks: int) -> float:
    """Seconds of the stages that all candidates share."""
    shared = ("host in", "encode", "decode", "host out")
    work = [stage for stage in frame_work(found.base) if stage.name in shared]
    launch = chip["launch" if chip.family == "cpu" else "launch_ns"]
    return sum(stage_seconds(stage, chip, ranks) for stage in work) + launch * 1e-9


def stage_seconds(stage: Stage, chip: Chip, ranks: int) -> float:
    """Of a stage without a kernel."""
    if chip.family == "cpu":
        return sum(cpu.seconds(op, chip) for op in stage.ops)
    return plan.stage_seconds(stage, chip, ranks)[0]


def by(found: Candidates, names: tuple[str, ...], seconds: Callable) -> np.ndarray:
    """`seconds(model)` for each candidate, computed once for those alike in these sizes."""
    models, where = alike(found, names)
    return np.array([seconds(model) for model in models])[where]


def alike(found: Candidates, names: tuple[str, ...]) -> tuple[list[ModelConfig], np.ndarray]:
    """A model for each combination of these sizes, and which of them stands for each candidate."""
    code = np.zeros(len(found), int)  # a number for each combination: rows are slow to sort
    for name in names:
        sizes, which = np.unique(getattr(found, name), return_inverse=True)
        code = code * len(sizes) + which
    _, first, where = np.unique(code, return_index=True, return_inverse=True)
    each = found.where(first)
    return [each.model(i) for i in range(len(each))], where


def stacks(
    found: Candidates, chip: Chip, ranks: int, commit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each candidate's denoise stack, and whether a kernel of ours computes it."""
    history = ("sinks",) if commit else ("window", "sinks", "memory")
    models, where = alike(found, ("dim", "heads", "per_kv", "head_dim", "mlp", "patch", *history))
    dtype, by_xla = found.base.stream.compute_dtype, by_xla_alone(found.base.stream)
    eight = found.base.stream.weight_dtype
    shapes = [stack_of(model, dtype, commit=commit, weight_dtype=eight) for model in models]
    deep = [[replace(shape, layers=depth) for shape in shapes] for depth in DEPTHS]
    low, high = (kernel_seconds(each, chip, ranks, by_xla) for each in deep)
    taken = np.isfinite(low)
    doubtful = taken & ~np.isfinite(high)
    high[doubtful] = low[doubtful]
    for i in np.flatnonzero(~taken):
        low[i], high[i] = (xla(each[i], chip, ranks, by_xla) for each in deep)
    each = (high - low) / (DEPTHS[1] - DEPTHS[0])
    seconds = low[where] + (found.layers - DEPTHS[0]) * each[where]
    for i in np.flatnonzero(doubtful):  # the kernel takes some depths, and refuses others
        own = np.flatnonzero(where == i)
        layers = found.layers[own].tolist()
        exact = {n: one(replace(shapes[i], layers=n), chip, ranks) for n in set(layers)}
        seconds[own] = [exact[n] for n in layers]
    return seconds, taken[where]


def one(shape: StackShape, chip: Chip, ranks: int) -> float:
    """Seconds of one stack, by whoever takes it."""
    kernel = float(kernel_seconds([shape], chip, ranks)[0])
    return kernel if np.isfinite(kernel) else xla(shape, chip, ranks)


def kernel_seconds(shapes: list[StackShape], chip: Chip, ranks: int, by_xla: bool = False) -> Any:
    """Seconds of stacks by a kernel of ours, infinity where there is none, it refuses, or XLA is
    asked for."""
    if by_xla or chip.family not in CLOSED_FORMS:
        return np.full(len(shapes), np.inf)
    return pkgutil.resolve_name(CLOSED_FORMS[chip.family])(shapes, chip, ranks)


def xla(shape: StackShape, chip: Chip, ranks: int, by_xla: bool = False) -> float:
    """Seconds of a stack by XLA; a CPU takes its layers apart unless plain XLA is asked for."""
    if chip.family == "cpu":
        return sum(cpu.seconds(op, chip) for op in stack_ops(shape, apart=not by_xla))
    return plan.xla_seconds(shape, chip, ranks, "")[0]


def room(chip: Chip, ranks: int = 1) -> float:
    """Bytes of the memory of so many cores that a stream may fill."""
    return plan.RESERVE * ranks * plan.memory_bytes(chip)


def held_bytes(found: Candidates, sessions: int) -> np.ndarray:
    """Of each candidate's weights and the states of so many sessions."""
    stream = found.base.stream
    size = np.dtype(stream.compute_dtype).itemsize
    saved = size - np.dtype(stream.weight_dtype or stream.compute_dtype).itemsize
    state = 2 * found.layers * found.keys * found.key_heads * found.head_dim * sessions
    return size * (found.parameters + state) - saved * block_parameters(found)
