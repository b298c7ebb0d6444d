"""Files that appear whole or not at all, and are read or refused by name."""

from __future__ import annotations

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
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield beside
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """What a file of JSON holds. Raises ValueError, with its name, for any other; OSError for one
    that cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of its syntax, or its encoding
        raise ValueError(f"{path} is no JSON: {error}") from error
