"""`lsd bench calibrate`: a Trainium model against published points, or refit from a profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsd_jax.config import Config
from lsd_jax.files import read_json
from lsd_jax.hw.chips import Chip
from lsd_jax.reports import write_json


def complete(args: argparse.Namespace) -> None:
    """Fills in `--chip` and `--out` where they are not given: by what the manifest beside the
    profile says, into a file beside it."""
    from nki_kernels import alone

    if not args.profile or (args.chip and args.out):
        return
    if manifest := alone.manifest_of(Path(args.profile).parent):
        args.chip = args.chip or manifest["chip"]
        args.out = args.out or str(Path(args.profile).parent / f"{manifest['chip']}-fitted.json")


def calibrate(args: argparse.Namespace, config: Config, chip: Chip) -> dict:
    """Prints published points beside modelled ones or, with `--profile`, writes `--out`, the chip's
    numbers refit to the profile of one pass of the megakernel. Gives the report."""
    if chip.family != "trainium":
        raise ValueError(f"--chip {chip.name}: calibrate is for trn1, trn2 and trn3")
    if bool(args.profile) != bool(args.out):
        raise ValueError(
            "--profile SUMMARY.json and --out CHIP.json go together, but where the manifest.json "
            "of an `lsd export` is beside the summary"
        )
    return _refit(args, config, chip) if args.profile else _points(chip)


def _points(chip: Chip) -> dict:
    from rich.console import Console
    from rich.table import Table

    from nki_kernels.sim.calibration import points

    found = points(chip)
    table = Table(title=f"published for trn2 (measured), and modelled on {chip.name}")
    for heading in ("point", "published", "modelled", "holds", "source"):
        table.add_column(heading)
    for p in found:
        published = f"{p.low:.4g} to {p.high:.4g} {p.unit}"
        table.add_row(p.name, published, f"{p.modelled:.4g}", "yes" if p.holds else "NO", p.source)
    Console().print(table)
    return {"points": [vars(p) | {"holds": p.holds} for p in found], "chip": chip.name}


def _refit(args: argparse.Namespace, config: Config, chip: Chip) -> dict:
    from nki_kernels import alone, bench
    from nki_kernels.calibrate import refit
    from nki_kernels.plan import Shapes
    from nki_kernels.sim.timeline import schedule

    most = int(chip["physical_cores_per_logical"])
    if not 1 <= args.lnc <= most:
        raise ValueError(f"--lnc {args.lnc}: at most {most} of {chip.name}'s cores act as one")
    cores = args.lnc if args.cores is None else args.cores
    if cores < 1 or args.lnc > 1 and cores != args.lnc:
        raise ValueError(f"--cores {cores} --lnc {args.lnc}: a profile of that is not modelled")
    summary = read_json(args.profile)
    if not isinstance(summary, dict):
        raise ValueError(f"{args.profile}: want an object, as summary-json writes")
    name, folder = config.name, Path(args.profile).parent
    try:
        if manifest := alone.manifest_of(folder):
            name = _of_the_kernel(args.profile, manifest, chip)
            shapes = Shapes(**manifest["shapes"])
        else:
            shapes = bench.shapes_of(config.model, chip, cores, args.lnc)
    except NotImplementedError as refusal:
        raise ValueError(str(refusal)) from refusal
    modelled = schedule([bench.trace(shapes, chip)], chip)[0]
    found = refit(chip, modelled, summary, f"{Path(args.profile).name}, {name}")
    write_json(args.out, found.to_json())
    changed = {
        name: {"before": chip[name], "after": found[name]}
        for name in found.numbers
        if found.numbers[name] != chip.numbers[name]
    }
    print(f"wrote {args.out}")
    for name, values in changed.items():
        print(f"{name}: {values['before']:.4g} -> {values['after']:.4g}")
    return {"chip": chip.name, "out": str(args.out), "changed": changed}


def _of_the_kernel(profile: str, manifest: dict, chip: Chip) -> str:
    """The name of the config that a profile is of. Raises ValueError where it is not of one pass of
    the megakernel, or of another chip."""
    from lsd_jax.export import TARGETS
    from nki_kernels import alone

    if manifest["module"] != alone.MODULE:
        theirs = Path(profile).parent / alone.MODULE
        raise ValueError(
            f"{profile} is of the whole {manifest['module']}, whose work is more than one pass; "
            f"run {theirs}/commands.sh there, and give {theirs}/summary.json"
        )
    if chip.name in TARGETS and manifest["chip"] != chip.name:
        raise ValueError(f"{profile} was made for {manifest['chip']}, not for --chip {chip.name}")
    return manifest["config"]
