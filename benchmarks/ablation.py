"""What each part of history augmentation adds: the same budget from the same weights, part by part.

    python -m benchmarks.ablation --init runs/base/weights --steps 350 --frames 1000

`recipes/ablation.sh` makes those weights first. Each variant is trained by `lsd train` and measured
by `lsd eval`, one after the other; what is there already is not done again, so that an interrupted
run goes on; other weights or settings want another `--out`. Writes `ablation.json` and
`ablation.png` beside the variants' own reports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lsd_jax.files import replacing
from lsd_jax.reports import provenance, write_json

TOLD = ["history.level_input=true", "stream.history_level=0.1"]
VARIANTS = {
    "plain": ("forcing", []),
    "+ corruptions": ("history", ["history.corrupted=0.5", "history.rolled_out=0"]),
    "+ own streams": ("history", ["history.corrupted=0.5", "history.rolled_out=0.25"]),
    "+ drift penalty": (
        "history",
        ["history.corrupted=0.5", "history.rolled_out=0.25", "history.drift_penalty=1"],
    ),
    "+ level input": (
        "history",
        ["history.corrupted=0.5", "history.rolled_out=0.25", "history.drift_penalty=1", *TOLD],
    ),
}
HEADINGS = {
    "psnr_db": "PSNR", "accuracy_footage": "foot-\nage", "accuracy_scene": "scene",
    "early_db": "early", "late_db": "late", "worst_stream_drop_db": "worst\nloses",
    "behind_db": "be-\nhind", "worst_behind_db": "worst\nbehind", "contrast_ratio": "con-\ntrast",
    "recovery_frames": "back\nin",
}  # fmt: skip
"""Of the columns; a row has to fit into 80 characters."""
COLUMNS = ("early_db", "late_db", "worst_stream_drop_db", "contrast_ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--init", type=Path, required=True, help="weights that all start from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--frames", type=int, default=1000, help="of the long streams")
    parser.add_argument("--streams", type=int, default=16, help="long streams")
    parser.add_argument("--worlds", type=int, default=1, help="for the fidelity of 32 frames")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], help="for every variant")
    args = parser.parse_args()
    found = {name: variant(name, args) for name in args.only}
    report = {
        "steps": args.steps,
        "frames": args.frames,
        "kind": "measured",
        "variants": {name: row(report) for name, report in found.items()},
    }
    write_json(str(args.out / "ablation.json"), report | provenance())
    draw(found, args.out / "ablation.png")
    Console().print(table(report["variants"]))


def variant(name: str, args: argparse.Namespace) -> dict:
    """Trains and measures one variant, as far as that has not been done; its report."""
    stage, settings = VARIANTS[name]
    folder = args.out / name.removeprefix("+ ").replace(" ", "-")
    measured = (args.steps, args.frames, args.streams, args.worlds)
    report = folder / f"eval-{'-'.join(map(str, measured))}.json"
    assignments = [*settings, *args.set]
    chosen = [part for setting in assignments for part in ("--set", setting)]
    if not report.exists():
        lsd("train", args.config, "--stage", stage, "--init", args.init, "--out", folder,
            "--set", f"train.steps={args.steps}", *chosen)  # fmt: skip
        lsd("eval", folder / "weights", "--worlds", args.worlds, "--drift-frames", args.frames,
            "--drift-streams", args.streams, "--work", folder, "--json", report,
            *chosen)  # fmt: skip
    return json.loads(report.read_text())


def lsd(*arguments: object) -> None:
    """Runs one command; a failure ends this one with its exit code."""
    command = [sys.executable, "-c", "from lsd_jax.cli.main import main; raise SystemExit(main())"]
    code = subprocess.run([*command, *map(str, arguments)]).returncode
    if code:
        raise SystemExit(code)


def row(report: dict) -> dict:
    """The figures of one variant."""
    drift, accuracy = report["drift"], report["prompt_accuracy"]
    found = {"psnr_db": report["psnr_db"]["mean"], "accuracy_footage": accuracy["footage"]}
    found["accuracy_scene"] = accuracy["scene"]
    found |= {name: drift[name] for name in COLUMNS}
    found |= {name: drift["cold"][name] for name in ("behind_db", "worst_behind_db")}
    return found | {"recovery_frames": report["recovery_frames"]}


def table(rows: dict[str, dict]) -> Table:
    """A line per variant."""
    made = Table(title="measured", title_justify="left", box=None, padding=(0, 1, 0, 0))
    made.add_column("", no_wrap=True)
    for name in next(iter(rows.values())):
        made.add_column(HEADINGS[name], justify="right", no_wrap=True)
    for variant, found in rows.items():
        cells = [_cell(name, value) for name, value in found.items()]
        made.add_row(variant, *cells)
    return made


def _cell(name: str, value: float | int | None) -> str:
    if value is None:
        return "never"
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if name.endswith("_db") else f"{value:.2f}"


def draw(found: dict[str, dict], path: Path) -> None:
    """PSNR over the frames of the long streams, a line per variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for name, report in found.items():
        axes.plot(report["drift"]["bin_ends"], report["drift"]["curves"]["psnr_db"], label=name)
    axes.set_xlabel("frame")
    axes.set_ylabel("PSNR / dB")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside right upper")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=100)


if __name__ == "__main__":
    main()
