"""Rows of `lsd bench` for TPUs: the seam by each implementation, compiled by the real compiler."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lsd_jax.hw.chips import Chip, cores_of_device
from lsd_jax.hw.plan import all_reduce_seconds, shared_by
from lsd_jax.hw.stack import StackShape, least_bytes, share, streamed_stack
from pallas_kernels import aot
from pallas_kernels.tpu.cost import cost, least_cycles, total
from pallas_kernels.tpu.plan import Plan, filling
from pallas_kernels.tpu.planner import choose, choose_cycles, choose_for, fastest
from pallas_kernels.tpu.schedule import Combine, program

IMPLEMENTATIONS = ("pallas", "xla", "xla-scan")
SHARED_BY = (2, 4, 8)  # chips
STACK = "pallas_kernels.tpu.cases:stack"
PROFILED_CYCLES = {1024: 800_000, math.inf: 200_000}
"""Modelled ones, by most tokens: what the compiler's profiler simulates in some 7 GB. It keeps
every instruction that it has run, 9 kB a cycle of `base`, some 40 of `lucy_v6e`."""
PROFILED_PATCHES = {"pallas": 1024, "xla": 256}  # of a picture, beyond which it is not profiled
TOO_MANY = "no cycles: of so many patches the compiler's profile would take more than 7 GB"
TOO_LONG = "no cycles: the compiler's profile of one layer would take more than 7 GB"
NO_PROFILE = "it compiles, but the compiler's profiler stops at one of its operations: no cycles"


REGISTER = 8 * 128  # numbers; an operation on fewer is bookkeeping
PLACED = {"arguments": [True, True, False, False], "outputs": [True, False]}
"""Of `frame_step`, what lies as its compiler likes: model and state, not pictures and controls."""


def frame_rows(config: Any, chip: Chip, case: str) -> list[dict]:
    """`stream.frame_step` of a `lsd_jax.config.Config`, one session, its state donated, model and
    state laid out as a stream does, by the kernels and by the specification, which scans over
    layers.

    `case` is the frame as `aot.compile_for` takes it, with options `implementation` and `config`.
    `operations` counts those in the program, `launches` those of a loop in each of its turns.

    Raises ValueError where neither compiles.
    """
    rows: list[dict[str, Any]] = []
    for name, implementation in (("pallas", "pallas"), ("xla-scan", "xla")):
        row = {"impl": name, "chip": chip.name, "kind": "compiled", "libtpu": aot.libtpu_version()}
        options = {"implementation": implementation, "config": asdict(config)}
        try:
            found = aot.compile_for(chip.name, case, options, free=PLACED, profile=False)
        except ValueError as refusal:
            rows.append(row | {"note": str(refusal)})
            continue
        few = len(small(found.described))
        rows.append(
            row
            | {
                "hbm_bytes": found.argument_bytes + found.output_bytes - found.alias_bytes,
                "launches": found.launches,
                "kernels": found.kernels,
                "vmem_peak_bytes": found.vmem_bytes,
                "alias_bytes": found.alias_bytes,
                "code_bytes": found.code_bytes,
                "plan": f"{found.kernels} kernels among {len(found.operations)} operations, "
                f"{few} of them on no more than a register, {found.launches} launches; "
                f"{found.alias_bytes / 1e6:.1f} MB of state updated in place",
                "note": "no cycles: the compiler's profiler stops at some of its operations",
                "operations": len(found.operations),
                "small_operations": few,
                "described": found.described,
            }
        )
    if all("launches" not in row for row in rows):
        raise ValueError("; ".join(row["note"] for row in rows))
    if "described" in rows[0]:
        rows[0]["note"] = "\n".join([rows[0]["note"], *listed(rows[0]["described"])])
    return rows


def pixel_rows(config: Any, chip: Chip, case: str) -> list[dict]:
    """`embed` and `readout` of a `lsd_jax.config.Config`, one session, each by the kernel and by
    XLA; `case` as in `frame_rows`, with an option `op` beside. Pictures of many patches are
    compiled without a profile, which would take too much memory.

    Raises ValueError where nothing compiles.
    """
    rows = []
    for op in ("embed", "readout"):
        for implementation in ("pallas", "xla"):
            row: dict[str, Any] = {"impl": f"{op} {implementation}", "chip": chip.name}
            row |= {"kind": "compiled", "libtpu": aot.libtpu_version()}
            options = {"op": op, "implementation": implementation, "config": asdict(config)}
            profile = config.model.tokens <= PROFILED_PATCHES[implementation]
            try:
                found = aot.compile_for(chip.name, case, options, profile=profile)
            except ValueError as refusal:
                rows.append(row | {"note": str(refusal)})
                continue
            note = None if found.cycles else no_profile(found) if profile else TOO_MANY
            moved = found.argument_bytes + found.output_bytes
            row |= {"hbm_bytes": moved, "launches": found.launches, "cycles": found.cycles}
            row |= {"vmem_peak_bytes": found.vmem_bytes}
            row |= {"us": found.cycles and aot.time_us(found.cycles, moved, chip)}
            rows.append(row | {"note": note})
    if all("launches" not in row for row in rows):
        raise ValueError("; ".join(row["note"] for row in rows))
    return rows


def small(described: dict[str, str]) -> list[str]:
    """The names of operations that make no more than a register of 8 x 128 numbers: scalars, ages,
    keys of a random generator."""

    def largest(text: str) -> int:
        shapes = re.findall(r"\w\[([\d,]*)\]", text)
        return max((math.prod(int(n) for n in s.split(",") if n) for s in shapes), default=0)

    return [name for name, text in described.items() if largest(text) <= REGISTER]


def listed(described: dict[str, str]) -> list[str]:
    """What a program launches beside bookkeeping, a line each, in its order."""
    bookkeeping = set(small(described))
    return [f"  {name}: {text}" for name, text in described.items() if name not in bookkeeping]


def stack_rows(config: Any, chip: Chip) -> list[dict]:
    """`ops.denoise_stack` of a `lsd_jax.config.Config`, one session, one row an implementation, one
    for the megakernel on all cores of a chip that are one device, and one for each number of chips,
    `cores`, that can share it, one core of each.

    A figure that the compiler does not give is None, and `note` says why; `kinds` names the figures
    of a row that are not of its `kind`: bytes and VMEM of the kernel are its plan's. Raises
    ValueError where nothing can be compiled.
    """
    shape = streamed_stack(config)
    libtpu, rows = aot.libtpu_version(), []

    def add(figures: Callable[..., dict], implementation: str, *how: Any, **named: Any) -> None:
        row = {"impl": implementation, "chip": chip.name, "kind": "compiled", "libtpu": libtpu}
        try:
            rows.append(row | named | figures(shape, chip, *how))
        except (NotImplementedError, ValueError) as refusal:
            rows.append(row | named | {"note": str(refusal)})

    for implementation in IMPLEMENTATIONS:
        add(_figures, implementation, implementation)
    if (cores := cores_of_device(chip)) > 1:
        add(core_figures, "pallas, one chip", cores, cores=cores)
    for chips in SHARED_BY:
        if not shape.heads % chips:
            add(shared_figures, "pallas", chips, cores=chips)
    if all("launches" not in row for row in rows):
        raise ValueError("; ".join(row["note"] for row in rows))
    return rows


def stack_seconds(shape: StackShape, chip: Chip, ranks: int) -> tuple[float, str, str]:
    """The megakernel's time by its own cost model, what bounds it, and its plan; see
    `lsd_jax.hw.plan.KERNELS`. Raises NotImplementedError where the kernel refuses the shape.
    """
    devices, cores = shared_by(chip, ranks)
    chosen = (choose_for if cores == 1 else fastest)(shape, chip, devices)
    bound = "HBM" if chosen.total.compute_cycles < chosen.total.cycles else "MXU"
    seconds = float(chosen.total.cycles) / chip["clock"]
    links = link_seconds(shape, chip, devices)
    return (
        seconds + links,
        "links" if links > seconds else bound,
        f"stack by the megakernel: {chosen.plan.describe()}",
    )


def stacks_seconds(shapes: list[StackShape], chip: Chip, ranks: int = 1) -> np.ndarray:
    """`stack_seconds` of many stacks shared by so many cores, infinity where the kernel refuses."""
    devices, cores = shared_by(chip, ranks)
    links = [link_seconds(shape, chip, devices) for shape in shapes]
    cycles = choose_cycles(shapes, chip, devices)
    if devices == 1 and cores > 1:
        cycles = np.minimum(cycles, choose_cycles(shapes, chip, cores=cores))
    return cycles / chip["clock"] + np.array(links)


def link_seconds(shape: StackShape, chip: Chip, chips: int) -> float:
    """`all_reduce_seconds` of all rows of the megakernel."""
    rows = replace(shape, tokens=shape.tokens + filling(shape, chips))
    return all_reduce_seconds(rows, chip, chips)


def shared_figures(shape: StackShape, chip: Chip, chips: int) -> dict[str, Any]:
    """Of the megakernel on several chips: compiled for all of them, which says that it is legal and
    fits; and one chip's share by itself, since the compiler's profiler stops at copies between
    chips. What the links take is modelled beside it, as if nothing hid it."""
    plan = choose(shape, chip.name, chips).plan
    options = {"implementation": "pallas", **asdict(shape)}
    found = aot.compile_for(chip.name, STACK, options, profile=False, chips=chips)
    alone = _figures(plan.shape, chip, "pallas", plan)
    added = float(cost(Combine("mlp"), plan, chip).cycles)
    added_us = 1e6 * 2 * shape.layers * added / chip["clock"]
    links_us = 1e6 * link_seconds(shape, chip, chips)
    known = {"launches": found.launches, "code_bytes": found.code_bytes}
    if "us" not in alone:
        return alone | known
    note = (
        f"cycles are of one chip's share, compiled alone; {added_us:.1f} us to add up and "
        f"{links_us:.1f} us of the links are modelled, and nothing hides them"
    )
    kinds = alone["kinds"] | {"us": "modelled"}
    us = alone["us"] + added_us + links_us
    return alone | known | {"us": us, "kinds": kinds, "note": note}


def no_profile(found: aot.Compiled) -> str:
    """The note of a row without cycles."""
    return NO_PROFILE + (f" ({found.no_profile})" if found.no_profile else "")


def profiled_part(shape: StackShape, chip: Chip, plan: Plan | None) -> tuple[int, int]:
    """Of how many layers the compiler's profiler simulates a pass, and into how many parts of equal
    tiles it divides their heads and MLP features, to simulate one.

    All layers in one part, or as many as `PROFILED_CYCLES` allow, or a part of one; no part, 0, if
    none is small enough. `plan` has the megakernel's tiles; XLA's versions have none to divide.
    """
    most = next(cycles for tokens, cycles in PROFILED_CYCLES.items() if shape.tokens <= tokens)
    try:
        own = replace(plan or choose(shape, chip.name).plan, shape=shape, chips=1, cores=1)
        a_layer = total(program(own), own, chip).compute_cycles / shape.layers
    except NotImplementedError:  # XLA takes shapes that the megakernel refuses
        a_layer = least_cycles(shape, chip) / shape.layers
    if a_layer <= most:
        return min(shape.layers, int(most / a_layer)), 1
    tiles = math.gcd(plan.groups, plan.chunks) if plan else 1
    parts = [n for n in range(2, tiles + 1) if tiles % n == 0]
    return 1, next((n for n in parts if a_layer <= n * most), 0)


def compile_stack(
    shape: StackShape,
    chip: Chip,
    implementation: str,
    layers: int,
    parts: int,
    share_of: int = 1,
    cores: int = 1,
) -> aot.Compiled:
    """The seam, or one chip's share of it by itself; the megakernel on so many cores.

    If only so many `layers` of it are profiled, or one of so many `parts` of a layer, its cycles,
    and the launches and bytes of XLA's, are those times all layers and parts over them: a little
    too many, since what is paid once for a pass or a layer is then counted more often. Of no parts
    there are no cycles.
    """
    options = {"implementation": implementation, **asdict(shape)}
    options |= {"share_of": share_of} if share_of > 1 else {}
    options |= {"cores": cores} if implementation == "pallas" else {}
    if (layers, parts) == (shape.layers, 1):
        return aot.compile_for(chip.name, STACK, options)
    kernel = implementation == "pallas"
    if kernel and not parts:
        return aot.compile_for(chip.name, STACK, options, profile=False)
    part = replace(shape, layers=layers)
    fewer: dict[str, Any] = {"planned_layers": shape.layers}
    if parts > 1:
        part, fewer = share(part, parts), fewer | {"part_of": parts}
    some = aot.compile_for(chip.name, STACK, options | asdict(part) | fewer, profile=parts > 0)
    times = shape.layers / layers
    if not kernel:
        counted = ("launches", "argument_bytes", "output_bytes")
        scaled = {name: round(getattr(some, name) * times) for name in counted}
        return replace(some, cycles=some.cycles and round(some.cycles * times), **scaled)
    whole = aot.compile_for(chip.name, STACK, options, profile=False)
    cycles = some.cycles and round(some.cycles * times * parts)
    return replace(whole, cycles=cycles, no_profile=some.no_profile)


def core_figures(shape: StackShape, chip: Chip, cores: int) -> dict[str, Any]:
    """Of the megakernel on so many cores of one chip, compiled as it runs: what one of them does,
    with its copies of shares to HBM and back."""
    found = _figures(shape, chip, "pallas", choose(shape, chip.name, 1, cores).plan)
    note = "each core waits for the other for nothing, as cores in step do"
    return found | {"note": "; ".join(filter(None, [found.get("note"), note]))}


def _figures(
    shape: StackShape, chip: Chip, implementation: str, shared: Plan | None = None
) -> dict[str, Any]:
    """Of a stack; or of one chip's share of it by itself, or of one of several cores that share it,
    in the tiles of the plan `shared`."""
    plan = shared or (choose(shape, chip.name).plan if implementation == "pallas" else None)
    layers, parts = profiled_part(shape, chip, plan)
    chips, cores = (shared.chips, shared.cores) if shared else (1, 1)
    found = compile_stack(shape, chip, implementation, layers, parts, chips, cores)
    share_of_core = shared.shape if shared else shape
    least = least_cycles(share_of_core, chip)
    moved = found.argument_bytes + found.output_bytes
    if plan:
        moved = total(program(plan), plan, chip).hbm_bytes
    modelled: dict[str, str] = {}
    if plan:
        modelled |= {"hbm_bytes": "modelled", "vmem_peak_bytes": "modelled"}
    partly = (layers, parts) != (shape.layers, 1)
    if partly:
        modelled |= dict.fromkeys(("cycles", "us", "mxu_busy"), "modelled")
        if not plan:
            modelled |= dict.fromkeys(("launches", "hbm_bytes"), "modelled")
    known = {
        "kinds": modelled,
        "floor_us": aot.time_us(math.ceil(least), least_bytes(share_of_core), chip),
        "hbm_bytes": moved,
        "vmem_peak_bytes": plan.vmem_bytes if plan else None,
        "launches": found.launches,
        "code_bytes": found.code_bytes,
        "plan": plan.describe() if plan else None,
    }
    if found.cycles is None:
        return known | {"note": no_profile(found) if parts else TOO_LONG}
    if found.cycles < least:
        raise ValueError(
            f"the compiler's profile says {found.cycles:,} cycles, fewer than the {least:,.0f} "
            "that the multiply-adds alone take: it has miscounted a loop"
        )
    if plan and found.cycles / chip["clock"] < moved / chip["hbm_bandwidth"]:
        modelled["us"] = "modelled"  # the plan's bytes decide
    if partly:
        of_parts = f"one of {parts} parts of " if parts > 1 else ""
        some = f"{of_parts}{layers} of {shape.layers} layers"
        known["note"] = f"cycles of {some}, compiled, times the rest"
    return known | {
        "cycles": found.cycles,
        "us": aot.time_us(found.cycles, moved, chip),
        "mxu_busy": least / found.cycles,
    }
