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

from rich.box import SIMPLE
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
COLUMNS = ("early_db", "late_db", "worst_stream_drop_db", "brightness_ratio", "contrast_ratio")


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
    if not (folder / "checkpoints" / str(args.steps)).is_dir():
        lsd("train", args.config, "--stage", stage, "--init", args.init, "--out", folder,
            "--set", f"train.steps={args.steps}", *chosen)  # fmt: skip
    if not report.exists():
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
    return found | {name: drift[name] for name in COLUMNS} | {
        "recovery_frames": report["recovery_frames"]
    }  # fmt: skip


def table(rows: dict[str, dict]) -> Table:
    """A line per variant."""
    made = Table(title="measured", title_justify="left", box=SIMPLE, collapse_padding=True)
    made.add_column("", no_wrap=True)
    for name in next(iter(rows.values())):
        words = name.removesuffix("_db").removesuffix("_ratio").replace("_", "\n")
        made.add_column(words, justify="right")
    for name, found in rows.items():
        cells = [f"{x:.2f}" if isinstance(x, float) else str(x) for x in found.values()]
        made.add_row(name, *cells)
    return made


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
    axes.legend(frameon=False)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=100)


if __name__ == "__main__":
    main()
