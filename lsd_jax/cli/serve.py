"""`lsd serve`: a page on this machine, and an API, for live sessions of a model."""

from __future__ import annotations

import argparse
import os

VIDEO = "lsd_jax.live.video:VideoModel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default=VIDEO,
        help="package.module:Class of a lsd_jax.runtime.Model; default: the diffusion stream",
    )
    parser.add_argument("--host", default="127.0.0.1", help="elsewhere needs LSD_API_KEY to be set")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--engines", type=int, default=1, help="processes, one per accelerator")
    parser.add_argument(
        "--engine",
        choices=("process", "ray"),
        default="process",
        help="engines as processes here, or on the Ray cluster at RAY_ADDRESS (default: process)",
    )
    parser.add_argument(
        "--resource",
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="what an engine asks of the cluster, for example GPU=1 or TPU=4; repeatable",
    )
    parser.add_argument("--slots", type=int, help="sessions of an engine at a time")
    parser.add_argument("--checkpoint", help="default: the shipped checkpoints/tiny")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the model's own, for example step_ms=30; repeatable",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="a page's origin that may connect, beside our own; repeatable",
    )
    parser.add_argument(
        "--record", metavar="DIR", help="record every session there, for lsd replay; its users' too"
    )
    parser.add_argument("--queue", type=int, default=8, help="clients that may wait for a slot")
    parser.add_argument(
        "--max-session-s",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="after which a session ends (default: an hour)",
    )
    parser.add_argument(
        "--opens-per-minute",
        type=int,
        default=120,
        metavar="N",
        help="sessions and tokens of one address, and as many wrong keys (default: 120)",
    )
    parser.add_argument("--stun", action="append", default=[], metavar="stun:HOST:PORT")
    parser.add_argument(
        "--turn",
        action="append",
        default=[],
        metavar="turn:HOST:PORT",
        help="a coturn whose static-auth-secret is in LSD_TURN_SECRET",
    )


def run(args: argparse.Namespace) -> None:
    try:
        from lsd_jax.serve.main import serve
        from lsd_jax.serve.settings import Settings
    except ModuleNotFoundError as error:
        raise ValueError(f"no {error.name}; install it by pip install -e '.[serve]'") from error

    settings = Settings(
        model=args.model,
        config=model_config(args),
        engines=args.engines,
        engine=args.engine,
        resources=tuple(resource(text) for text in args.resource),
        host=args.host,
        port=args.port,
        api_key=os.environ.get("LSD_API_KEY", ""),
        origins=tuple(args.origin),
        queue=args.queue,
        max_session_s=args.max_session_s,
        opens_per_minute=args.opens_per_minute,
        stun=tuple(args.stun),
        turn=tuple(args.turn),
        turn_secret=os.environ.get("LSD_TURN_SECRET", ""),
    )
    serve(settings, args.json)


def resource(text: str) -> tuple[str, float]:
    """`GPU=1` as a name and an amount. Raises ValueError."""
    name, _, amount = text.partition("=")
    try:
        if name and 0 < float(amount) < float("inf"):
            return name, float(amount)
    except ValueError:
        pass
    raise ValueError(f"--resource {text!r}: write it as NAME=AMOUNT, for example GPU=1")


def model_config(args: argparse.Namespace) -> dict:
    """The fields of the model's config that the options name. Raises ValueError."""
    config: dict = {}
    for option in args.option:
        name, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"--option {option!r}: write it as name=value")
        config[name] = _value(text)
    if args.slots is not None:
        config["slots"] = args.slots
    if args.checkpoint:
        config["checkpoint"] = args.checkpoint
    if args.record:
        config["record"] = os.path.abspath(args.record)
    if args.set:
        config["overrides"] = tuple(args.set)
    return config


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
