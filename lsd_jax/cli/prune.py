"""`lsd prune`: a checkpoint with fewer layers, heads and MLP channels, or with 2:4 sparsity."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsd_jax.cli.options import another_place, at_least, parse_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="weights, such as checkpoints/tiny")
    parser.add_argument(
        "--keep", default="", metavar="PART=N,...", help="layers, heads, mlp; as mlp=768,layers=5"
    )
    parser.add_argument("--chip", help="instead of --keep: cut what this chip, such as v6e, wants")
    parser.add_argument("--fps", type=float, help="with --chip: frames a second for it to hold")
    parser.add_argument("--two-four", action="store_true", help="zero two of each four weights")
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the result goes")
    parser.add_argument(
        "--multiple", type=int, default=128, help="of which mlp must be a multiple (default: 128)"
    )
    parser.add_argument(
        "--batches", type=int, default=16, help="of clips to score the parts on (default: 16)"
    )


def run(args: argparse.Namespace) -> None:
    keep = parse_counts("--keep", args.keep, ("layers", "heads", "mlp"))
    if not keep and not args.two_four and not args.chip:
        raise ValueError("nothing to prune; give --keep mlp=768, --chip v6e --fps 30 or --two-four")
    if args.chip and keep:
        raise ValueError("give --keep or --chip, not both: the chip decides what is kept")
    if bool(args.chip) != (args.fps is not None) or (args.fps is not None and not args.fps > 0):
        raise ValueError("--chip and --fps go together, and --fps is more than 0")
    at_least(args, multiple=1, batches=1)
    if args.chip and args.two_four and args.multiple % 4:
        raise ValueError(f"--multiple {args.multiple}: --two-four needs a multiple of 4")
    if keep.get("mlp", 0) % args.multiple:
        raise ValueError(
            f"mlp={keep['mlp']} is no multiple of {args.multiple}, which matrix units want; "
            "--multiple 1 allows it"
        )
    another_place(args.out, args.checkpoint)

    import dataclasses
    import shlex

    from flax import nnx
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.checkpoint import save_weights
    from lsd_jax.cli.info import sizes
    from lsd_jax.hw import chips
    from lsd_jax.pretrained import load_model
    from lsd_jax.prune import budget, two_four
    from lsd_jax.prune.structured import check, cut
    from lsd_jax.reports import provenance, write_json

    chip = chips.load(args.chip) if args.chip else None
    model, config = load_model(args.checkpoint, args.set)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    check(config.model, keep)
    if args.two_four and keep.get("mlp", config.model.mlp) % 4:
        raise ValueError("--two-four needs an mlp that is a multiple of 4")
    if chip and args.fps:  # now, not behind the scores
        budget.check(config, chip, args.fps, args.multiple)
    smaller, planned = config, None
    if keep or chip:
        scores = score(config, params, args.batches)
        if chip and args.fps:
            planned = budget.cut_for(config, scores, chip, args.fps, args.multiple)
            keep = planned.keep
        shape, params = cut(config.model, params, scores, keep)
        smaller = dataclasses.replace(config, model=shape)
    if args.two_four:
        params = two_four.sparsify(params)
        train = dataclasses.replace(smaller.train, keep_zeros=True)
        smaller = dataclasses.replace(smaller, train=train)
    save_weights(args.out, params, smaller)

    before, after = sizes(config), sizes(smaller)
    counted = ("parameters", "flops_per_frame")
    table = Table(title="counted", title_justify="left")
    for column in ("", "before", "after", "removed"):
        table.add_column(column, justify="left" if not column else "right")
    for name in counted:
        a, b = before[name], after[name]
        table.add_row(name.replace("_", " "), f"{a:,}", f"{b:,}", f"{1 - b / a:.1%}")
    console = Console()
    console.print(table)
    if planned:
        console.print(
            f"on {args.chip} (modelled): {planned.before_ms:.3f} ms a frame before, "
            f"{planned.after_ms:.3f} after; {planned.lost:.1%} of the importance went",
            highlight=False,
            soft_wrap=True,
        )
    out, teacher = shlex.quote(str(args.out)), f"distill.teacher={args.checkpoint}"
    console.print(
        f"wrote {args.out}; it recovers by\n  lsd train {out} --stage distill --init {out} "
        f"--out {shlex.quote(f'{args.out}-recovered')} --set {shlex.quote(teacher)}",
        highlight=False,
        soft_wrap=True,
    )
    report = {"kept": keep, "two_four": args.two_four, "checkpoint": str(args.checkpoint)}
    report |= {"chip": args.chip, "fps": args.fps, **vars(planned)} if planned else {}
    report |= {"before": {n: before[n] for n in counted}, "after": {n: after[n] for n in counted}}
    write_json(args.json, report | provenance())


def score(config, params: dict, count: int):
    """Importance of each part on `count` batches, half of them streams of the model itself."""
    import dataclasses

    import jax
    from rich.progress import track

    from lsd_jax import sharding
    from lsd_jax.prune.score import importance
    from lsd_jax.train.stages import prepare

    history = dataclasses.replace(
        config.history, corrupted=0.0, rolled_out=0.5, drift_penalty=0.0, level_input=False
    )
    few = min(8, max(2, config.train.batch))  # of one clip, no half is a stream
    train = dataclasses.replace(config.train, video_fraction=0.0, batch=few)
    config = dataclasses.replace(config, history=history, train=train)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    stage = prepare("history", config, None, mesh)

    steps = track(range(count), "scoring", transient=True)
    batches = (stage.make(step, params, stage.draw(step)) for step in steps)
    return importance(config, params, batches)
