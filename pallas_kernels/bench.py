"""Rows of `lsd bench` for TPUs: the seam by each implementation, compiled by the real compiler."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape, least_bytes, least_macs, stack_of
from pallas_kernels import aot
from pallas_kernels.tpu.cost import total
from pallas_kernels.tpu.planner import choose, choose_cycles
from pallas_kernels.tpu.schedule import program

IMPLEMENTATIONS = ("pallas", "xla", "xla-scan")
NO_PROFILE = "it compiles, but the compiler's profiler stops at one of its operations: no cycles"


PLACED = {"arguments": [True, True, False, False], "outputs": [True, False]}
"""Of `frame_step`, what lies as its compiler likes: model and state, not pictures and controls."""


def frame_rows(config: Any, chip: Chip, case: str) -> list[dict]:
    """`stream.frame_step` of a `lsd_jax.config.Config`, one session, its state donated, model and
    state laid out as a stream does, by the kernels and by the specification, which scans over
    layers.

    `case` is the frame as `aot.compile_for` takes it, with options `implementation` and `config`.
    `operations` counts those in the program, `launches` those of a loop in each of its turns.

    Raises ValueError where it does not compile.
    """
    rows = []
    for name, implementation in (("pallas", "pallas"), ("xla-scan", "xla")):
        options = {"implementation": implementation, "config": asdict(config)}
        found = aot.compile_for(chip.name, case, options, free=PLACED)
        moved = found.argument_bytes + found.output_bytes - found.alias_bytes
        rows.append(
            {
                "impl": name,
                "chip": chip.name,
                "kind": "compiled",
                "cycles": found.cycles,
                "us": found.cycles and aot.time_us(found.cycles, moved, chip),
                "hbm_bytes": moved,
                "launches": found.launches,
                "kernels": found.kernels,
                "alias_bytes": found.alias_bytes,
                "code_bytes": found.code_bytes,
                "libtpu": found.libtpu,
                "plan": f"{found.kernels} megakernels among {len(found.operations)} operations, "
                f"{found.launches} launches; "
                f"{found.alias_bytes / 1e6:.1f} MB of state updated in place",
                "note": None if found.cycles else no_profile(found),
                "operations": len(found.operations),
                "cycles_of": found.operations,
                "described": found.described,
            }
        )
    return rows


def stack_rows(config: Any, chip: Chip) -> list[dict]:
    """`ops.denoise_stack` of a `lsd_jax.config.Config`, one session, one row an implementation.

    A figure that the compiler does not give is None, and `note` says why; `kinds` names the figures
    of a row that are not of its `kind`: bytes and VMEM of the kernel are its plan's. Raises
    ValueError where nothing can be compiled.
    """
    shape = stack_of(config.model, config.stream.compute_dtype)
    rows = []
    for implementation in IMPLEMENTATIONS:
        row: dict[str, Any] = {"impl": implementation, "chip": chip.name, "kind": "compiled"}
        row |= {"libtpu": aot.libtpu_version()}
        try:
            rows.append(row | _figures(shape, chip, implementation))
        except (NotImplementedError, ValueError) as refusal:
            rows.append(row | {"note": str(refusal)})
    if all("launches" not in row for row in rows):
        raise ValueError("; ".join(row["note"] for row in rows))
    return rows


def stack_seconds(shape: StackShape, chip: Chip, ranks: int) -> tuple[float, str, str]:
    """The megakernel's time by its own cost model, what bounds it, and its plan; see
    `lsd_jax.hw.plan.KERNELS`. Raises NotImplementedError where the kernel refuses the shape.
    """
    if ranks > 1:
        raise NotImplementedError("it runs on one core")
    chosen = choose(shape, chip.name)
    traffic = chosen.total.compute_cycles < chosen.total.cycles
    seconds = float(chosen.total.cycles) / chip["clock"]
    return (
        seconds,
        "HBM" if traffic else "MXU",
        f"stack by the megakernel: {chosen.plan.describe()}",
    )


def stacks_seconds(shapes: list[StackShape], chip: Chip) -> np.ndarray:
    """`stack_seconds` of many stacks on one core each, infinity where the kernel refuses."""
    return choose_cycles(shapes, chip) / chip["clock"]


def no_profile(found: aot.Compiled) -> str:
    """The note of a row without cycles."""
    return NO_PROFILE + (f" ({found.no_profile})" if found.no_profile else "")


def _figures(shape: StackShape, chip: Chip, implementation: str) -> dict[str, Any]:
    plan = choose(shape, chip.name).plan if implementation == "pallas" else None
    options = {"implementation": implementation, **asdict(shape)}
    found = aot.compile_for(chip.name, "pallas_kernels.tpu.cases:stack", options)
    least = least_macs(shape) / chip["macs_bf16"]
    moved = found.argument_bytes + found.output_bytes
    if plan:
        moved = total(program(plan), plan, chip).hbm_bytes
    modelled: dict[str, str] = {}
    if plan:
        modelled |= {"hbm_bytes": "modelled", "vmem_peak_bytes": "modelled"}
    known = {
        "kinds": modelled,
        "floor_us": aot.time_us(math.ceil(least), least_bytes(shape), chip),
        "hbm_bytes": moved,
        "vmem_peak_bytes": plan.vmem_bytes if plan else None,
        "launches": found.launches,
        "code_bytes": found.code_bytes,
        "plan": plan.describe() if plan else None,
    }
    if found.cycles is None:
        return known | {"note": no_profile(found)}
    if found.cycles < least:
        raise ValueError(
            f"the compiler's profile says {found.cycles:,} cycles, fewer than the {least:,.0f} "
            "that the multiply-adds alone take: it has miscounted a loop"
        )
    if plan and found.cycles / chip["clock"] < moved / chip["hbm_bandwidth"]:
        modelled["us"] = "modelled"  # the plan's bytes decide
    return known | {
        "cycles": found.cycles,
        "us": aot.time_us(found.cycles, moved, chip),
        "mxu_busy": least / found.cycles,
    }
