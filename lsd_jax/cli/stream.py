"""`lsd stream`: a video, a folder of images or a camera in, a transformed video out."""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path

from lsd_jax.cli.options import a_seed, at_least

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help="a video file, a folder of images, or camera:0")
    parser.add_argument("-o", "--output", required=True, help=".mp4 .mkv .mov .webm .gif or folder")
    parser.add_argument("--prompt", required=True, help="what to make of it")
    parser.add_argument(
        "--at",
        nargs=2,
        action="append",
        default=[],
        metavar=("TIME", "PROMPT"),
        help="change the prompt at a time such as 3s, 500ms or 1m30s; repeatable",
    )
    parser.add_argument("--reference", help="a picture whose look the prompt refers to")
    parser.add_argument(
        "--mask",
        help="a picture, white where to edit, stretched as the video is; elsewhere the input stays,"
        " at the model's resolution",
    )
    parser.add_argument("--checkpoint", help="default: the shipped checkpoints/tiny")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument(
        "--backend", help="who computes the blocks, such as xla or pallas; default: the best here"
    )
    parser.add_argument(
        "--chips", type=int, default=1, help="devices that share each frame (default: 1)"
    )


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    at_least(args, chips=1)
    a_seed(args.seed)
    schedule = [(0.0, args.prompt), *((parse_time(t), prompt) for t, prompt in args.at)]

    if args.backend == "nki-sim":
        # Its callback waits for a copy that XLA makes in another thread: one alone waits for ever.
        os.environ.setdefault("NPROC", "4")

    from lsd_jax.data.prompts import encode
    from lsd_jax.data.writers import check_target

    check_target(args.output)
    if Path(args.input).resolve() == Path(args.output).resolve():
        raise ValueError(f"{args.output!r} is the input itself; give another name for the output")
    for _, prompt in schedule:
        encode(prompt, 1 << 20)  # refuses an empty one before anything is loaded

    from rich.console import Console

    from lsd_jax.data.pictures import load_mask, load_picture
    from lsd_jax.data.video import VideoSink, VideoSource
    from lsd_jax.pretrained import load_model
    from lsd_jax.reports import write_json
    from lsd_jax.session import Session, play
    from lsd_jax.sharding import sharing

    overrides = [*args.set, f"stream.backend={args.backend}"] if args.backend else args.set
    waiting = Console(stderr=True).status("loading and compiling")
    with waiting:
        mesh = sharing(args.chips)
        model, config = load_model(args.checkpoint, overrides)
    height, width = config.model.height, config.model.width
    reference = load_picture(args.reference, height, width) if args.reference else None
    mask = load_mask(args.mask, height, width) if args.mask else None
    with VideoSource(args.input, height, width) as source:
        with waiting:
            session = Session(model, config, args.seed, mask, mesh)
        session.check(schedule)
        with VideoSink(
            args.output, size=source.size, fps=source.fps, audio_from=args.input
        ) as sink:
            report = play(
                session, source, sink, schedule, reference, started, source.frames, source.live
            )
    write_json(args.json, report)
    print(f"{args.output}: {summary(report)}")
    if report["interrupted"]:
        raise KeyboardInterrupt(f"interrupted; {report['frames']} frames are kept in {args.output}")


def summary(report: dict) -> str:
    """One line of what a stream reached."""
    latency = report["latency_ms"]
    rate = f"{report['fps']:.1f}" if report["fps"] else "-"
    return (
        f"{report['frames']} frames, {rate} fps, latency p50 {latency['p50']:.1f} "
        f"p99 {latency['p99']:.1f} max {latency['max']:.1f} ms, "
        f"{report['recompiles_after_warmup']} recompiles (measured, {report['backend']})"
    )


def parse_time(text: str) -> float:
    """Seconds of `3s`, `250ms`, `1m30s` or `90`. Raises ValueError for anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        raise ValueError(f"--at {text!r}: write a time such as 3s, 500ms or 1m30s")
    return sum(float(number) * UNITS[unit] for number, unit in parts)
