"""Rows of `lsd bench stack` for Trainium: the megakernel on a modelled clock, by cores."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape, attended_macs, dense_macs, least_bytes, stack_of
from nki_kernels.plan import LANE, Shapes
from nki_kernels.remember import kernel_of
from nki_kernels.sharing import share
from nki_kernels.sim import report
from nki_kernels.sim.errors import GenerationError
from nki_kernels.sim.run import run
from nki_kernels.sim.timeline import Timeline, schedule
from nki_kernels.sim.trace import Trace

LAYOUTS = (
    ("nki", 1, 1),
    ("nki-lnc2", 2, 2),
    ("nki", 2, 1),
    ("nki", 4, 1),
    ("nki", 8, 1),
    ("nki", 16, 1),
)
"""Rows: what they are called, how many cores share the work, how many of them act as one (LNC)."""


BOUNDS = {
    "pe": "MXU",
    "act": "vector",
    "dve": "vector",
    "pool": "vector",
    "dma": "HBM",
    "cc": "links",
}
"""What each lane of a timeline is to a planner; one that works less than half of the time bounds
nothing."""


LAST_OF_A_LAYER = "scalar_tensor_tensor"  # the MLP's share into the residual stream


def rows(
    config: Any, chip: Chip, layouts: tuple[tuple[str, int, int], ...] = LAYOUTS
) -> list[dict[str, Any]]:
    """One pass of all blocks over one frame, on 1 to 16 cores; a row says so where it does not fit.

    `config` is a `lsd_jax.config.Config`. Kind: modelled, by `sim.timeline` on the numbers of
    `chip`, in bfloat16. `us_low` and `us_high` are the edges of those numbers' uncertainty;
    `us_serial` is the time of the same instructions one after the other. `frame_us` adds up the
    passes and the one that commits, without what XLA does around them; `floor_us` is what
    `least_macs` at the tensor engine's peaks, or `least_bytes` at HBM's bandwidth, take.
    """
    found = []
    for impl, ranks, together in layouts:
        if together > chip["physical_cores_per_logical"]:
            continue
        try:
            shapes, last = (
                shapes_of(config.model, chip, ranks, together, config.stream.weight_dtype, commit)
                for commit in (False, True)
            )
            shown = report.figures([trace(shapes, chip)], chip)
            commit = schedule([trace(last, chip)], chip)[0]
        except NotImplementedError as refusal:
            found.append(refused(impl, chip, ranks, str(refusal)))
            continue
        launch_us = chip["launch_ns"] / 1e3
        frame_us = config.stream.passes * shown["us"] + commit.total_ns / 1e3
        found.append({
            "impl": impl, "chip": chip.name, "kind": "modelled", "cores": ranks,
            "floor_us": 1e6 * max(
                least_seconds(shapes.stack, chip),
                least_bytes(shapes.stack) / chip["hbm_bandwidth"],
            ),
            "mxu_busy": shown["pe_busy"], "vmem_peak_bytes": None, "launches": 1, "libtpu": None,
            "over_serial": shown["us_serial"] / shown["us"],
            "frame_us": frame_us, "frame_us_with_launch": frame_us + launch_us, **shown,
        })  # fmt: skip
    return found


def least_seconds(stack: StackShape, chip: Chip) -> float:
    """Of all multiply-adds of a pass at the tensor engine's peak."""
    dense = chip["pe_flops_fp8" if stack.weight_dtype else "pe_flops_bf16"]
    return 2 * (dense_macs(stack) / dense + attended_macs(stack) / chip["pe_flops_bf16"])


def stack_seconds(stack: StackShape, chip: Chip, ranks: int) -> tuple[float, str, str]:
    """The megakernel's modelled time on so many cores, what bounds it, and how; see
    `lsd_jax.hw.plan.KERNELS`. Raises NotImplementedError where the kernel refuses the shape.

    Layers are alike: each adds as much as passes between the ends of the first and the second. So
    two are timed for all, and one more of a stack that writes a ring, whose last layer is less than
    one.
    """
    limit = int(chip["sbuf_bytes_per_partition"])
    shapes = share(replace(stack, sessions=1), ranks, sbuf_bytes=limit)
    each, others, timed = layer_and_others_ns(shapes, chip)
    lane = max(BOUNDS, key=lambda lane: timed.busy_ns[lane])
    bound = BOUNDS[lane] if 2 * timed.busy_ns[lane] > timed.total_ns else "latency"
    how = f"stack by the megakernel on {ranks} core{'s' * (ranks > 1)}"
    return stack.sessions * (others + stack.layers * each) * 1e-9, bound, how


def layer_and_others_ns(shapes: Shapes, chip: Chip) -> tuple[float, float, Timeline]:
    """Nanoseconds of any layer of a stack, and those that the ends of it take more or, if negative,
    less; with the timeline of a few layers that says so."""
    layers = 3 if shapes.ring else 2
    timed = layers_timed(replace(shapes, layers=layers), chip)
    ends = [span.end for span in timed.spans if span.op == LAST_OF_A_LAYER]
    each = ends[-1] - ends[len(ends) // 2 - 1]
    return each, timed.total_ns - layers * each, timed


@lru_cache(maxsize=1024)
def layers_timed(shapes: Shapes, chip: Chip) -> Timeline:
    """The timeline of a stack."""
    collected = gc.isenabled()
    gc.disable()  # all of a trace is in use: looking for garbage in it takes a third of the time
    try:
        return schedule([trace(shapes, chip)], chip)[0]
    finally:
        if collected:
            gc.enable()


def refused(impl: str, chip: Chip, ranks: int, why: str) -> dict[str, Any]:
    """A row that has the keys of the others, none of their figures, and the reason."""
    empty = dict.fromkeys((
        "cycles", "us", "floor_us", "mxu_busy", "hbm_bytes", "vmem_peak_bytes", "launches",
        "libtpu", "us_low", "us_high", "us_serial", "over_serial", "frame_us",
        "frame_us_with_launch", "pe_busy", "act_busy", "dve_busy", "pool_busy", "dma_busy",
        "cc_busy", "mfu", "mbu", "table_loads", "instructions", "critical_path_us", "operations",
    ))  # fmt: skip
    return {"impl": impl, "chip": chip.name, "kind": "modelled", "cores": ranks, **empty,
            "refused": why}  # fmt: skip


def shapes_of(
    model: Any,
    chip: Chip,
    ranks: int = 1,
    cores: int = 1,
    weight_dtype: str = "",
    commit: bool = False,
) -> Shapes:
    """The sizes of one pass of a `lsd_jax.config.ModelConfig`, in bfloat16: of one that denoises,
    or of the one that commits a frame, which writes the ring."""
    limit = int(chip["sbuf_bytes_per_partition"])
    stack = stack_of(model, "bfloat16", commit=commit, weight_dtype=weight_dtype)
    shapes = share(stack, ranks, cores, sbuf_bytes=limit)
    return replace(shapes, ring=model.keys) if commit else shapes


def trace(shapes: Shapes, chip: Chip) -> Trace:
    """The instructions of one core, without numerics. Raises NotImplementedError where the chip's
    generation lacks one of them."""
    kernel = kernel_of(shapes)[shapes.cores]
    ranks = 1 if shapes.cores > 1 else shapes.ranks
    try:
        done = run(kernel, arguments(shapes), chip, numerics=False, ranks=ranks)
    except GenerationError as error:
        raise NotImplementedError(str(error)) from error
    return done.traces[0]


def arguments(shapes: Shapes) -> list[np.ndarray]:
    """Arguments of the kernel on one rank, `denoise_stack.body` names them: of the shapes and
    dtypes that `pack` gives them, without JAX, and without their memory."""
    stack, layers, sessions, tokens = shapes.stack, shapes.layers, shapes.sessions, shapes.tokens
    across, width = shapes.dim // LANE, shapes.cores * shapes.width

    def of(*sizes: int, dtype: str = stack.dtype) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), sizes)

    blocks = (shapes.cores, layers, shapes.first_block["end"], LANE, shapes.block)
    buffer = of(layers, sessions, shapes.keys, width)
    ages = of(layers, shapes.ages, width)
    found = [
        of(sessions, LANE, across, tokens, dtype="float32"),
        of(*blocks, dtype=stack.weight_dtype or stack.dtype),
        *(buffer, buffer),
        of(sessions, LANE, len(shapes.buffer_pieces) or 1, dtype="float32"),
        of(sessions, shapes.ages, shapes.slots or 1, LANE),
        *(ages, ages),
        of(layers, LANE, shapes.scales, dtype="float32"),
        of(layers, stack.modulations, LANE, 6, across, dtype="float32"),
        of(2, LANE, tokens),
        of(LANE, LANE),
    ]
    if shapes.ring:
        ring = of(layers, sessions, shapes.ring, width)
        found += [ring, ring, of(1, sessions * shapes.places, dtype="int32")]
    return found
