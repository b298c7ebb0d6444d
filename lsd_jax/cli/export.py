"""`lsd export`: a frame step for a Neuron machine, with the commands to compile and profile it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a .py file or a shipped name")
    parser.add_argument("--chip", required=True, help="trn1, trn2 or trn3")
    parser.add_argument("-o", "--out", required=True, help="the folder to write")
    parser.add_argument(
        "--checkpoint",
        help="whose weights to pack, in its own settings; default: the shipped one of that config, "
        "else initial weights",
    )
    parser.add_argument("--seed", type=int, default=0, help="of initial weights; default: 0")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from lsd_jax import config as configs
    from lsd_jax.cli.options import a_seed
    from lsd_jax.export import check, export
    from lsd_jax.hw import chips
    from lsd_jax.pretrained import load_model, weights_for
    from lsd_jax.reports import write_json

    a_seed(args.seed)
    config = configs.override(configs.load(args.config), args.set)
    chip, out = chips.load(args.chip), Path(args.out)
    check(config, chip, out)
    with Console(stderr=True).status(f"exporting {config.name} for {chip.name}"):
        if args.checkpoint:
            asked = config.model
            denoiser, config = load_model(args.checkpoint, args.set)
            if differing := ", ".join(configs.differences(asked, config.model)):
                raise ValueError(
                    f"{args.checkpoint} is no {args.config} (asked != found): {differing}"
                )
            weights_from = args.checkpoint
        else:
            denoiser, weights_from = weights_for(config, args.seed)
        manifest = export(config, chip, out, denoiser, weights_from)
    write_json(args.json, manifest)
    print(
        f"{args.out}: frame step of {config.name} for {chip.name}, its blocks by the "
        f"{manifest['kernel']}, weights: {weights_from}; there, run commands.sh"
    )
