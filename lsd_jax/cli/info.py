"""`lsd info`: the size of a config, worked out without any memory for its weights."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a .py file or a shipped name, such as lucy_1080p")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from lsd_jax import config as configs
    from lsd_jax.reports import write_json

    config = configs.override(configs.load(args.config), args.set)
    report = sizes(config)
    table = Table(title=f"{config.name} (counted)", show_header=False)
    for name, value in report.items():
        table.add_row(name.replace("_", " "), readable(name, value))
    Console().print(table)
    write_json(args.json, report)


def sizes(config) -> dict:
    """Parameters, tokens, operations and bytes of a streaming config; nothing is allocated."""
    import jax
    import jax.numpy as jnp

    from lsd_jax import stream
    from lsd_jax.flops import count_flops
    from lsd_jax.model import abstract_model

    model = config.model
    denoiser = abstract_model(model)
    prepared = stream.abstract_prepared(config)
    state, frame, controls = stream.abstract_inputs(config)

    def size_bytes(tree) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return {
        "config": config.name,
        "resolution": f"{model.width}x{model.height}",
        "parameters": sum(x.size for x in jax.tree.leaves(denoiser)),
        "tokens_per_frame": model.tokens,
        "keys_attended": model.keys + model.tokens,
        "passes": config.stream.passes,
        "flops_per_frame": count_flops(stream.frame_step, prepared, state, frame, controls),
        "flops_per_prompt_change": count_flops(
            stream.condition,
            prepared,
            state,
            stream.abstract_condition(config, 1),
            jax.ShapeDtypeStruct((1,), jnp.bool_),
        ),
        "weight_bytes": size_bytes(prepared),
        "state_bytes_per_session": size_bytes(state),
        "compute_dtype": config.stream.compute_dtype,
    }


def readable(name: str, value) -> str:
    """Large numbers with their unit."""
    if isinstance(value, str) or value < 1e5:
        return str(value)
    unit = "B" if "bytes" in name else "FLOP" if "flops" in name else ""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    return str(value)
