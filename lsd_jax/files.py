"""Files that appear whole or not at all, and are read or refused by name."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write what will be at `path` once the block has ended; after an error what was at
    `path` is still there, and nothing beside it. What a link names is replaced, not the link. A
    pipe or a device is itself where to write."""
    if _is_special(Path(path)):
        yield Path(path)
        return
    target = _named(path)
    beside = _beside(target)
    try:
        yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raises OSError, with its name, for a file that cannot be written or replaced: now, and not
    behind the work whose result it is to hold."""
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(target):  # opened now, a pipe would wait for who reads it
            return
        beside = _beside(_named(path))
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def make_folder(path: Path) -> None:
    """Makes a folder for results. Raises OSError where that or writing there is impossible, now."""
    path.mkdir(parents=True, exist_ok=True)
    check_writable(path / "result")


def _named(path: str | Path) -> Path:
    """The file that `path` names, behind all links."""
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    """Whether there is something that no file may replace, such as a pipe or /dev/stdout."""
    return path.exists() and not path.is_file()


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def read_json(path: str | Path) -> Any:
    """What a file of JSON holds. Raises ValueError, with its name, for any other; OSError for one
    that cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of its syntax, or its encoding
        raise ValueError(f"{path} is no JSON: {error}") from error
