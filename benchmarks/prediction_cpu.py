"""Predicted and measured time of whole frames on the CPU, at sizes that no price was fitted to.

    python -m benchmarks.prediction_cpu --json out/prediction_cpu.json

The configs are timed in turns, a few frames each, so that what else the machine does falls on all
alike; measured is the fastest frame, as in the fit, and the median is shown beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lsd_jax.config import override
from lsd_jax.hw import chips, cpu
from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.clock import stepper
from lsd_jax.hw.micro.harness import device_name
from lsd_jax.hw.micro.suites.frames import config_of, frame_case
from lsd_jax.reports import provenance, write_json

CHECKED = (
    (64, 8, 128, 4, 1, 512, 3, 1, 32),
    (64, 8, 128, 4, 1, 512, 3, 2, 32),
    (64, 8, 256, 4, 2, 1024, 3, 1, 32),
    (64, 8, 128, 8, 1, 512, 3, 1, 32),
    (64, 8, 128, 4, 1, 512, 6, 1, 32),
    (64, 8, 128, 4, 4, 256, 3, 1, 32),
    (64, 16, 128, 4, 1, 512, 3, 1, 32),
    (96, 8, 192, 4, 3, 512, 3, 1, 32),
    (128, 16, 256, 6, 2, 1024, 3, 1, 64),
    (128, 16, 256, 6, 2, 1024, 3, 2, 64),
    (128, 16, 384, 3, 3, 1536, 3, 1, 64),
    (128, 8, 128, 3, 1, 512, 3, 1, 64),
    (192, 16, 256, 4, 2, 1024, 3, 1, 64),
    (256, 16, 256, 4, 2, 1024, 3, 1, 64),
    (256, 32, 512, 4, 4, 2048, 3, 1, 64),
)
"""Sizes of frames as `frame_case` takes them, none of them in `frames.FITTED`."""
AT_ONCE = 4  # frames of a config before the next one's turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chip", default="cpu", help="cpu, or what `lsd bench fit` wrote")
    parser.add_argument(
        "--backend", choices=("auto", "xla"), default="auto", help="xla: the stack as a loop"
    )
    parser.add_argument("--seconds", type=float, default=60, help="of measuring, after compiling")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    rows = compared(chips.load(args.chip), args.seconds, args.backend)
    table = Table(title=f"frames on {device_name()} (measured), predicted by {args.chip}")
    for heading in ("frame", "predicted ms", "measured ms", "median ms", "error"):
        table.add_column(heading, justify="left" if heading == "frame" else "right")
    for row in rows:
        figures = (f"{row[key]:.2f}" for key in ("predicted_ms", "measured_ms", "median_ms"))
        table.add_row(row["frame"], *figures, f"{row['error']:+.1%}")
    Console().print(table)
    worst = max(rows, key=lambda row: abs(row["error"]))
    mean = statistics.fmean(abs(row["error"]) for row in rows)
    print(f"mean error {mean:.1%} over {len(rows)} frames")
    print(f"worst {worst['error']:+.1%}: {worst['frame']}")
    write_json(
        args.json, {"backend": args.backend, "rows": rows, "mean_error": mean, **provenance()}
    )


def compared(chip: chips.Chip, seconds: float, backend: str) -> list[dict]:
    """A row a config: its frame, what was predicted and measured, and the error."""
    cases = [frame_case(*sizes, backend=backend) for sizes in CHECKED]
    rows = []
    for case, found in zip(cases, timed_in_turns(cases, seconds), strict=True):
        best = min(found)
        config = override(config_of(case.shapes), [f"stream.backend={backend}"])
        predicted = cpu.frame_seconds(config, chip)
        rows.append(
            {
                "frame": case.name,
                "predicted_ms": 1e3 * predicted,
                "measured_ms": 1e3 * best,
                "median_ms": 1e3 * statistics.median(found),
                "frames": len(found),
                "error": predicted / best - 1,
            }
        )
    return rows


def timed_in_turns(cases: list[Case], seconds: float) -> list[list[float]]:
    """Seconds of frames of each case, a few of one and then of the next."""
    steps = [stepper(case) for case in track(cases, description="compiling")]
    samples: list[list[float]] = [[] for _ in cases]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for step, found in zip(steps, samples, strict=True):
            for _ in range(AT_ONCE):
                start = time.perf_counter()
                jax.block_until_ready(step())
                found.append(time.perf_counter() - start)
    return samples


if __name__ == "__main__":
    main()
