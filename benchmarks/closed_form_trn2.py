"""Fits the closed form of the megakernel's time on a Trainium2 to the simulator's timelines.

    python -m benchmarks.closed_form_trn2 --stacks 900 --json closed-form.json

Times random stacks, on one core and shared by up to 16, a third of them with weights in eight bits
and a third in heads of 256, fits `nki_kernels.closed_form` to two thirds of them, and prints its
numbers and by how much they miss the rest. Some eight minutes.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import nnls

from lsd_jax.hw import chips
from lsd_jax.hw.stack import StackShape
from lsd_jax.reports import provenance, write_json
from nki_kernels import bench, plan, sharing
from nki_kernels.closed_form import amounts

TRN2 = chips.load("trn2")
LANE = plan.LANE
RANKS = (1, 2, 4, 8, 16)
LONGEST = 20_000  # tokens x heads of a rank x slots: beyond that a timeline takes seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stacks", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    args = parser.parse_args()
    rng, known = random.Random(args.seed), []
    for _ in track(range(args.stacks), "timing stacks", console=Console(stderr=True)):
        known.append(timed(rng))
    features = np.array([list(amounts(shapes).values()) for shapes, _, _ in known], float)
    names = list(amounts(known[0][0]))
    layers, firsts = (np.array([row[i] for row in known]) for i in (1, 2))
    fitted = np.arange(len(known)) % 3 > 0
    numbers, _ = nnls(features[fitted] / layers[fitted, None], np.ones(fitted.sum()))
    passes = np.array([not shapes.ring for shapes, _, _ in known])
    first = float(np.median(firsts[fitted & passes]))
    errors = np.abs((features @ numbers) / layers - 1)[~fitted]
    ranks = np.array([shapes.ranks for shapes, _, _ in known])[~fitted]
    table = Table(title=f"nanoseconds, fitted to {fitted.sum()} stacks (modelled)")
    for heading in ("of each", "ns"):
        table.add_column(heading, justify="left" if heading == "of each" else "right")
    for name, ns in zip(names, numbers, strict=True):
        table.add_row(name, f"{ns:.4g}")
    table.add_row("first layer", f"{first:.4g}")
    shown = {"mean": errors.mean(), "of_ten_nine": np.quantile(errors, 0.9), "worst": errors.max()}
    by_ranks = {n: errors[ranks == n].mean() for n in RANKS if np.any(ranks == n)}
    eight = np.array([bool(shapes.weight_dtype) for shapes, _, _ in known])[~fitted]
    wide = np.array([shapes.parts > 1 for shapes, _, _ in known])[~fitted]
    table.caption = f"on the {len(errors)} others it misses " + ", ".join(
        f"{name.replace('_', ' ')} {error:.1%}" for name, error in shown.items()
    )
    table.caption += f"; in eight bits {errors[eight].mean():.1%}"
    table.caption += f"; in heads of 256 {errors[wide].mean():.1%}"
    table.caption += "; by cores " + ", ".join(f"{n}: {e:.1%}" for n, e in by_ranks.items())
    Console().print(table)
    report = {
        "kind": "modelled",
        "layer_ns": dict(zip(names, map(float, numbers), strict=True)),
        "first_ns": first,
        "errors": {name: float(error) for name, error in shown.items()},
        "error_in_eight_bits": float(errors[eight].mean()),
        "error_in_heads_of_256": float(errors[wide].mean()),
        "errors_by_cores": {str(n): float(error) for n, error in by_ranks.items()},
    }
    write_json(args.json, report | provenance())


def timed(rng: random.Random) -> tuple[plan.Shapes, float, float]:
    """A random stack that the kernel takes, as one core has it; nanoseconds of a layer, and those
    that the first takes more."""
    while True:
        ranks = rng.choice(RANKS)
        head = LANE * rng.choice((1, 1, 2))
        heads = ranks * rng.randint(1, (12 if ranks == 1 else 3) * LANE // head)
        dim, mlp = LANE * rng.randint(2, 16), LANE * ranks * rng.randint(1, 40 // ranks)
        tokens = rng.choice((64, 144, 256, 320, 510, 576, 1024, 1536, 2040))
        places = rng.choice((0, 0, 1, 2))  # half of the stacks commit a frame
        slots = 0 if places else rng.randint(0, 5)
        odd = not (0.7 * dim <= mlp <= 4.5 * dim and 0.4 * dim <= heads * head <= 1.2 * dim)
        if odd or tokens * heads * head // LANE // ranks * max(slots, 1) > LONGEST:
            continue
        stack = StackShape(
            1, tokens, dim, 2, heads, head, mlp, rng.choice((64, 128, 256, 600)), slots, slots + 1,
            1, "bfloat16", rng.choice(("", "", "float8_e4m3")), places,
        )  # fmt: skip
        try:
            shapes = sharing.share(stack, ranks, sbuf_bytes=int(TRN2["sbuf_bytes_per_partition"]))
        except NotImplementedError:
            continue
        return shapes, *bench.layer_and_others_ns(shapes, TRN2)[:2]


if __name__ == "__main__":
    main()
