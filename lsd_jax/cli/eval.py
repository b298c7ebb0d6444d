"""`lsd eval`: fidelity, prompt accuracy and drift of a checkpoint, on worlds held out."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="weights, such as checkpoints/tiny")
    parser.add_argument("--worlds", type=int, default=4, help="streams per edit (default: 4)")
    parser.add_argument("--frames", type=int, default=32, help="frames of each (default: 32)")
    parser.add_argument(
        "--drift-frames", type=int, default=0, metavar="N", help="also 8 streams of N frames"
    )
    parser.add_argument("--batch", type=int, default=8, help="streams at once (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="which held-out worlds (default: 0)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write PNGs there")


def run(args: argparse.Namespace) -> None:
    for name, least in dict(worlds=1, frames=1, drift_frames=0, batch=1, seed=0).items():
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {getattr(args, name)}: give at least {least}")
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)  # now, not after minutes of work

    import dataclasses

    from rich.console import Console

    from lsd_jax import reports
    from lsd_jax.evaluate import report

    config, params = load(args.checkpoint, args.set)
    origin = reports.provenance()  # as it was when this started
    found, outcomes = evaluate(config, params, args)
    found |= {
        "kind": "measured",
        "checkpoint": str(args.checkpoint),
        "seed": args.seed,
        "worlds": args.worlds,
        "passes": config.stream.passes,
        "config": dataclasses.asdict(config),
        **origin,
    }
    reports.write_json(args.json, found)
    console = Console()
    for table in report.tables(found):
        console.print(table)
    for line in report.lines(found):
        console.print(line, highlight=False)
    if args.plots:
        from lsd_jax.evaluate.plots import save_plots

        for path in save_plots(found, outcomes, args.plots):
            console.print(f"wrote {path}", highlight=False)


def load(checkpoint: Path, assignments: list[str]):
    """Config, with `stream` settings overridden, and float32 parameters: weights as they were
    saved, or the running mean from a step of a training run.

    Raises CheckpointError for a damaged checkpoint and for settings that ask for other weights.
    """
    import jax

    from lsd_jax import config as configs
    from lsd_jax.checkpoint import CheckpointError, load_config, load_weights
    from lsd_jax.model import abstract_params

    config = configs.override(load_config(checkpoint), assignments)
    params, _ = load_weights(checkpoint, config=config.model)
    if "ema" in params:
        params = params["ema"]
    found, expected = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (params, abstract_params(config.model))
    )
    if wrong := sorted(k for k in found | expected if found.get(k) != expected.get(k)):
        raise CheckpointError(f"{checkpoint}: weights of another version differ in {wrong[0]}")
    return config, jax.tree.map(lambda x: x.astype("float32"), params)


def evaluate(config, params: dict, args: argparse.Namespace):
    """All figures of a model, and the outcome of each stream, under a progress bar."""
    from rich.progress import Progress

    from lsd_jax.evaluate import drift, fidelity, held_out, report
    from lsd_jax.model import build

    total = args.worlds * len(held_out.ASKS) * args.frames + drift.STREAMS * args.drift_frames
    with Progress(transient=True) as bar:  # a percentage and the time left
        task = bar.add_task("compiling", total=total)

        def done(frames: int) -> None:
            bar.update(task, advance=frames, description="streaming")

        streams = fidelity.model_stream(build(config.model, params), config, args.batch, args.seed)
        clips = held_out.clips(config.model, args.worlds, args.frames, args.seed)
        outcomes = list(fidelity.measure(streams, clips, args.batch, done))
        found = report.summary(outcomes)
        if args.drift_frames:
            found["drift"]["long"] = drift.long_run(
                streams, config.model, args.drift_frames, args.batch, args.seed, done
            )
    return found, outcomes
