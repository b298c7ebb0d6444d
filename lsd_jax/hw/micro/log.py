"""The log of a run: one measurement a line, in a file that is continued after an interruption."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsd_jax.files import replacing
from lsd_jax.hw.micro.case import Measurement

_FIELDS = {f.name: f for f in dataclasses.fields(Measurement)}
_REQUIRED = {n for n, f in _FIELDS.items() if f.default is dataclasses.MISSING}
_TYPES = {
    "suite": str, "op": str, "shapes": dict, "dtype": str, "operations": int | float,
    "bytes": int | float, "method": str, "kind": str, "chip": str, "versions": dict,
    "commit": str | None, "samples": list, "fastest": int | float | None, "turns": int,
    "cycles": int | None, "refused": str | None,
}  # fmt: skip
_DERIVED = ("name", "p50", "p99", "max")


def line(measurement: Measurement) -> str:
    """A measurement as JSON, with its name and percentiles for whoever reads the file."""
    content = dataclasses.asdict(measurement)
    shown = _DERIVED if measurement.samples else _DERIVED[:1]
    return json.dumps({key: getattr(measurement, key) for key in shown} | content)


def parse(text: str) -> Measurement:
    """The inverse of `line`. Raises ValueError for what no `line` gave."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("want an object")
    content = {key: value for key, value in content.items() if key not in _DERIVED}
    if missing := _REQUIRED - set(content):
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if unknown := set(content) - set(_FIELDS):
        raise ValueError(f"unknown {', '.join(sorted(unknown))}")
    for field, value in content.items():
        if not isinstance(value, _TYPES[field]):
            raise ValueError(f"{field} is no {getattr(_TYPES[field], '__name__', _TYPES[field])}")
    if not all(isinstance(size, int) for size in content["shapes"].values()):
        raise ValueError("shapes are not all whole numbers")
    samples, fastest = content.get("samples", []), content.get("fastest") or 0
    if not all(isinstance(s, (int, float)) and abs(s) < math.inf for s in samples):
        raise ValueError("samples are not all finite numbers")
    if not all(0 <= n < math.inf for n in (fastest, content["operations"], content["bytes"])):
        raise ValueError("fastest, operations and bytes want finite numbers of at least 0")
    fields: dict[str, Any] = content | {"samples": tuple(samples)}
    return Measurement(**fields)


def read(path: str | Path) -> list[Measurement]:
    """All measurements of a file, of one chip and kind.

    Raises ValueError, with the line's number, where it is no such file, or mixes chips or kinds.
    """
    found = []
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for number, content in enumerate(text.splitlines(), 1):
        try:
            found.append(parse(content))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no measurement: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no measurement")
    for what in ("chip", "kind"):
        if len(values := {getattr(m, what) for m in found}) > 1:
            raise ValueError(f"{path} mixes {what}s: {', '.join(sorted(values))}")
    return found


def merged(logs: Sequence[Sequence[Measurement]]) -> list[Measurement]:
    """The cases of several logs, each from the log in which its fastest run was fastest: other
    programs that were in its way in one run may have left it alone in the next.

    Raises ValueError for logs of different chips or kinds.
    """
    same([found[0] for found in logs])
    best: dict[str, Measurement] = {}
    for m in (m for found in logs for m in found):
        known = best.get(m.name)
        if known is None or m.seconds < known.seconds:
            best[m.name] = m
    return list(best.values())


def same(firsts: Sequence[Measurement]) -> None:
    """Raises ValueError where these measurements of several logs differ in chip or kind."""
    for what in ("chip", "kind"):
        if len(values := {getattr(m, what) for m in firsts}) > 1:
            said = " and ".join(repr(v) for v in sorted(values))
            raise ValueError(f"the logs differ in {what}, {said}: they do not go together")


def resume(path: str | Path, like: Measurement) -> list[Measurement]:
    """What an interrupted run left in `path`; nothing where there is no file.

    A last line that was being written is taken away. Raises ValueError where the file is of
    another chip, kind or versions than `like`.
    """
    path = Path(path)
    if not path.exists() or not (content := path.read_bytes()):
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with replacing(path) as beside:
            beside.write_bytes(whole)
    found = read(path) if whole else []
    for what in ("chip", "kind", "versions"):
        theirs, ours = (getattr(m, what) for m in (found[0] if found else like, like))
        if theirs != ours:
            raise ValueError(
                f"{path} was begun with {what} {_short(theirs)}, and this is {_short(ours)}: "
                "give another --out, or remove it"
            )
    return found


def append(path: str | Path, measurement: Measurement) -> None:
    """Adds a line, and sees to it that it is on the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line(measurement) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _short(value: str | dict[str, str]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{k} {v}" for k, v in value.items())
