"""`lsd bench micro`, `fit`, `compare`: cases into a log, a log into a chip, two logs compared."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lsd_jax.cli.options import at_least

if TYPE_CHECKING:  # `lsd --help` imports no more than it needs
    from lsd_jax.hw.micro.case import Case, Kind, Measurement
    from lsd_jax.hw.micro.harness import Engine

ENGINES: dict[str, tuple[Kind, str]] = {
    "trainium": ("modelled", "nki_kernels.micro"),
    "tpu": ("compiled", "pallas_kernels.micro"),
}
"""By the chip's family: the kind of an engine's figures, and its module, which has
`cases(suites, quick)`, `versions()` and `engine(chip)`. Without a chip the engine measures."""

_VERSIONS = ("jax", "jaxlib", "numpy", "lsd-jax")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", metavar="FILE.jsonl", help="fit: logs of one chip; compare: two"
    )
    parser.add_argument("--suite", metavar="A,B", help="micro: some of the suites; default: all")
    parser.add_argument(
        "--quick", action="store_true", default=None, help="micro: fewer cases, two minutes"
    )
    parser.add_argument("--report", metavar="DIR", help="micro: an HTML page with pictures")
    parser.add_argument("--devices", type=int, help="micro: so many virtual devices of a CPU")


def micro(args: argparse.Namespace) -> dict:
    """Runs the cases into `--out`, and gives the report."""
    from lsd_jax.reports import provenance

    if args.files:
        raise ValueError(f"micro takes no file: {args.files[0]}; give --out FILE.jsonl")
    if not args.out:
        raise ValueError("micro needs --out FILE.jsonl, where the measurements go")
    if args.chip is not None and args.devices is not None:
        raise ValueError("--devices are of the CPU here, which is measured without --chip")
    args.quick = bool(args.quick)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    kind, chip, versions, engine, before, cases, after = _plan(args)
    from lsd_jax.hw.micro import harness

    about = provenance()
    versions = {name: about["versions"][name] for name in _VERSIONS} | versions
    found = harness.run(
        [*before, *cases, *after], engine, kind, chip, versions, about["commit"], Path(args.out)
    )
    _print(found)
    if args.report:
        from lsd_jax.hw.micro.report import write_report

        print(f"report: {write_report(found, Path(args.report))}")
    refused = {m.name: m.refused for m in found if m.refused}
    return {
        "out": str(args.out), "chip": chip, "kind": kind, "measurements": len(found),
        "refused": refused, "repeatability": harness.spread(found), **about,
    }  # fmt: skip


def _plan(
    args: argparse.Namespace,
) -> tuple[Kind, str, dict[str, str], Engine, list[Case], list[Case], list[Case]]:
    """Kind, chip, versions, engine, and the cases: the harness's own first ones, those asked for,
    its last ones."""
    if args.chip is None:
        import jax

        if args.devices is not None:
            at_least(args, devices=1)
            jax.config.update("jax_num_cpu_devices", args.devices)
        from lsd_jax.hw.micro import clock, harness
        from lsd_jax.hw.micro.suites import chosen, here

        budget = clock.QUICK if args.quick else clock.Budget()
        cases = chosen(args.suite, args.quick, here())
        if not cases:
            hint = "; on a CPU give --devices 4" * (jax.default_backend() == "cpu")
            raise ValueError(f"--suite {args.suite} needs several devices{hint}")
        before, after = harness.itself()

        def measured(case):
            return vars(clock.measure(case, budget))

        pretended = {} if args.devices is None else {"virtual devices": str(args.devices)}
        return "measured", harness.device_name(), pretended, measured, before, cases, after
    from lsd_jax.hw import chips

    chip = chips.load(args.chip)
    if chip.family not in ENGINES:
        raise ValueError(f"nothing here compiles or models for {chip.name}; measure it: no --chip")
    kind, name = ENGINES[chip.family]
    module = importlib.import_module(name)
    cases = module.cases(args.suite, args.quick)
    return kind, chip.name, module.versions(), module.engine(chip), [], cases, []


def _print(found: Sequence[Measurement]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.hw.micro.harness import spread

    first = found[0]
    table = Table(title=f"{first.chip} ({first.kind})")
    for heading in ("case", "p50 us", "p99 us", "max us", "Gop/s", "GB/s"):
        table.add_column(heading, justify="right" if heading != "case" else "left")
    for m in found:
        if m.samples:
            rates = (f"{x / m.p50 / 1e9:,.2f}" if x else "" for x in (m.operations, m.bytes))
            times = (f"{1e6 * s:,.2f}" for s in (m.p50, m.p99, m.max))
            table.add_row(m.name, *times, *(r if m.p50 > 0 else "-" for r in rates))
    Console().print(table)
    for m in found:
        if m.refused:
            print(f"{m.name}: no figure: {m.refused}")
    if (apart := spread(found)) is not None:
        print(f"repeatability: medians of one case, first and last, are {apart:.1%} apart")


def fit(args: argparse.Namespace) -> dict:
    """Writes `--out`, the chip that a log's measurements show, and gives the report."""
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.hw.micro import harness, log
    from lsd_jax.hw.micro.fit import fit as fitted_to
    from lsd_jax.reports import provenance, write_json

    if not args.files or not args.out:
        raise ValueError("write it as: lsd bench fit FILE.jsonl [FILE.jsonl ...] -o CHIP.json")
    found = log.merged([log.read(path) for path in args.files])
    here = harness.device_name() == found[0].chip  # its memory no log knows
    about = f"{found[0].chip}, shared with other programs"
    fitted = fitted_to(found, Path(args.out).stem, about, harness.memory_bytes() if here else None)
    table = Table(title=f"{found[0].chip}: what the fitted prices miss (measured)")
    for heading in ("operation", "cases", "mean error", "worst", "worst case"):
        table.add_column(heading)
    for op, errors in fitted.errors.items():
        worst = max(errors, key=lambda name: abs(errors[name]))
        mean = sum(map(abs, errors.values())) / len(errors)
        table.add_row(op, str(len(errors)), f"{mean:.1%}", f"{errors[worst]:+.1%}", worst)
    Console().print(table)
    write_json(args.out, fitted.chip.to_json())
    print(
        f"wrote {args.out}: {len(fitted.chip.numbers)} numbers, mean error {fitted.mean_error:.1%}"
    )
    return {
        "out": args.out,
        "mean_error": fitted.mean_error,
        "errors": fitted.errors,
        **provenance(),
    }


def compare(args: argparse.Namespace) -> dict:
    """Prints two logs side by side, and gives the report."""
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.hw.micro import log
    from lsd_jax.hw.micro.compare import LEVEL
    from lsd_jax.hw.micro.compare import compare as changes
    from lsd_jax.reports import provenance

    if len(args.files) != 2:
        raise ValueError("write it as: lsd bench compare BEFORE.jsonl AFTER.jsonl")
    before, after = (log.read(path) for path in args.files)
    found = changes(before, after)
    first = before[0]
    table = Table(title=f"{first.chip} ({first.kind}), medians")
    for heading in ("case", "before us", "after us", "ratio", "p", ""):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for change in found:
        p = "" if change.p is None else f"{change.p:.1e}"
        said = ("slower" if change.ratio > 1 else "faster") if change.significant else ""
        times = (f"{1e6 * s:,.2f}" for s in (change.before, change.after))
        table.add_row(change.name, *times, f"{change.ratio:.3f}", p, said)
    Console().print(table)
    many = sum(change.significant for change in found)
    print(
        f"{many} of {len(found)} cases differ"
        + (f" (Mann-Whitney U, Holm, level {LEVEL})" if first.kind == "measured" else "")
    )
    rows = [vars(change) | {"ratio": change.ratio} for change in found]
    return {"chip": first.chip, "kind": first.kind, "changes": rows, **provenance()}
