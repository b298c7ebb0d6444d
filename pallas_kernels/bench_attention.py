"""Rows of `lsd bench attend` for TPUs: attention alone, and with its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape, attended_macs, streamed_stack
from pallas_kernels import aot
from pallas_kernels.bench import no_profile

CASE = "pallas_kernels.tpu.attention:attention"
IMPLEMENTATIONS = ("pallas", "splash", "xla")
PROFILED_CYCLES = 16_000  # of multiply-adds of the forward pass, beyond which heads are left out
PRODUCTS = {False: 2, True: 6}
"""Of queries with keys and their like, at least: forward, and with all gradients."""


def attention_rows(config: Any, chip: Chip, projection: str) -> list[dict]:
    """`ops.attend` of one session in one layer of a `lsd_jax.config.Config`, by each implementation
    and with its gradients; and XLA's projection in front of it, a case as `aot.compile_for` takes
    it, with norm and modulation and without, which says what fusing these by hand could save.

    What lies in HBM meanwhile, and what is moved there, is compiled for all heads. Of many heads
    only some are profiled and their cycles multiplied. Raises ValueError where nothing compiles.
    """
    shape = replace(streamed_stack(config), layers=1, weight_dtype="")
    rows, libtpu = [], aot.libtpu_version()

    def add(name: str, found: Callable[..., dict], *how: Any) -> None:
        row = {"impl": name, "chip": chip.name, "kind": "compiled", "libtpu": libtpu}
        try:
            rows.append(row | found(*how))
        except ValueError as refusal:
            rows.append(row | {"note": str(refusal)})

    for gradients in (False, True):
        for implementation in IMPLEMENTATIONS:
            name = f"{implementation}, gradients" if gradients else implementation
            add(name, figures, shape, chip, implementation, gradients)
    for modulated in (False, True):
        options = {"modulated": modulated, "config": asdict(config)}
        name = "xla, modulate and qkv" if modulated else "xla, qkv"
        add(name, projected, shape, chip, projection, options)
    if all("launches" not in row for row in rows):
        raise ValueError("; ".join(row["note"] for row in rows))
    return rows


def figures(shape: StackShape, chip: Chip, implementation: str, gradients: bool) -> dict[str, Any]:
    """Of one implementation."""
    options = {"implementation": implementation, "gradients": gradients}
    heads = profiled_heads(shape, chip)
    some = aot.compile_for(chip.name, CASE, options | asdict(replace(shape, heads=heads)))
    whole = some
    if heads < shape.heads:
        whole = aot.compile_for(chip.name, CASE, options | asdict(shape), profile=False)
    cycles = some.cycles and round(some.cycles * shape.heads / heads)
    least = PRODUCTS[gradients] / PRODUCTS[False] * attended_macs(shape) / chip["macs_bf16"]
    moved = whole.argument_bytes + whole.output_bytes
    modelled = ("cycles", "us", "mxu_busy") if heads < shape.heads else ()
    return {
        "kinds": dict.fromkeys(modelled, "modelled"),
        "cycles": cycles,
        "us": cycles and aot.time_us(cycles, whole.hbm_bytes, chip),
        "floor_us": aot.time_us(math.ceil(least), moved, chip),
        "mxu_busy": cycles and least / cycles,
        "hbm_bytes": whole.hbm_bytes,
        "temp_bytes": whole.temp_bytes,
        "vmem_peak_bytes": whole.vmem_bytes,
        "launches": whole.launches,
        "note": no_profile(some) if cycles is None else noted(heads, shape.heads),
    }


def projected(shape: StackShape, chip: Chip, case: str, options: dict) -> dict[str, Any]:
    """Of the projection."""
    found = aot.compile_for(chip.name, case, options)
    columns = (shape.per_kv + 2) * shape.heads * shape.head_dim
    least = shape.rows * shape.dim * columns / chip["macs_bf16"]
    moved = found.argument_bytes + found.output_bytes
    return {
        "cycles": found.cycles,
        "us": found.cycles and aot.time_us(found.cycles, found.hbm_bytes, chip),
        "floor_us": aot.time_us(math.ceil(least), moved, chip),
        "mxu_busy": found.cycles and least / found.cycles,
        "hbm_bytes": found.hbm_bytes,
        "temp_bytes": found.temp_bytes,
        "launches": found.launches,
        "note": no_profile(found) if found.cycles is None else None,
    }


def profiled_heads(shape: StackShape, chip: Chip) -> int:
    """Of how many heads the compiler's profiler simulates, which keeps all that it has run."""
    a_head = attended_macs(shape) / shape.heads / chip["macs_bf16"]
    return max(1, min(shape.heads, int(PROFILED_CYCLES / a_head)))


def noted(profiled: int, heads: int) -> str | None:
    """What a row says of heads that were not profiled."""
    if profiled == heads:
        return None
    return f"cycles of {profiled} of {heads} heads, compiled, times the rest"
