"""What subcommands ask of their options alike."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lsd_jax.digests import check_outside, check_place
from lsd_jax.files import make_folder


def at_least(args: argparse.Namespace, **smallest: int) -> None:
    """Raises ValueError for an option that is below its smallest value."""
    for name, least in smallest.items():
        if getattr(args, name) < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} {getattr(args, name)}: give at least {least}")


def a_rate(fps: float) -> None:
    """Raises ValueError for a rate at which no frame is due, or each at once."""
    if not (0 < fps < float("inf") and 1000 / fps < float("inf")):
        raise ValueError(f"--fps {fps}: give more than 0, and a finite number")


def a_seed(seed: int) -> None:
    """Raises ValueError for a seed of more than 31 bits, or a negative one."""
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed {seed}: give 0 to 2147483647")


def parse_counts(option: str, text: str, names: Sequence[str]) -> dict[str, int]:
    """`fsdp=4,tensor=2` as a dict. Raises ValueError for anything else and any other name."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if name not in names or not count.isdecimal():
            wanted = ",".join(f"{known}=N" for known in names)
            raise ValueError(f"{option} {text!r}: write {wanted}")
        found[name] = int(count)
    return found


def another_place(out: Path, checkpoint: Path) -> None:
    """Raises ValueError where a checkpoint would replace what it is made from, or anything but a
    checkpoint; OSError where it cannot be written."""
    if out.resolve() == checkpoint.resolve():
        raise ValueError(f"{out} is the checkpoint itself; give another place for the result")
    check_place(out)
    make_folder(out.resolve().parent)


def a_folder(path: Path) -> None:
    """Makes a folder for results. Raises ValueError inside of a checkpoint, to which a file more is
    damage; OSError where it cannot be written."""
    check_outside(path / "result")
    make_folder(path)
