"""`lsd`: one command line, a module per subcommand, imported only when it is asked for."""

from __future__ import annotations

import argparse
import glob
import importlib
import os
import sys
from pathlib import Path

from lsd_jax.digests import check_outside
from lsd_jax.files import check_writable

COMMANDS = {
    "stream": "a video, a folder of images or a camera in, a video out",
    "serve": "a page and an API for live sessions: camera in, transformed stream out",
    "replay": "a session that serve has recorded, once more, picture for picture",
    "demo": "the bundled clip through the shipped model, with a report",
    "train": "any training stage, resumable",
    "eval": "fidelity and drift of a checkpoint, on worlds it has never seen",
    "prune": "a checkpoint with fewer layers, heads and channels, or with 2:4 sparsity",
    "quantize": "a checkpoint with eight-bit weights, and what that costs",
    "export": "a frame step packed for a Trainium machine, and what to run there",
    "info": "parameters, tokens, FLOPs and bytes of a config",
    "plan": "whether a config holds a frame rate on a chip, and where the time goes",
    "search": "the architectures that are fastest for their quality on a chip, as config files",
    "bench": "cycles of the blocks on a chip, measured, compiled or modelled",
}

EXAMPLES = {
    "stream": 'lsd stream clip.mp4 --prompt "make it night" --at 3s "film noir" -o out.mp4',
    "serve": "lsd serve --slots 4",
    "replay": "lsd replay records/5f1c -o session.mp4",
    "demo": "lsd demo --out out",
    "train": "lsd train configs/tiny.py --stage forcing --set train.batch=16",
    "eval": "lsd eval checkpoints/tiny --json report.json --plots plots",
    "prune": "lsd prune checkpoints/tiny --keep mlp=768,layers=5 -o pruned",
    "quantize": "lsd quantize checkpoints/tiny --format int8 -o tiny-int8",
    "export": "lsd export tiny --chip trn2 -o tiny-trn2",
    "info": "lsd info tiny --set model.layers=12",
    "plan": "lsd plan base --chip v6e --fps 30 --price 1.2",
    "search": "lsd search --chip trn2 --fps 30 -o found",
    "bench": "lsd bench stack --chip v6e",
}

OUTPUTS = {"json", "plot", "out", "output"}
"""Options that name what is written, in any subcommand."""


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand. Bad input prints one line and gives 2, as does an interruption, after
    what was done so far has been kept."""
    argv = sys.argv[1:] if argv is None else argv
    _quiet_libtpu()
    parser = argparse.ArgumentParser(
        prog="lsd",
        description="Live-stream diffusion: transforms a stream one frame per call.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  " + EXAMPLES["stream"],
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="example:\n  " + EXAMPLES[name],
        )
        if name in argv[:1]:
            importlib.import_module(f"lsd_jax.cli.{name}").add_arguments(command)
            command.add_argument(
                "--set",
                action="append",
                default=[],
                metavar="SECTION.FIELD=VALUE",
                help="override a config field, for example stream.passes=2",
            )
            command.add_argument("--json", metavar="PATH", help="write the report for machines")
    args = parser.parse_args(argv)
    module = importlib.import_module(f"lsd_jax.cli.{args.command}")
    try:
        _check_outputs(args)  # now, not after minutes of work
        module.run(args)
    except (ValueError, OSError, OverflowError) as error:
        print(f"lsd {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        note = str(interruption) or "interrupted; nothing was left half-written"
        print(f"lsd {args.command}: {note}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # Of JAX's errors, its first line has the number of bytes.
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = str(error).split("\n")[0]
        print(f"lsd {args.command}: out of memory; ask for less at once: {line}", file=sys.stderr)
        return 2
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises ValueError where a file would be written over another output, or over a file that
    another argument names, or into a checkpoint, to which a file more is damage; OSError where the
    report cannot be written."""
    names: dict[str, str] = {}
    for name, value in vars(args).items():
        for path in value if isinstance(value, list) else [value]:
            if name == "command" or not isinstance(path, str | Path):
                continue
            if name in OUTPUTS:
                check_outside(path)
            real = os.path.realpath(path)
            both = {name, names.setdefault(real, name)}
            outputs = both & OUTPUTS
            if len(both) == 2 and outputs and (outputs == both or os.path.isfile(real)):
                raise ValueError(
                    f"{str(path)!r} is given as {' and as '.join(sorted(both))}; give what is "
                    "written a place of its own"
                )
    if args.json is not None:
        os.makedirs(os.path.dirname(os.path.abspath(args.json)), exist_ok=True)
        check_writable(args.json)


def _quiet_libtpu() -> None:
    """Where there is no TPU, libtpu is here to compile for one, and warns that it finds none."""
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/*"):
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    if isinstance(error, OverflowError):
        return f"a number is too large, give less: {error}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
