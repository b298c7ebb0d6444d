"""Whether a found architecture beats the hand-made one that takes as long, once both are trained.

    python -m benchmarks.trained_pair tiny_cpu tiny --steps 250 --seeds 3 --out runs/pair

Both are trained by the stage `forcing` on single frames, on the same batches for as many steps, and
scored as the grid of the search's law is: the error of the frame shown at one pass, on batches that
neither has trained on. Goes on where it stopped. Then frames of both are timed in turns on this
machine, in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel

from benchmarks.prediction_cpu import timed_in_turns
from lsd_jax import config as configs
from lsd_jax.config import Config
from lsd_jax.heap import keep_memory
from lsd_jax.hw.micro.suites.frames import case_of
from lsd_jax.reports import provenance, write_json
from lsd_jax.search import grid, score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("found", help="a .py file or a shipped name")
    parser.add_argument("made", help="the one to beat")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of timing frames")
    parser.add_argument("--out", type=Path, default=Path("runs/pair"))
    args = parser.parse_args()
    keep_memory()
    train = replace(grid.TRAIN, steps=args.steps, batch=args.batch)
    pair = [configs.load(args.found), configs.load(args.made)]
    rows = [{"config": config.name, "errors": []} for config in pair]
    for seed in range(args.seeds):
        for config, row in zip(pair, rows, strict=True):
            seeded = replace(config, train=replace(train, seed=seed))
            row["errors"].append(scored(seeded, args.out)["error"]["1"])
    frames = timed_in_turns([case_of(config, {}, "auto") for config in pair], args.seconds)
    for row, samples in zip(rows, frames, strict=True):
        row |= {"mean_error": statistics.fmean(row["errors"]), "ms": 1e3 * min(samples)}
    found, made = rows
    chance = float(ttest_rel(found["errors"], made["errors"]).pvalue) if args.seeds > 1 else None
    report = {"kind": "measured", "steps": args.steps, "batch": args.batch, "rows": rows}
    write_json(str(args.out / "pair.json"), report | {"p_value": chance} | provenance())
    table = Table(title=f"error after {args.steps} steps of {args.batch} frames (measured)")
    for heading in ("", "mean", *(f"seed {i}" for i in range(args.seeds)), "ms a frame"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        errors = (f"{error:.4f}" for error in (row["mean_error"], *row["errors"]))
        table.add_row(row["config"], *errors, f"{row['ms']:.2f}")
    less = 1 - found["mean_error"] / made["mean_error"]
    table.caption = f"{found['config']}: {less:+.1%} less error" + (
        f", p = {chance:.3f} (paired t-test)" if chance is not None else ""
    )
    Console().print(table)


def scored(config: Config, out: Path) -> dict:
    """What `score.of_pictures` says of a config once trained; kept beside its weights."""
    train = config.train
    folder = out / f"{config.name}-{train.steps}x{train.batch}-{train.seed}"
    kept = folder / "score.json"
    if not kept.is_file():
        write_json(str(kept), score.of_pictures(grid.trained(config, folder), config))
    return json.loads(kept.read_text())


if __name__ == "__main__":
    main()
