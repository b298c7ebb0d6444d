"""`lsd replay`: a recorded session through the model once more, compared and written as a video."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", type=Path, help="a session's folder under lsd serve --record DIR")
    parser.add_argument("-o", "--output", help="write what the session showed as a video")
    parser.add_argument("--checkpoint", help="default: the one that was recorded with")


def run(args: argparse.Namespace) -> None:
    import asyncio
    from contextlib import nullcontext

    from rich.console import Console

    from lsd_jax.data.containers import DEFAULT_FPS
    from lsd_jax.data.video import VideoSink
    from lsd_jax.live import journal
    from lsd_jax.live.replay import replay
    from lsd_jax.live.slots import Slots
    from lsd_jax.pretrained import load_model
    from lsd_jax.reports import provenance, write_json
    from lsd_jax.stream import prepare

    about, _ = journal.read(args.record)
    checkpoint = args.checkpoint or about["checkpoint"] or None
    with Console(stderr=True).status("loading, compiling and replaying"):
        model, config = load_model(checkpoint, [*about["overrides"], *args.set])
        size = config.model.height, config.model.width
        slots = Slots(prepare(model, config), config, 1)
        writing = VideoSink(args.output, size=size, fps=DEFAULT_FPS) if args.output else None
        with writing or nullcontext() as sink:
            show = sink.write if sink else lambda image, time_s: None
            found = asyncio.run(replay(args.record, slots, show))
        slots.close()
    write_json(args.json, {"kind": "measured", **vars(found), **provenance()})
    print(f"{found.frames} frames, {found.equal} of them equal to what was shown (measured)")
    if found.first_difference is not None:
        print(
            f"frame {found.first_difference} is the first that differs: other weights, settings "
            f"or machine than those of {about['commit'] or 'an unknown commit'}"
        )
        raise SystemExit(1)
