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
    `path` is still there, and nothing beside it."""
    target = Path(path)
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
        beside = _beside(target)
        beside.touch()
        beside.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def make_folder(path: Path) -> None:
    """Makes a folder for results. Raises OSError where that or writing there is impossible, now."""
    path.mkdir(parents=True, exist_ok=True)
    check_writable(path / "result")


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def read_json(path: str | Path) -> Any:
    """What a file of JSON holds. Raises ValueError, with its name, for any other; OSError for one
    that cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of its syntax, or its encoding
        raise ValueError(f"{path} is no JSON: {error}") from error
