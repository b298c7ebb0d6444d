"""`lsd train`: any training stage, resumable."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

STAGES = ("forcing", "history", "shortcut", "distill")  # train.stages.NAMES, without importing JAX


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", help="a .py file, a shipped name such as tiny, or a checkpoint, for its config"
    )
    parser.add_argument(
        "--stage",
        default="forcing",
        choices=STAGES,
        help="forcing, from the beginning (default); history, against drift; shortcut, for fewer "
        "passes; distill, to recover a pruned model",
    )
    parser.add_argument(
        "--out", type=Path, help="run directory, gone on from (default: runs/NAME-STAGE)"
    )
    parser.add_argument(
        "--init",
        type=Path,
        help="weights to start from, such as checkpoints/tiny, where --out holds no run yet",
    )
    parser.add_argument(
        "--videos",
        type=Path,
        help="a folder of your own videos to mix in, with --set train.video_fraction=0.5",
    )
    parser.add_argument("--minutes", type=float, help="stop, with all saved, after so many")
    parser.add_argument(
        "--mesh",
        default="",
        metavar="AXIS=N,...",
        help="devices along data, fsdp, tensor; as fsdp=4",
    )
    parser.add_argument(
        "--distributed", action="store_true", help="one process per host: jax.distributed first"
    )


def run(args: argparse.Namespace) -> None:
    if args.minutes is not None and not args.minutes > 0:
        raise ValueError(f"--minutes {args.minutes}: give more than 0, or leave it out")

    import time

    import jax

    if args.distributed:
        jax.distributed.initialize()

    from lsd_jax import config as configs
    from lsd_jax.cli.options import parse_counts
    from lsd_jax.heap import keep_memory
    from lsd_jax.pretrained import load_settings
    from lsd_jax.reports import provenance, write_json
    from lsd_jax.sharding import AXES, make_mesh
    from lsd_jax.train import stages
    from lsd_jax.train.loop import train
    from lsd_jax.train.step import explain_attention

    keep_memory()
    config = configs.override(load_settings(args.config), args.set)
    mesh = make_mesh(**parse_counts("--mesh", args.mesh, AXES))
    out = args.out or Path("runs") / f"{config.name}-{args.stage}"
    attention = explain_attention(config, mesh)
    stage = stages.prepare(args.stage, config, args.videos, mesh)
    if config.train.backend == "auto":
        chosen = next(by for by, said in attention.items() if said == "chosen")
        refused = "" if chosen == "pallas" else f"; pallas {attention['pallas']}"
        print(f"attention by {chosen}{refused}")
    started = time.monotonic()
    steps = train(
        config,
        stage.loss,
        stage.draw,
        out,
        mesh,
        init_from=args.init,
        deadline_s=args.minutes * 60 if args.minutes else None,
        make=stage.make,
        stage=args.stage,
    )
    write_json(
        args.json,
        {
            "steps": steps,
            "config": asdict(config),
            "weights": str(out / "weights"),
            "attend": attention,
            **provenance(),
        },
    )
    kept = f"{steps} steps are kept in {out}, their weights in {out / 'weights'}"
    late = args.minutes is not None and time.monotonic() - started > args.minutes * 60
    if steps < config.train.steps and not late:
        raise KeyboardInterrupt(f"interrupted; {kept}; the same command goes on from there")
    print(kept)
