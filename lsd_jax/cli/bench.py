"""`lsd bench`: cycles of a case on a chip, measured, compiled or modelled, and says which."""

from __future__ import annotations

import argparse
import pkgutil

from lsd_jax.cli import bench_micro

CASES = {
    "stack": "ops.denoise_stack, all blocks of a frame's one pass",
    "frame": "stream.frame_step, from pixels to pixels",
    "pixels": "embed and readout of a frame, each alone",
    "attend": "ops.attend, attention of one layer of a frame, alone and with its gradients",
    "calibrate": "a Trainium model against published points; with --profile, refit from it",
    "micro": "single operations into a log: measured here or, with --chip, compiled or modelled",
    "fit": "a chip model from a log of measurements",
    "compare": "two logs of one chip and kind, with significance",
}

ROWS = {
    "stack": {
        "trainium": "nki_kernels.bench:rows",
        "tpu": "pallas_kernels.bench:stack_rows",
    },
    "frame": {"tpu": "lsd_jax.cli.bench_cases:frame_rows"},
    "pixels": {"tpu": "lsd_jax.cli.bench_cases:pixel_rows"},
    "attend": {"tpu": "lsd_jax.cli.bench_cases:attend_rows"},
}
"""By the case and the chip's family, what computes its rows: `module:f`, where `f(config, chip)`
gives a list of dicts with the keys of `ROW`. What is not known is None or left out, and `note` says
why; `kinds` has the kind of each figure that is not of the row's; one that `refused` has no
figures."""

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

EXTRA = {
    "temp_bytes": "HBM between operations",
    "cores": "cores",
    "operations": "operations",
    "us_low": "us, fast edge",
    "us_high": "us, slow edge",
    "us_serial": "us, one by one",
    "over_serial": "overlap gains",
    "frame_us": "us, all passes",
    "critical_path_us": "critical path",
    "pe_busy": "TensorE",
    "act_busy": "ScalarE",
    "dve_busy": "VectorE",
    "pool_busy": "GpSimd",
    "dma_busy": "DMA",
    "cc_busy": "collectives",
    "mfu": "MFU",
    "mbu": "MBU",
    "table_loads": "table loads",
    "instructions": "instructions",
}
"""What only some chips' rows have; shown where one does."""


ON_LOGS = {
    "micro": bench_micro.micro,
    "fit": bench_micro.fit,
    "compare": bench_micro.compare,
}
"""Cases about logs of measurements; each takes the arguments and gives its report."""

TAKES = {
    **dict.fromkeys(ROWS, ("chip", "config", "set")),
    "calibrate": ("chip", "config", "set", "profile", "out", "cores", "lnc"),
    "calibrate without --profile": ("chip",),
    "micro": ("chip", "out", "suite", "quick", "report", "devices"),
    "fit": ("out",),
    "compare": (),
}
"""By the case, the options that it takes; beside them each takes `--json`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("case", choices=CASES, help="what to time")
    parser.add_argument("--chip", help="such as v6e, or a path ending in .json")
    parser.add_argument("--config", help="a .py file or a shipped name; default: reference")
    parser.add_argument(
        "--profile",
        metavar="SUMMARY.json",
        help="calibrate: by neuron-profile; a manifest of `lsd export` beside it says the chip",
    )
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="micro: the log; calibrate, fit: where the chip goes"
    )
    parser.add_argument(
        "--cores", type=int, help="calibrate: that the profile ran on; default: --lnc"
    )
    parser.add_argument(
        "--lnc", type=int, help="calibrate: how many of these act as one (LNC), 1 or 2; default: 1"
    )
    bench_micro.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from lsd_jax.cli.calibrate import complete
    from lsd_jax.reports import write_json

    only_what_it_takes(args)
    if args.case in ON_LOGS:
        write_json(args.json, ON_LOGS[args.case](args))
        return
    if args.case == "calibrate":
        complete(args)
    if args.chip is None:
        raise ValueError(f"{args.case} needs --chip, such as v6e")
    if args.files:
        raise ValueError(f"{args.case} takes no file: {args.files[0]}")
    args.config = "reference" if args.config is None else args.config
    args.lnc = 1 if args.lnc is None else args.lnc
    _on_a_chip(args)


def only_what_it_takes(args: argparse.Namespace) -> None:
    """Raises ValueError for options that the case would ignore."""
    alone = args.case == "calibrate" and not args.profile
    case = "calibrate without --profile" if alone else args.case
    takes = TAKES[case]
    others = {name for names in TAKES.values() for name in names} - set(takes)
    if odd := [name for name in sorted(others) if vars(args)[name] not in (None, [])]:
        no, only = (", ".join(f"--{name}" for name in names) for names in (odd, takes))
        raise ValueError(f"{case} takes no {no}; it takes {only or 'two logs alone'}")


def _on_a_chip(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from lsd_jax import config as configs
    from lsd_jax.cli.calibrate import calibrate
    from lsd_jax.hw import chips
    from lsd_jax.reports import provenance, write_json

    config = configs.override(configs.load(args.config), args.set)
    chip = chips.load(args.chip)
    if args.case == "calibrate":
        write_json(args.json, calibrate(args, config, chip) | provenance())
        return
    if chip.family not in ROWS[args.case]:
        raise ValueError(f"nothing here times {args.case} on {chip.name}")
    rows_of = pkgutil.resolve_name(ROWS[args.case][chip.family])
    with Console(stderr=True).status(f"{args.case} of {config.name} on {chip.name}"):
        rows = rows_of(config, chip)
    shown = [key for key in (*ROW, *EXTRA) if any(row.get(key) is not None for row in rows)]
    table = Table(title=f"{CASES[args.case]}: {config.name}")
    columns = [row for row in rows if "refused" not in row]
    for heading in ("", *(" ".join((r["impl"], str(r.get("cores", "")))) for r in columns)):
        table.add_column(heading, justify="right")
    for key in shown:
        figures = (readable(key, row.get(key)) for row in columns)
        table.add_row((ROW | EXTRA)[key], *figures)
    table.caption = "; ".join(other_kinds(row) for row in rows if row.get("kinds"))
    Console().print(table)
    for row in rows:
        for remark in (row.get(key) for key in ("refused", "plan", "note") if row.get(key)):
            print(f"{row['impl']} {row.get('cores', '')}".rstrip() + f": {remark}")
    rows = [dict.fromkeys(ROW) | row for row in rows]
    write_json(args.json, {"config": config.name, "rows": rows, **provenance()})


def other_kinds(row: dict) -> str:
    """Which figures of a row are of another kind than the row, for people."""
    named = (f"{(ROW | EXTRA)[key]} {kind}" for key, kind in row["kinds"].items())
    return f"{row['impl']}: {', '.join(named)}"


def readable(key: str, value) -> str:
    """A figure as people read it; a dash where it is not known."""
    if value is None:
        return "-"
    if key == "critical_path_us":
        parts = sorted(value.items(), key=lambda part: -part[1])
        total = sum(value.values())
        named = ((EXTRA.get(f"{lane}_busy", lane), us / total) for lane, us in parts)
        return "\n".join(f"{name} {part:.0%}" for name, part in named if part >= 0.01)
    if isinstance(value, dict):
        return "\n".join(f"{name} {count:,}" for name, count in value.items())
    if key.startswith("us") or key.endswith("_us"):
        return f"{value:,.1f}"
    if key.endswith("_busy") or key in ("mfu", "mbu"):
        return f"{value:.0%}"
    if key == "over_serial":
        return f"{value:.2f}x"
    if key.endswith("bytes"):
        return f"{value / 1e6:.1f} MB"
    return f"{value:,}" if isinstance(value, int) else str(value)
