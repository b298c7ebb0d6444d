"""A digest for every file of a checkpoint, and one of the digests themselves."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from lsd_jax.files import read_json

FILE = "digests.json"


class CheckpointError(ValueError):
    """A checkpoint is damaged, absent, of another shape, or could not be written: one line."""


def verify(path: Path | str) -> None:
    """Raise CheckpointError, naming the file, unless each is there, as written, and no other is."""
    path = Path(path)
    files = _digests(path)
    for name in files:
        _check(path / name, files[name])
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()}
    for name in sorted(present - set(files) - {FILE}):
        raise CheckpointError(f"{path / name}: unexpected file, not in {FILE}; remove it")


def seal(directory: Path) -> None:
    """Write the digests of all files in `directory`, which makes it a whole checkpoint, on disk
    once this returns."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    (directory / FILE).write_text(_sealed({name: _digest(directory / name) for name in names}))
    for path in (*directory.rglob("*"), directory):
        flush(path)


def flush(path: Path) -> None:
    """Return once a file, or the names in a folder, would outlast a power loss."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def check_place(path: Path | str) -> None:
    """Raise CheckpointError where no checkpoint may be saved: over something else, or inside of
    another one, to which a file more is damage."""
    path = Path(path).absolute()
    full = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if full and not (path / FILE).is_file():
        raise CheckpointError(f"{path} exists and is no checkpoint; give another place")
    check_outside(path)


def check_outside(path: Path | str) -> None:
    """Raise CheckpointError where a file or folder at `path` would be inside of a checkpoint."""
    for outer in Path(path).resolve().parents:
        if (outer / FILE).is_file():
            raise CheckpointError(f"{path} is inside of the checkpoint {outer}; give another place")


def _digest(path: Path) -> dict:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": sha256}


def _sealed(files: dict[str, dict]) -> str:
    """The text of `digests.json`: one byte sequence per content, so that any flip shows."""
    seal = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "self": seal}, indent=1, sort_keys=True) + "\n"


def _digests(path: Path) -> dict[str, dict]:
    file = path / FILE
    if not file.is_file():
        what = "missing, so this is no whole checkpoint" if path.is_dir() else "no such checkpoint"
        inner = [p.parent for p in path.glob(f"[!.]*/{FILE}")]  # of a training run, or of its steps
        hint = f"; give {max(inner, key=lambda p: (len(p.name), p))}" if inner else ""
        raise CheckpointError(f"{file}: {what}{hint}")
    try:
        raw = file.read_bytes()
        files = json.loads(raw)["files"]
        if _sealed(files).encode() == raw:
            return files
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CheckpointError(f"{file}: damaged, it does not match its own digest")


def _check(file: Path, expected: dict) -> None:
    try:
        found = _digest(file)
    except OSError as error:
        raise CheckpointError(f"{file}: missing or unreadable: {error.strerror}") from None
    if found["size"] != expected["size"]:
        raise CheckpointError(f"{file}: {found['size']} bytes of {expected['size']} written")
    if found != expected:
        raise CheckpointError(f"{file}: damaged, it does not match its SHA-256")


def read_verified(path: Path, name: str) -> dict:
    """A JSON file of a checkpoint, checked; CheckpointError where it is damaged or absent."""
    files = _digests(path)
    if name not in files:
        raise CheckpointError(f"{path / name}: not in {FILE}; this is no checkpoint of a model")
    _check(path / name, files[name])
    return read_json(path / name)
