"""Does an edit come back with its object? Streams of a checkpoint with its memory, and without.

    python -m benchmarks.recall runs/recall/clips/weights --worlds 32 --picture recall.png

Asks for the edits of objects that the checkpoint was trained on (`train.scene_edits`), each in so
many held-out worlds; `lsd eval` has the same figures, of all edits, among many others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lsd_jax.data.worlds import OBJECT_EDITS
from lsd_jax.evaluate import returning
from lsd_jax.evaluate.plots import save_memory
from lsd_jax.evaluate.streams import ModelStreams
from lsd_jax.pretrained import load_model
from lsd_jax.reports import provenance, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--worlds", type=int, default=32, help="for each edit")
    parser.add_argument("--batch", type=int, default=8, help="streams at once")
    parser.add_argument("--seed", type=int, default=0, help="which held-out worlds")
    parser.add_argument("--json")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    args = parser.parse_args()
    model, config = load_model(args.checkpoint, [])
    trained = config.train.scene_edits or OBJECT_EDITS
    edits = [kind for kind in OBJECT_EDITS if kind in trained]
    if not config.model.memory or not edits:
        parser.error(f"{args.checkpoint} has no memory, or edits no object that stays")
    streams = ModelStreams(model, config, args.batch, args.seed)
    with Progress(transient=True) as bar:
        task = bar.add_task("streaming", total=3 * returning.FRAMES * len(edits) * args.worlds)
        found, visits = returning.measure(
            model, streams, args.worlds, args.seed, lambda n: bar.update(task, advance=n), edits
        )
    found |= {"kind": "measured", "worlds": args.worlds, "checkpoint": str(args.checkpoint)}
    write_json(args.json, found | provenance())
    Console().print(table(found))
    if args.picture:
        save_memory(visits, args.picture)


def table(found: dict) -> Table:
    """A line per edit."""
    made = Table(
        title=f"object back after {returning.GONE} frames, PSNR in dB (measured)",
        title_justify="left", box=SIMPLE,
    )  # fmt: skip
    columns = {
        "with": "with memory", "without": "without", "told": "prompt kept", "input": "input",
        "nearer": "nearer with",
    }  # fmt: skip
    made.add_column("edit")
    for title in columns.values():
        made.add_column(title, justify="right")
    for name, row in found["by_edit"].items():
        made.add_row(name, *(f"{row[key]:.0%}" if key == "nearer" else f"{row[key]:.1f}"
                             for key in columns))  # fmt: skip
    return made


if __name__ == "__main__":
    main()
