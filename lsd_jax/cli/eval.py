"""`lsd eval`: fidelity, prompt accuracy and drift of a checkpoint, on worlds held out."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsd_jax.cli.options import a_folder, a_seed, at_least

LONG_STREAMS = 19  # evaluate.drift.STREAMS, without importing JAX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="weights, such as checkpoints/tiny")
    parser.add_argument("--worlds", type=int, default=4, help="streams per edit (default: 4)")
    parser.add_argument("--frames", type=int, default=32, help="frames of each (default: 32)")
    parser.add_argument(
        "--drift-frames",
        type=int,
        default=200,
        metavar="N",
        help="frames of the long streams, each of another edit (default: 200; 0: none)",
    )
    parser.add_argument(
        "--drift-streams",
        type=int,
        default=LONG_STREAMS,
        metavar="N",
        help=f"how many of those (default: {LONG_STREAMS}; the last three edit an object)",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="keep long streams there, and go on from there"
    )
    parser.add_argument(
        "--passes",
        default="",
        metavar="K,...",
        help="compare so many passes a frame",
    )
    parser.add_argument("--batch", type=int, default=8, help="streams at once (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="which held-out worlds (default: 0)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write PNGs there")


def run(args: argparse.Namespace) -> None:
    at_least(args, worlds=1, frames=1, drift_frames=0, drift_streams=1, batch=1)
    a_seed(args.seed)
    if args.drift_streams > LONG_STREAMS:
        raise ValueError(
            f"--drift-streams {args.drift_streams}: there are {LONG_STREAMS}, one for each edit of "
            "footage or of an object"
        )
    compared = parse_passes(args.passes)
    for folder in filter(None, (args.plots, args.work)):
        a_folder(folder)  # now, not after minutes of work

    import dataclasses

    from rich.console import Console
    from rich.progress import Progress

    from lsd_jax import reports
    from lsd_jax.evaluate import report
    from lsd_jax.evaluate.streams import ModelStreams
    from lsd_jax.pretrained import load_model

    model, config = load_model(args.checkpoint, args.set)

    def opened(config):
        return ModelStreams(model, config, args.batch, args.seed)

    origin = reports.provenance()  # as it was when this started
    with Progress(transient=True) as bar:  # a percentage and the time left
        streams = opened(config)
        found, outcomes = fidelity_and_drift(streams, args, bar)
        seen = react(model, streams, args, found, bar)
        if compared:
            found["by_passes"] = {str(config.stream.passes): report.digest(found)}
        for passes in compared - {config.stream.passes}:
            other = dataclasses.replace(config.stream, passes=passes)
            other = dataclasses.replace(config, stream=other)
            others, _ = fidelity_and_drift(opened(other), args, bar)
            found["by_passes"][str(passes)] = report.digest(others)
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
        console.print(line, highlight=False, soft_wrap=True)
    if args.plots:
        from lsd_jax.evaluate.plots import save_plots

        for path in save_plots(found, outcomes, seen, args.plots):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def fidelity_and_drift(streams, args: argparse.Namespace, bar):
    """The report on short streams and on long ones, and the outcome of each short one."""
    from lsd_jax.evaluate import drift, fidelity, held_out, report

    config = streams.config
    short = args.worlds * len(held_out.ASKS) * args.frames
    done = _counter(bar, config, short + args.drift_streams * args.drift_frames)
    clips = held_out.clips(config.model, args.worlds, args.frames, args.seed)
    outcomes = list(fidelity.measure(streams, clips, args.batch, done))
    found = report.summary(outcomes)
    if args.drift_frames:
        long = drift.long_run(
            lambda texts, references: streams.of(len(texts))(texts, references),
            config.model,
            args.drift_frames,
            args.batch,
            args.seed,
            done,
            args.drift_streams,
            args.work,
        )
        found["flicker"] = long.pop("flicker")
        found["drift"] |= long
    return found, outcomes


def react(model, streams, args: argparse.Namespace, found: dict, bar) -> dict:
    """Adds to the report how streams react and what they remember for long; gives pictures of
    the latter."""
    from lsd_jax.data import worlds
    from lsd_jax.evaluate import reactions, returning

    config = streams.config
    visits = 3 * returning.FRAMES * len(worlds.OBJECT_EDITS) * args.worlds
    done = _counter(bar, config, reactions.FRAMES + (visits if config.model.memory else 0))
    found |= reactions.measure(streams.anew(), config.model, args.seed, done)
    if not config.model.memory:
        return {}
    found["memory"], seen = returning.measure(model, streams.anew(), args.worlds, args.seed, done)
    return seen


def _counter(bar, config, frames: int):
    """Counts so many frames on the bar, beginning with the compilation."""
    task = bar.add_task("compiling", total=frames)
    passes = f"streaming at {config.stream.passes} pass" + "es" * (config.stream.passes > 1)

    def done(frames: int) -> None:
        bar.update(task, advance=frames, description=passes)

    return done


def parse_passes(text: str) -> set[int]:
    """`1,2,4` as a set. Raises ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part in ("1", "2", "3", "4") for part in parts):
        raise ValueError(f"--passes {text!r}: write numbers of passes from 1 to 4, as in 1,2,4")
    return {int(part) for part in parts}
