"""`lsd search`: the architectures that are fastest for their expected quality on a chip."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `lsd --help` imports no more than it needs
    from lsd_jax.config import Config
    from lsd_jax.hw.chips import Chip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--chip", help="such as v6e, or a path ending in .json")
    parser.add_argument(
        "--config",
        default="small",
        help="whose pictures, precision and memory slots to keep; what --set sets is not searched",
    )
    parser.add_argument("--fps", type=float, default=30.0, help="frames a second to hold")
    parser.add_argument("--cores", type=int, default=1, help="the most that share one stream")
    parser.add_argument("--sessions", type=int, default=1, help="streams at once on these cores")
    parser.add_argument("--params-max", type=float, default=0.0, help="the most parameters")
    parser.add_argument("-o", "--out", type=Path, help="folder for the config files")
    parser.add_argument("--plot", metavar="PNG", help="draw the front")
    parser.add_argument("--grid", type=Path, help="runs that the law is fitted to, made by --refit")
    parser.add_argument(
        "--refit", action="store_true", help="train the grid's runs, hours; goes on where it was"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/grid"), help="where --refit trains")


def run(args: argparse.Namespace) -> None:
    if not (args.chip or args.refit):
        raise ValueError("give --chip to search for, or --refit")
    if not args.chip and (args.out or args.plot):
        raise ValueError("--out and --plot are for what a search finds; give --chip as well")
    asked = wanted(args) if args.chip else None  # refused before the hours of a refit
    if args.refit:
        refit(args)
    if asked:
        searched(args, *asked)


def wanted(args: argparse.Namespace) -> tuple[Config, Chip]:
    """The config whose pictures to keep, and the chip. Raises ValueError for what no search takes,
    OSError where its files cannot be written."""
    from lsd_jax import config as configs
    from lsd_jax.cli.options import a_rate, at_least
    from lsd_jax.files import make_folder
    from lsd_jax.hw import chips

    at_least(args, sessions=1, cores=1)
    a_rate(args.fps)
    base = configs.override(configs.load(args.config), args.set)
    chip = chips.load(args.chip)
    for folder in (args.out, args.plot and Path(args.plot).parent):
        if folder:
            make_folder(folder)
    return base, chip


def refit(args: argparse.Namespace) -> None:
    """Trains what is left of a grid, and prints the law that fits it."""
    from dataclasses import asdict

    from lsd_jax.heap import keep_memory
    from lsd_jax.reports import provenance, write_json
    from lsd_jax.search import grid, law

    keep_memory()
    args.grid = args.grid or args.runs / "grid.json"  # a search goes by it, too
    args.grid.parent.mkdir(parents=True, exist_ok=True)
    grid.run(args.grid, args.runs)
    quality = law.of(args.grid)
    print(f"{args.grid}: {says(quality)}")
    if not args.chip:
        found = {"grid": str(args.grid), "kind": "measured", **asdict(quality)}
        write_json(args.json, found | provenance())


def searched(args: argparse.Namespace, base: Config, chip: Chip) -> None:
    """Searches, prints the front, and writes what was asked for."""
    import time

    from rich.console import Console
    from rich.table import Table

    from lsd_jax.reports import write_json
    from lsd_jax.search import front, law, space

    quality = law.of(args.grid) if args.grid else law.fit(law.load())
    keep = {assignment.partition("=")[0] for assignment in args.set} & set(space.SEARCHED)
    started = time.monotonic()
    with Console(stderr=True).status(f"searching for {chip.name}"):
        found = front.search(
            base, chip, quality, args.fps, args.sessions, args.params_max, args.cores, keep
        )
    seconds = time.monotonic() - started
    table = Table(title=f"{found.candidates:,} architectures for {chip.name} in {seconds:.1f} s")
    for heading in ("config", "ms a frame", "cores", "expected error", "parameters", "passes"):
        justify = "left" if heading == "config" else "right"
        table.add_column(heading, justify=justify, overflow="fold")
    for point in found.front:
        table.add_row(
            point.config.name, f"{point.plan.ms:.3f}", str(point.plan.ranks),
            f"{point.predicted_loss:.4f}", f"{point.params / 1e6:.1f} M",
            str(point.config.stream.passes),
        )  # fmt: skip
    table.caption = f"modelled; {found.within:,} hold {args.fps:g} fps; {says(quality)}"
    Console().print(table)
    if args.out:
        for point in found.front:
            front.write(point.config, args.out, describe(point, args))
        print(f"{len(found.front)} config files are in {args.out}")
    if args.plot:
        draw(args.plot, found, chip.name)
    rows = [
        {"config": str(args.out / f"{point.config.name}.py") if args.out else point.config.name,
         "ms_per_frame": point.plan.ms, "cores": point.plan.ranks,
         "predicted_loss": point.predicted_loss, "params": point.params}
        for point in found.front
    ]  # fmt: skip
    write_json(args.json, rows)


def says(quality: Any) -> str:
    """How good the law is, for people."""
    known, shared = quality.history, quality.coefficients[-1]
    chance = f"{'no ' if shared else ''}chance (p = {quality.sharing:.2f})"
    said = f"the law misses {quality.missed}; a term for shared keys is {chance}"
    if not known.terms:
        return f"{said}; it can tell no history from another"
    worth = ", ".join(known.terms)
    return f"{said}; of {worth} it misses {known.missed}"


def describe(point: Any, args: argparse.Namespace) -> str:
    """The docstring of a found config: what it is, and the command that found it."""
    model = point.config.model
    options = ["--chip", args.chip, "--config", args.config, "--fps", f"{args.fps!r}"]
    options += ["--cores", f"{args.cores}"] if args.cores > 1 else []
    options += ["--sessions", f"{args.sessions}"] if args.sessions > 1 else []
    options += ["--params-max", f"{args.params_max!r}"] if args.params_max else []
    options += ["--grid", f"{args.grid}"] if args.grid else []
    options += [part for assignment in args.set for part in ("--set", assignment)]
    cores = f" on {point.plan.ranks} cores of" if point.plan.ranks > 1 else " on"
    return (
        f"{model.width}x{model.height}, {point.params / 1e6:.1f} M parameters, "
        f"{point.plan.ms:.3f} ms a frame{cores} {args.chip} (modelled).\n\nFound by\n\n"
        f"    {shlex.join(['lsd', 'search', *options])}\n"
    )


def draw(path: str, found: Any, chip: str) -> None:
    """All that hold the rate as a cloud, and the front."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lsd_jax.files import replacing

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    some = np.linspace(0, len(found.ms) - 1, min(len(found.ms), 5000)).astype(int)
    axes.scatter(found.ms[some], found.losses[some], s=2, color="0.75", label="hold the rate")
    ms = [point.plan.ms for point in found.front]
    axes.plot(ms, [point.predicted_loss for point in found.front], "o-", label="front")
    axes.set_xscale("log")
    axes.set_xlabel(f"milliseconds a frame on {chip}, modelled")
    axes.set_ylabel("error expected by the scaling law")
    axes.legend(frameon=False)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
