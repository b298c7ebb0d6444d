"""`lsd bench`: cycles of a case on a chip, measured, compiled or modelled, and says which."""

from __future__ import annotations

import argparse
import importlib

CASES = {"stack": "ops.denoise_stack, all blocks of a frame's one pass"}

STACK = {
    "v": "pallas_kernels.bench:stack_rows",
    "tpu": "pallas_kernels.bench:stack_rows",
}
"""By the first letters of a chip's name, what computes its rows: `module:f`; `f(config, chip)`
gives a list of dicts with the keys of `ROW`. What is not known is left out, and `note` says why."""

ROW = {
    "impl": "impl",
    "chip": "chip",
    "kind": "kind",
    "cycles": "cycles",
    "us": "us",
    "floor_us": "floor us",
    "mxu_busy": "MXU busy",
    "hbm_bytes": "HBM bytes",
    "vmem_peak_bytes": "VMEM peak",
    "launches": "launches",
    "libtpu": "compiler",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", choices=CASES, help="what to time")
    parser.add_argument("--chip", required=True, help="such as v6e")
    parser.add_argument("--config", default="reference", help="a .py file or a shipped name")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from lsd_jax import config as configs
    from lsd_jax.hw import chips
    from lsd_jax.reports import provenance, write_json

    config = configs.override(configs.load(args.config), args.set)
    chip = chips.load(args.chip)
    target = next((t for prefix, t in STACK.items() if chip.name.startswith(prefix)), None)
    if target is None:
        raise ValueError(f"nothing here times {args.case} on {chip.name}")
    module, _, function = target.partition(":")
    with Console(stderr=True).status(f"{args.case} of {config.name} on {chip.name}"):
        rows = getattr(importlib.import_module(module), function)(config, chip)
    table = Table(title=f"{CASES[args.case]}: {config.name}")
    for heading in ROW.values():
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(readable(key, row.get(key)) for key in ROW))
    console = Console()
    console.print(table)
    for row in rows:
        for remark in filter(None, (row.get("plan"), row.get("note"))):
            console.print(f"{row['impl']}: {remark}", markup=False, highlight=False)
    rows = [dict.fromkeys(ROW) | row for row in rows]
    write_json(args.json, {"config": config.name, "rows": rows, **provenance()})


def readable(key: str, value) -> str:
    """A figure as people read it; a dash where it is not known."""
    if value is None:
        return "-"
    if key in ("us", "floor_us"):
        return f"{value:.1f}"
    if key == "mxu_busy":
        return f"{value:.0%}"
    if key.endswith("bytes"):
        return f"{value / 1e6:.1f} MB"
    return f"{value:,}" if isinstance(value, int) else str(value)
