"""Refits a chip's numbers from a user's profile of the kernel that the timeline has modelled."""

from __future__ import annotations

from typing import Any

from lsd_jax.hw.chips import Chip, Number
from nki_kernels.sim.timeline import Timeline

# Keys of the summary to the lane of the timeline and the numbers that its busy time scales.
ENGINES = {
    "tensor_engine": ("pe", ("pe_clock",)),
    "vector_engine": (
        "dve",
        ("dve_copy_fp32", "dve_copy_bf16", "dve_copy_bf16_slow", "dve_tt_fp32", "dve_tt_bf16"),
    ),
    "scalar_engine": ("act", ("act_element",)),
    "gpsimd_engine": ("pool", ("pool_element", "pool_transcendental")),
    "dma": ("dma", ("hbm_bandwidth",)),
}


def refit(chip: Chip, modelled: Timeline, summary: dict[str, Any], source: str) -> Chip:
    """The chip with those numbers scaled by measured over modelled busy time.

    `summary` is what `neuron-profile view --output-format summary-json` writes for one kernel: a
    dict, or one under a single name, with `total_time` in seconds and, for each engine, either
    `<engine>_active_time` in seconds or `<engine>_active_time_percent` of the total. Rates fall as
    the busy time grows, costs rise. What comes out is `assumed`, since one busy time is shared out
    over several numbers by the model; `source` names the profile. The bands go with the old values.

    Raises ValueError where the summary has none of these, or one that cannot be.
    """
    if len(summary) == 1 and isinstance(inner := next(iter(summary.values())), dict):
        summary = inner
    total = _positive(summary, "total_time")
    changed = {}
    for engine, (lane, names) in ENGINES.items():
        measured_s = _active(summary, engine, total)
        modelled_s = modelled.busy_ns[lane] / 1e9
        if measured_s is None or not modelled_s:
            continue
        ratio = measured_s / modelled_s
        for name in names:
            number = chip.numbers[name]
            rate = number.unit.endswith("/s") or number.unit == "Hz"
            value = number.value / ratio if rate else number.value * ratio
            fit = f"fit of the {engine}'s busy time to {source}"
            changed[name] = Number(value, number.unit, fit, "assumed")
    if not changed:
        wanted = ", ".join(f"{engine}_active_time" for engine in ENGINES)
        raise ValueError(f"the profile has none of {wanted}, in seconds or as _percent")
    return chip.with_numbers(changed)


def _active(summary: dict[str, Any], engine: str, total: float) -> float | None:
    if f"{engine}_active_time" in summary:
        return _positive(summary, f"{engine}_active_time")
    if f"{engine}_active_time_percent" not in summary:
        return None
    percent = _positive(summary, f"{engine}_active_time_percent")
    if percent > 100:
        raise ValueError(f"the profile's {engine}_active_time_percent is {percent}")
    return total * percent / 100


def _positive(summary: dict[str, Any], key: str) -> float:
    value = summary.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"the profile's {key} is {value!r}; want a positive number of seconds")
    return float(value)
