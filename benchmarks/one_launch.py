"""What one launch for a frame could save on a TPU: what each launch of the megakernel pays once.

    python -m benchmarks.one_launch --chip v6e --config reference
    python -m benchmarks.one_launch --chip v6e --config base --layers 1

A frame launches the megakernel for each pass, and for what it remembers. Of both, n whole layers
and 2n are compiled, in the tiles of the whole stack: twice n less 2n is what joining two launches
saves at most, waits for first tiles, loading and storing. What a launch by itself takes, the
compiler does not know. Beside it stands what remembering saves, since its last layer ends with keys
and values.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from lsd_jax import config as configs
from lsd_jax.hw import chips
from lsd_jax.hw.chips import Chip
from lsd_jax.hw.plan import plan_frame
from lsd_jax.hw.stack import StackShape, streamed_stack
from lsd_jax.reports import provenance, write_json
from pallas_kernels import aot
from pallas_kernels.bench import STACK

KEYS = ("once", "a_layer", "cut", "cycles", "times")


@dataclass(frozen=True)
class Launch:
    """Cycles of one: what it pays once, and for each of its layers."""

    layers: int
    compiled: dict[int, int]  # by how many whole layers
    cut: int  # of the last layer, which is not wanted

    @property
    def a_layer(self) -> float:
        (few, fewer), (many, more) = sorted(self.compiled.items())
        return (more - fewer) / (many - few)

    @property
    def once(self) -> float:
        few = min(self.compiled)
        return self.compiled[few] - few * self.a_layer

    @property
    def cycles(self) -> float:
        return self.once + self.layers * self.a_layer - self.cut


def cycles_of(shape: StackShape, chip: Chip, layers: int) -> int:
    """So many layers of a stack, by the compiler of a chip, in the tiles that all have. Raises
    ValueError where it makes no cycles."""
    options = {"implementation": "pallas", **asdict(replace(shape, layers=layers))}
    options |= {"planned_layers": shape.layers} if layers != shape.layers else {}
    cycles = aot.compile_for(chip.name, STACK, options).cycles
    if cycles is None:
        raise ValueError(f"the compiler for {chip.name} makes no cycles of {layers} layers")
    return cycles


def launch_of(shape: StackShape, chip: Chip, layers: int) -> Launch:
    """By so many layers, and twice as many. Raises ValueError where one has no cycles."""
    whole = replace(shape, places=0)
    found = {n: cycles_of(whole, chip, n) for n in (layers, 2 * layers)}
    cut = found[layers] - cycles_of(shape, chip, layers) if shape.places else 0
    return Launch(shape.layers, found, cut)


def report(config: configs.Config, chip: Chip, layers: int) -> dict:
    """Of a frame's launches, by so many layers compiled, and of one in their place."""
    if layers < 1:
        raise ValueError(f"--layers {layers}: give at least 1")
    launches = {
        name: launch_of(streamed_stack(config, commit=commit), chip, layers)
        for name, commit in (("pass", False), ("remember", True))
    }
    times = {"pass": config.stream.passes, "remember": 1}
    rows = [
        {
            "launch": name, "times": times[name], "compiled": launch.compiled,
            "cycles": round(launch.cycles), "once": round(launch.once),
            "a_layer": round(launch.a_layer), "cut": launch.cut,
        }
        for name, launch in launches.items()
    ]  # fmt: skip
    stacks = sum(row["times"] * row["cycles"] for row in rows)
    saved = sum(row["times"] * row["once"] for row in rows) - rows[0]["once"]
    on_the_chip = [
        t for t in plan_frame(config, chip).stages if t.bound_by not in ("host", "launch")
    ]
    frame = sum(t.ms for t in on_the_chip if not t.name.endswith("stack")) * 1e-3 * chip["clock"]
    return {
        "config": config.name, "chip": chip.name, "libtpu": aot.libtpu_version(), "rows": rows,
        "stack_cycles": stacks, "saved_cycles": saved, "saved_of_stacks": saved / stacks,
        "saved_of_frame": saved / (stacks + frame),
    }  # fmt: skip


def show(found: dict) -> None:
    """For people."""
    table = Table(title=f"{found['config']} on {found['chip']}, megakernels, cycles compiled")
    few, many = found["rows"][0]["compiled"]
    headings = (f"{few} layers", f"{many} layers", "once", "a layer", "cut", "a launch", "times")
    for heading in ("", *headings):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        sizes = *row["compiled"].values(), *(row[key] for key in KEYS)
        table.add_row(row["launch"], *(f"{size:,}" for size in sizes))
    table.caption = "a launch is of all layers: modelled, where fewer are compiled"
    Console().print(table)
    print(
        f"one launch in their place saves at most {found['saved_cycles']:,} cycles of "
        f"{found['stack_cycles']:,}, {found['saved_of_stacks']:.1%}; of all on the chip "
        f"{found['saved_of_frame']:.1%} (modelled)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chip", default="v6e", choices=aot.TOPOLOGIES)
    parser.add_argument("--config", default="reference", help="a .py file or a shipped name")
    parser.add_argument("--layers", type=int, help="n; default: all that there are")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json")
    args = parser.parse_args()
    try:
        config = configs.override(configs.load(args.config), args.set)
        layers = config.model.layers if args.layers is None else args.layers
        found = report(config, chips.load(args.chip), layers)
    except (ValueError, NotImplementedError) as refusal:
        parser.error(str(refusal))
    show(found)
    write_json(args.json, found | provenance())


if __name__ == "__main__":
    main()
