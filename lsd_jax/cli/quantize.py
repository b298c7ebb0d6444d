"""`lsd quantize`: a checkpoint with eight-bit weights, and what that costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsd_jax.cli.options import another_place, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="weights, such as checkpoints/tiny")
    parser.add_argument("--format", default="int8", choices=("int8", "fp8"), help="default: int8")
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the result goes")
    parser.add_argument(
        "--worlds", type=int, default=1, help="to measure the loss on (default: 1; 0: do not)"
    )
    parser.add_argument("--frames", type=int, default=8, help="of each stream (default: 8)")


def run(args: argparse.Namespace) -> None:
    at_least(args, worlds=0, frames=1)
    another_place(args.out, args.checkpoint)

    import jax
    from flax import nnx
    from rich.console import Console
    from rich.progress import Progress

    from lsd_jax.checkpoint import save_weights
    from lsd_jax.model import build
    from lsd_jax.pretrained import load_model
    from lsd_jax.quantize import dequantize, quantize
    from lsd_jax.reports import provenance, write_json

    model, config = load_model(args.checkpoint, args.set)
    if args.worlds and config.model.external_text_dim:  # now, not with the result written
        raise ValueError(
            "this model takes prompts as embeddings, and only text can be measured; give --worlds 0"
        )
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    small = quantize(params, args.format)
    save_weights(args.out, small, config)
    before, after = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, small))
    report = {"format": args.format, "checkpoint": str(args.checkpoint)}
    report |= {"weight_bytes": {"before": before, "after": after}}
    console = Console()
    console.print(
        f"wrote {args.out}: {before / 1e6:.1f} MB of weights became {after / 1e6:.1f} MB",
        soft_wrap=True,
    )
    if args.worlds:
        with Progress(transient=True) as bar:
            task = bar.add_task("measuring", total=2 * frames(args))
            models = (model, build(config.model, dequantize(small)))
            psnr = [quality(m, config, args, lambda n: bar.advance(task, n)) for m in models]
        report["psnr_db"] = {"before": psnr[0], "after": psnr[1], "kind": "measured"}
        console.print(
            f"measured: {psnr[0]:.3f} dB before, {psnr[1]:.3f} dB after, "
            f"{psnr[1] - psnr[0]:+.3f} dB",
            highlight=False,
            soft_wrap=True,
        )
    write_json(args.json, report | provenance())


def frames(args: argparse.Namespace) -> int:
    """All frames that one `quality` streams."""
    from lsd_jax.evaluate.held_out import ASKS

    return args.worlds * len(ASKS) * args.frames


def quality(model, config, args: argparse.Namespace, done) -> float:
    """Mean PSNR of the first streams of `lsd eval`."""
    from lsd_jax.evaluate import fidelity, held_out, report
    from lsd_jax.evaluate.streams import ModelStreams

    streams = ModelStreams(model, config, batch=8, seed=0)
    clips = held_out.clips(config.model, args.worlds, args.frames, seed=0)
    return report.summary(list(fidelity.measure(streams, clips, 8, done)))["psnr_db"]["mean"]
