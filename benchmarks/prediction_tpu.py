"""Predicted against compiled cycles of the denoise stack on a TPU, on shapes that nothing was
fitted to.

    python -m benchmarks.prediction_tpu --chip v6e --json prediction-v6e.json

Each stack is compiled fresh, or looked up if this very source compiled it before (minutes in all).
What is compared is the kernel that `lsd plan` and a stream would take.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import numpy as np
from rich.console import Console
from rich.table import Table

from lsd_jax.hw import chips
from lsd_jax.hw.stack import StackShape
from lsd_jax.reports import provenance, write_json
from pallas_kernels import aot
from pallas_kernels.tpu.planner import choose

CASE = "pallas_kernels.tpu.cases:stack"


def stack(
    dim: int, layers: int, heads: int, mlp: int, tokens: int, slots: int,
    ageless: int = 128, head_dim: int = 128, sessions: int = 1,
) -> StackShape:  # fmt: skip
    return StackShape(
        sessions, tokens, dim, layers, heads, head_dim, mlp, ageless, slots, slots + 1, 1,
        "bfloat16",
    )  # fmt: skip


STACKS = (
    stack(512, 8, 4, 2048, 256, 5, 144),
    stack(640, 4, 5, 2560, 256, 4),
    stack(768, 6, 6, 3072, 256, 2, 256),
    stack(896, 3, 7, 2688, 192, 4),
    stack(1024, 3, 8, 4096, 320, 3),
    stack(1152, 2, 9, 4608, 256, 5),
    stack(384, 6, 3, 1152, 512, 3),
    stack(512, 4, 6, 1536, 384, 4, 64),
    stack(768, 3, 3, 2304, 256, 4, 128, 256),
    stack(512, 4, 2, 2048, 576, 2, 128, 256),
    stack(640, 5, 5, 1280, 128, 4, 256),
    stack(1280, 2, 10, 3840, 192, 3),
    stack(512, 3, 4, 2048, 256, 4, sessions=2),
    stack(256, 12, 2, 1024, 256, 6),
    stack(768, 4, 6, 768, 256, 8),
    stack(896, 2, 7, 3584, 768, 2),
    stack(640, 3, 4, 1920, 256, 3, 64),
    stack(768, 2, 8, 3072, 512, 4),
    stack(1024, 4, 4, 2048, 256, 6, 128, 256),
    stack(1152, 3, 8, 2304, 320, 2),
    stack(384, 4, 4, 1536, 1024, 1),
    stack(1536, 2, 12, 4608, 256, 2, 256),
)
"""None of them was among the shapes that `pallas_kernels.tpu.cost` was fitted to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chip", default="v6e", choices=aot.TOPOLOGIES)
    parser.add_argument("--json")
    args = parser.parse_args()
    chip = chips.load(args.chip)
    rows = []
    for shape in STACKS:
        chosen = choose(shape, chip.name)
        options = {"implementation": "pallas", **asdict(shape)}
        compiled, why = None, "no profile"
        try:
            compiled = aot.compile_for(chip.name, CASE, options).cycles
        except ValueError as refusal:
            why = str(refusal)
        predicted = float(chosen.total.compute_cycles)
        error = None if compiled is None else predicted / compiled - 1
        rows.append({
            "stack": name_of(shape), "plan": chosen.plan.describe(), "compiled": compiled,
            "predicted": round(predicted), "error": error,
            "note": why if compiled is None else None,
        })  # fmt: skip
    known = [row for row in rows if row["error"] is not None]
    errors = np.abs([row["error"] for row in known])
    worst = known[int(np.argmax(errors))]["stack"]
    table = Table(
        title=f"cycles on {chip.name}: compiled by libtpu {aot.libtpu_version()}, modelled"
    )
    for heading in ("stack", "compiled", "modelled", "error"):
        table.add_column(heading, justify="right" if heading != "stack" else "left")
    for row in rows:
        error = row["note"] if row["error"] is None else f"{row['error']:+.1%}"
        shown = "-" if row["compiled"] is None else f"{row['compiled']:,}"
        table.add_row(row["stack"], shown, f"{row['predicted']:,}", error)
    table.caption = f"mean {errors.mean():.1%} over {len(known)}; worst {errors.max():.1%}: {worst}"
    Console().print(table)
    figures = {
        "mean_error": float(errors.mean()),
        "worst_error": float(errors.max()),
        "worst": worst,
    }
    report = {"chip": chip.name, "kind": "modelled against compiled", "rows": rows}
    write_json(args.json, report | figures | provenance() | {"libtpu": aot.libtpu_version()})


def name_of(s: StackShape) -> str:
    """The sizes of a stack in a few letters."""
    sessions = f", {s.sessions} sessions" if s.sessions > 1 else ""
    return (
        f"{s.layers} x {s.dim}, {s.heads} heads of {s.head_dim}, MLP {s.mlp}, {s.tokens} tokens, "
        f"{s.ageless} + {s.slots} slots{sessions}"
    )


if __name__ == "__main__":
    main()
