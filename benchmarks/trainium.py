"""All that the Trainium kernel is held to, on one page: what was wanted, and what is.

    python -m benchmarks.trainium --json out/trainium.json

Times of chips are modelled, by the simulator's timeline; differences of numbers and pictures are
measured, and so are the simulator's own seconds. Some minutes; `--quick` leaves out whole frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

from benchmarks.nki_stream import compared  # first, as it gives XLA's client its threads
from lsd_jax.config import load
from lsd_jax.hw import chips
from lsd_jax.reports import provenance, write_json
from nki_kernels import alone, bench
from nki_kernels.plan import Shapes
from nki_kernels.sim.calibration import points
from nki_kernels.sim.timeline import schedule

FRAMES = (
    ("base", "trn2", ("nki", 1, 1)),
    ("base", "trn2", ("nki-lnc2", 2, 2)),
    ("base", "trn2", ("nki", 2, 1)),
    ("base", "trn2", ("nki", 4, 1)),
    ("lucy_1080p", "trn2", ("nki", 16, 1)),
    ("lucy_1080p", "trn3", ("nki", 16, 1)),
)
BLOCK, BLOCK_US = "a block of two heads, 128 tokens", 37.4


def row(name: str, kind: str, found: str, wanted: str = "", holds: bool | None = None) -> dict:
    return {"name": name, "kind": kind, "found": found, "wanted": wanted, "holds": holds}


def calibration(chip: chips.Chip):
    """The published points."""
    for p in points(chip):
        unit = "" if p.unit == "1" else f" {p.unit}"
        wanted = f"{p.low:.4g} to {p.high:.4g}{unit}"
        yield row(p.name, "modelled", f"{p.modelled:.4g}{unit}", wanted, bool(p.holds))


def accuracy(chip: chips.Chip, layer):
    """The simulated kernel in bfloat16 against float32, and how long that takes."""
    tiny = load("tiny").model
    block = dataclasses.replace(tiny, layers=1, width=256)
    for name, model, most_s in (
        (BLOCK, block, 20),
        ("tiny", tiny, 20),
        ("a layer of base", layer, 60),
    ):
        shapes = bench.shapes_of(model, chip)
        given = alone.arguments(shapes)
        start = time.perf_counter()
        results = alone.run(shapes, given, simulate=True)
        took = time.perf_counter() - start
        yield against_float32(name, shapes, given, results)
        yield row(f"{name} simulated", "measured", f"{took:.1f} s", f"{most_s} s", took < most_s)
        pair = bench.shapes_of(model, chip, 2, 2)  # exchange shares of the residual
        given = alone.arguments(pair)
        results = alone.run(pair, given, simulate=True)
        yield against_float32(f"{name} on two cores", pair, given, results)


def block_time(chip: chips.Chip):
    """Of a block with three slots of keys alone, beside a separate, simpler timing of one."""
    block = dataclasses.replace(load("tiny").model, layers=1, width=256)
    shapes = dataclasses.replace(bench.shapes_of(block, chip), ageless=0)
    us = schedule([bench.trace(shapes, chip)], chip)[0].total_ns / 1e3
    wanted = f"{BLOCK_US} us, within 20%"
    yield row(BLOCK, "modelled", f"{us:.1f} us", wanted, abs(us / BLOCK_US - 1) <= 0.2)


def against_float32(name: str, shapes: Shapes, given: list, results: tuple) -> dict:
    """How far off what leaves the stack is."""
    _, most, relative = next(alone.differences(shapes, given, results))
    off = f"{most:.1e}, relative {relative:.1e}"
    fine = most <= 1e-2 and relative <= 2e-3
    return row(f"{name} against float32", "measured", off, "1e-2, relative 2e-3", fine)


def one_layer(chip: chips.Chip, config):
    """A layer of base with 512 tokens on one core."""
    found = bench.rows(config, chip, (("nki", 1, 1),))[0]
    busy, gain = found["pe_busy"], found["over_serial"]
    where = "a layer of base, 512 tokens, 1 core:"
    yield row(f"{where} TensorE busy", "modelled", f"{busy:.0%}", "60%", busy >= 0.6)
    yield row(f"{where} over a naive schedule", "modelled", f"{gain:.2f}x", "1.5x", gain >= 1.5)


def frames():
    """All passes of a frame, and where the time of one goes."""
    for name, chip, layout in FRAMES:
        found = bench.rows(load(name), chips.load(chip), (layout,))[0]
        path = found["critical_path_us"]
        total = sum(path.values())
        parts = sorted(path.items(), key=lambda item: -item[1])[:3]
        spent = ", ".join(f"{lane} {us / total:.0%}" for lane, us in parts)
        shown = f"{found['frame_us'] / 1e3:.2f} ms; a pass {found['us'] / 1e3:.2f}: {spent}"
        yield row(f"frame of {name}, {chip}, {layout[0]}, {layout[1]} cores", "modelled", shown)


def pictures():
    """A few frames of the bundled clip through the simulated kernel and through XLA."""
    report = compared(4, "make it night")
    launches, off = report["launches_per_frame"], report["largest_difference"]
    yield row("launches a frame", "measured", f"{launches:g}", "1", launches == 1)
    yield row("4 frames of the clip, beside XLA", "measured", f"{off} of 255", "1", off <= 1)


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without whole frames")
    parser.add_argument("--json")
    args = parser.parse_args()
    trn2, base = chips.load("trn2"), load("base")
    layer = dataclasses.replace(base.model, layers=1, height=256)
    found = [*calibration(trn2), *block_time(trn2), *accuracy(trn2, layer)]
    found += one_layer(trn2, dataclasses.replace(base, model=layer))
    found += pictures()
    found += [] if args.quick else frames()
    table = Table(title="the kernel for Trainium; nothing of it has run on hardware")
    for heading in ("", "kind", "found", "wanted", "holds"):
        table.add_column(heading)
    for r in found:
        holds = {None: "", True: "yes", False: "NO"}[r["holds"]]
        table.add_row(r["name"], r["kind"], r["found"], r["wanted"], holds)
    Console(width=140).print(table)
    write_json(args.json, {"rows": found, **provenance()})


if __name__ == "__main__":
    main()
