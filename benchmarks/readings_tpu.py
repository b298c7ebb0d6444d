"""Fits what the TPU megakernel pays beside its multiply-adds to what the real compiler says.

    python -m benchmarks.readings_tpu --chip v6e --stacks 60

Compiles a layer of each of three large configs and random stacks, half of them in worse tiles than
the planner's; fits `Readings` of `pallas_kernels.tpu.cost` to the former and two thirds of the
latter, and prints them and by how much they miss the rest. What the log holds already is not
compiled again, so that an interrupted run goes on, and a fit of all takes seconds; after a change
of the kernel name another `--log`. Some 20 s a stack.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import least_squares

from lsd_jax import config as configs
from lsd_jax.hw import chips
from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape, streamed_stack
from lsd_jax.reports import provenance, write_json
from pallas_kernels import aot
from pallas_kernels.tpu.cost import Readings, read, total
from pallas_kernels.tpu.plan import LANES, Plan
from pallas_kernels.tpu.planner import (
    LONGEST_CODE,
    SPARE_BYTES,
    choose_for,
    limit_bytes,
    plans,
    tiles_of,
)
from pallas_kernels.tpu.schedule import program

CASE = "pallas_kernels.tpu.cases:planned"
NARROW = ["model.heads=10", "model.head_width=128", "model.mlp=5120"]
LARGE = (("lucy_v6e", [], 8), ("lucy_1080p", [], 8), ("base", NARROW, 1))
"""Of these configs, so set, a layer as one of so many chips has it: two with heads of 128."""
LONGEST = 120_000  # modelled cycles of a stack: beyond that a profile takes minutes
WORSE = 1.5  # than the planner's, at most, where tiles are drawn
KEPT = ("start", "copy_latency", "copy_rate")  # of the first copies alone: read off, not fitted
TOKENS = (64, 128, 192, 256, 256, 320, 384, 512, 576, 768, 1024)
AGELESS = (64, 128, 128, 144, 256)
LEAST = 1e-6  # of a reading, which is fitted by its logarithm


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chip", default="v6e", choices=aot.TOPOLOGIES)
    parser.add_argument("--stacks", type=int, help="default: what the log was begun for, or 60")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="default: benchmarks/stacks/CHIP.json")
    parser.add_argument("--json")
    args = parser.parse_args()
    chip = chips.load(args.chip)
    log = args.log or Path(__file__).parent / "stacks" / f"{chip.name}.json"
    try:
        rows = compiled(chip, args.stacks, args.seed, log)
    except ValueError as refusal:
        parser.error(str(refusal))
    fitted, others = split(rows)
    readings = fit(fitted, chip)
    now = read(chip)
    before, after = (errors(others, chip, r) for r in (now, readings))
    table = Table(title=f"cycles on {chip.name}, fitted to {len(fitted)} stacks (compiled)")
    for heading in ("reading", "as it is", "fitted"):
        table.add_column(heading, justify="left" if heading == "reading" else "right")
    for name, value in asdict(readings).items():
        table.add_row(name, f"{getattr(now, name):.3g}", f"{value:.3g}")
    shown = [f"mean {np.abs(e).mean():.1%}, worst {np.abs(e).max():.1%}" for e in (before, after)]
    table.caption = f"the {len(others)} others are missed by {shown[0]}; fitted by {shown[1]}"
    Console().print(table)
    report = {
        "chip": chip.name,
        "kind": "modelled, fitted to compiled",
        "readings": asdict(readings),
        "mean_error": float(np.abs(after).mean()),
        "worst_error": float(np.abs(after).max()),
    }
    write_json(args.json, report | provenance() | {"libtpu": aot.libtpu_version()})


def compiled(chip: Chip, count: int | None, seed: int, log: Path) -> list[dict]:
    """Rows of a layer of each of `LARGE` and of so many random stacks, without `count` as many as
    `log` was begun for, or 60: shape, tiles, cycles or why there are none; kept in `log`. Raises
    ValueError where those that it holds were made otherwise than the missing ones would be."""
    held = json.loads(log.read_text()) if log.is_file() else {"rows": []}
    rows = held["rows"]
    count = held.get("stacks", 60) if count is None else count
    whole = len(LARGE) + count
    head = {"chip": chip.name, "kind": "compiled", "seed": seed}
    if len(rows) < whole:
        log.parent.mkdir(parents=True, exist_ok=True)
        head |= {"libtpu": aot.libtpu_version()}
        if rows and any(held.get(name) != value for name, value in head.items()):
            raise ValueError(f"{log} is of another chip, seed or libtpu; name another --log")
    for i in track(range(len(rows), whole), "compiling", console=Console(stderr=True)):
        number = i - len(LARGE)
        plan = large(i, chip) if number < 0 else draw(random.Random(f"{seed} {number}"), chip)
        row: dict[str, Any] = {"shape": asdict(plan.shape)}
        row |= {"tiles": [*tiles_of(plan), plan.filled], "cycles": None, "why": None}
        try:
            options = {"tiles": row["tiles"], **row["shape"]}
            found = aot.compile_for(chip.name, CASE, options)
            row |= {"cycles": found.cycles, "why": found.no_profile}
        except ValueError as refusal:
            row["why"] = str(refusal)
        rows.append(row)
        write_json(str(log), head | {"stacks": count, "rows": rows})
    return rows[:whole]


def large(number: int, chip: Chip) -> Plan:
    """A layer of one of `LARGE`, in the tiles of all layers."""
    name, settings, share_of = LARGE[number]
    config = configs.override(configs.load(name), settings)
    plan = choose_for(streamed_stack(config), chip, share_of).plan
    return replace(plan, shape=replace(plan.shape, layers=1), chips=1)


def draw(rng: random.Random, chip: Chip) -> Plan:
    """A random stack of two layers in the planner's tiles, or in others that fit."""
    while True:
        head_dim = rng.choice((128, 128, 128, 256))
        per_kv = rng.choice((1, 1, 1, 1, 2, 3))
        tokens = rng.choice([n for n in TOKENS if profiled(n, chip)])
        dim, mlp = LANES * rng.randint(2, 14), LANES * rng.randint(4, 44)
        slots, heads = rng.randint(1, 8), rng.randint(1, 12)
        eight = "int8" if rng.random() < 0.15 and chip["ops_int8"] else ""
        width = heads * per_kv * head_dim
        if not (0.7 * dim <= mlp <= 4.5 * dim and 0.4 * dim <= width <= 1.3 * dim):
            continue
        ageless = rng.choice([n for n in AGELESS if profiled(n, chip)])
        shape = StackShape(
            1, tokens, dim, 2, heads, head_dim, mlp, ageless, slots, slots + 1, 1, "bfloat16",
            eight, 0, per_kv,
        )  # fmt: skip
        try:
            best = choose_for(shape, chip)
        except NotImplementedError:
            continue
        if best.total.compute_cycles > LONGEST:
            continue
        return best.plan if rng.random() < 0.5 else worse(best.plan, rng, chip)


def profiled(keys: int, chip: Chip) -> bool:
    """Whether the compiler's profiler is known to take attention to so many: on matrix units of 128
    it stopped at each stack tried whose keys fill no whole registers."""
    return chip["mxu_width"] > LANES or keys % LANES == 0


def worse(plan: Plan, rng: random.Random, chip: Chip) -> Plan:
    """The same stack in any tiles that fit and take no more than `WORSE` times as long."""
    options = plans(plan.shape, chip)
    costs = total(program(options), options, chip)
    takes = (costs.compute_cycles <= WORSE * total(program(plan), plan, chip).compute_cycles) & (
        costs.code_cycles <= LONGEST_CODE
    )
    takes &= options.vmem_bytes <= limit_bytes(chip) - SPARE_BYTES
    one = rng.choice(np.flatnonzero(takes).tolist())
    return Plan(plan.shape, *(x[one].item() for x in tiles_of(options)), filled=options.filled)


def split(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Those that are fitted, and those that the fit is tried on: every third of the random ones."""
    drawn = rows[len(LARGE) :]
    known = rows[: len(LARGE)] + [row for i, row in enumerate(drawn) if i % 3]
    return [row for row in known if row["cycles"]], [row for row in drawn[::3] if row["cycles"]]


def errors(rows: list[dict], chip: Chip, readings: Readings) -> np.ndarray:
    """By how much the model misses each stack with these readings, relative."""
    modelled = [total(program(p), p, chip, readings).compute_cycles for p in map(plan_of, rows)]
    return np.array(modelled, float) / [row["cycles"] for row in rows] - 1


def plan_of(row: dict) -> Plan:
    """The plan of a row of the log."""
    *tiles, filled = row["tiles"]
    return Plan(StackShape(**row["shape"]), *tiles, filled=filled)


def fit(rows: list[dict], chip: Chip) -> Readings:
    """The readings with the least relative error on these rows, by logarithms, since none is
    negative; from those that there are."""
    now = read(chip)
    names = [field.name for field in fields(now) if field.name not in KEPT]

    def readings(logarithms: Any) -> Readings:
        return replace(now, **dict(zip(names, np.exp(logarithms).tolist(), strict=True)))

    start = np.log([max(getattr(now, name), LEAST) for name in names])
    found = least_squares(
        lambda logarithms: errors(rows, chip, readings(logarithms)), start, loss="soft_l1",
        f_scale=0.03, bounds=(np.log(LEAST / 10), np.log(2e3)),
    )  # fmt: skip
    return readings(found.x)


if __name__ == "__main__":
    main()
