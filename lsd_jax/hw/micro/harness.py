"""Runs cases one after the other into a log, and begins and ends with itself."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lsd_jax.hw.micro import log
from lsd_jax.hw.micro.case import Case, Kind, Measurement, Operation

Engine = Callable[[Case], dict]
"""Gives the fields of a measurement that it finds out; raises NotImplementedError or ValueError
with the reason where the case cannot be timed."""

SUITE = "harness"
_COPIED = (*(field.name for field in dataclasses.fields(Operation)), "method")


def run(
    cases: Iterable[Case],
    engine: Engine,
    kind: Kind,
    chip: str,
    versions: dict[str, str],
    commit: str | None,
    out: Path,
) -> list[Measurement]:
    """Times what `out` does not hold yet, and gives all that it then holds.

    Raises ValueError where `out` was begun on another chip, by another engine or other versions.
    An interruption loses only the case in hand.
    """
    from rich.progress import track

    blank = partial(Measurement, kind=kind, chip=chip, versions=versions, commit=commit)
    cases = list({case.name: case for case in cases}.values())
    like = blank(SUITE, "", {}, "", 0, 0, "")
    done = log.resume(out, like)
    known = {m.name for m in done}
    left = [case for case in cases if case.name not in known]
    for case in track(left, description=f"{kind} on {chip}", disable=not left):
        fields: dict[str, Any] = {field: getattr(case, field) for field in _COPIED}
        try:
            found = blank(**fields, **_short(engine(case)))
        except (NotImplementedError, ValueError, RuntimeError) as refusal:
            found = blank(**fields, refused=" ".join(str(refusal).split())[:300])
        log.append(out, found)
        done.append(found)
    return done


def _short(found: dict) -> dict:
    """Seconds to five digits: a clock does not know more, and a log of them is a third as long."""
    digits = {"samples": tuple(float(f"{s:.5g}") for s in found["samples"])}
    return found | digits | {"fastest": float(f"{found['fastest']:.5g}")}


def itself(times: int = 3) -> tuple[list[Case], list[Case]]:
    """What the harness measures of itself: before all cases an empty call, an empty turn and a
    product, and after them that product again, twice. They show its floor and its repeatability."""
    from lsd_jax.hw.micro.suites.machine import launch_case
    from lsd_jax.hw.micro.suites.matrices import matmul_case
    from lsd_jax.hw.micro.suites.vectors import elementwise_case

    def named(case: Case, op: str, **more: int) -> Case:
        return dataclasses.replace(case, suite=SUITE, op=op, shapes=case.shapes | more)

    again = [
        named(matmul_case("f32", 256, 256, 256), "repeated_matmul", time=i) for i in range(times)
    ]
    first = [
        named(launch_case(1), "empty_call"),
        named(elementwise_case("add", "f32", 1), "empty_turn"),
    ]
    return [*first, again[0]], again[1:]


def spread(found: Sequence[Measurement]) -> float | None:
    """By how much the medians of one case, taken at the beginning and the end of a run, differ:
    the largest less the smallest, by the smallest. None where it was not taken twice."""
    medians = [m.p50 for m in found if m.op == "repeated_matmul" and m.samples]
    return max(medians) / min(medians) - 1 if len(medians) > 1 and min(medians) > 0 else None


def device_name() -> str:
    """What computes here, as JAX calls it; a CPU by its maker's name and number of cores."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{_cpu()}, {_cores()} cores"


def memory_bytes() -> int | None:
    """Of the device, as JAX says, or of the machine for its CPU; None where neither says so."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    read = {key.strip(): value.strip() for key, value in known.items()}
    flags = set(read.get("flags", read.get("Features", "")).split())
    name = read.get("model name", platform.machine())
    vector = next((v for v in ("avx512f", "avx2", "sve", "neon", "asimd") if v in flags), "")
    return f"{name} {platform.machine()} {vector}".strip()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
