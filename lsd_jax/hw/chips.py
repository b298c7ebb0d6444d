"""Chips as data: every number says its unit, its source, and whether somebody measured it.

A file `chips/<name>.json` holds `{"description": ..., "numbers": {name: number}}`, and each number
is `{"value", "unit", "source", "kind"}`, with `low` and `high` where it is uncertain. Kinds:

    measured    a clock on real hardware, ours or somebody's who published it
    published   the maker says so
    assumed     neither: a fit or a guess, and `source` says of what
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from lsd_jax.files import read_json

Kind = Literal["measured", "published", "assumed"]
KINDS = get_args(Kind)
Family = Literal["tpu", "trainium", "gpu", "cpu"]
_TELLING: dict[str, Family] = {
    "mxus": "tpu", "pe_clock": "trainium", "sms": "gpu", "matmul_mac": "cpu",
}  # fmt: skip
"""By a number that only such chips have: a chip that was refit may be called anything."""
DEVICES = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H200": "h200",
}
"""JAX's `device_kind` to our name of the chip."""
Edge = Literal["fast", "slow"]
_REQUIRED = {"value", "unit", "source", "kind"}
_AMOUNTS = ("value", "low", "high")
_KNOWN = _REQUIRED | {"low", "high"}
_DIVIDED_BY = {"Hz", "B/s", "flop/s", "1/s", "1/cycle", "1"}  # units of what cannot be 0


@dataclass(frozen=True)
class Number:
    """One property of a chip, with its provenance and, where it is uncertain, its bounds."""

    value: float
    unit: str
    source: str
    kind: Kind
    low: float | None = None
    high: float | None = None

    def at(self, edge: Edge) -> Number:
        """This number at the end of its band that makes programs fast, or slow.

        More is faster for rates (`.../s`, `Hz`), slower for everything else.
        """
        more_is_faster = self.unit.endswith("/s") or self.unit == "Hz"
        end = self.high if more_is_faster == (edge == "fast") else self.low
        return self if end is None else replace(self, value=end)


@dataclass(frozen=True)
class Chip:
    """A chip by name; `chip["pe_clock"]` is a number's value, `chip.numbers` has all of it."""

    name: str
    description: str
    numbers: MappingProxyType[str, Number] = dataclasses.field(hash=False)

    def __getitem__(self, name: str) -> float:
        if name not in self.numbers:
            known = ", ".join(sorted(self.numbers))
            raise ValueError(f"chip {self.name} has no number {name!r}; it has: {known}")
        return self.numbers[name].value

    @property
    def family(self) -> Family | None:
        """Whose kernels and cost models apply; a `cpu` has prices measured on it. None: unknown."""
        return next((family for name, family in _TELLING.items() if name in self.numbers), None)

    def at(self, edge: Edge) -> Chip:
        """The chip with each uncertain number at the end of its band that is fast, or slow."""
        return self.with_numbers({name: n.at(edge) for name, n in self.numbers.items()})

    def with_numbers(self, changed: dict[str, Number]) -> Chip:
        """The chip with some numbers exchanged or added, as a calibration does."""
        return replace(self, numbers=MappingProxyType({**self.numbers, **changed}))

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `parse` reads back to this very chip."""
        numbers = {
            name: {k: v for k, v in vars(n).items() if v is not None}
            for name, n in self.numbers.items()
        }
        return {"description": self.description, "numbers": numbers}


def cores_of_device(chip: Chip) -> int:
    """Cores that JAX shows as one device: all of a v5p, one of any other TPU."""
    return int(chip["cores_of_device"]) if "cores_of_device" in chip.numbers else 1


def known() -> list[str]:
    """Names of the chips that ship with the package."""
    folder = resources.files("lsd_jax.hw") / "chips"
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name[-5:] == ".json")


def load(name: str) -> Chip:
    """The chip of that name, or of a path ending in `.json`, which is then called as the file is.

    Raises ValueError, listing those known, for any other, and for a file that is no chip; OSError
    for one that cannot be read.
    """
    if name.endswith(".json"):
        return parse(Path(name).stem, read_json(name))
    if name not in known():
        raise ValueError(
            f"unknown chip {name!r}; known: {', '.join(known())}, or a path ending in .json"
        )
    text = (resources.files("lsd_jax.hw") / "chips" / f"{name}.json").read_text(encoding="utf-8")
    return parse(name, json.loads(text))


def parse(name: str, content: Any) -> Chip:
    """A checked chip from a file's content. Raises ValueError that says what is wrong where."""
    if not isinstance(content, dict) or set(content) != {"description", "numbers"}:
        raise ValueError(f"chip {name}: want exactly the keys 'description' and 'numbers'")
    if not isinstance(content["description"], str) or not isinstance(content["numbers"], dict):
        raise ValueError(f"chip {name}: 'description' is text and 'numbers' maps names to numbers")
    numbers = {key: _number(f"chip {name}, {key}", n) for key, n in content["numbers"].items()}
    return Chip(name, content["description"], MappingProxyType(numbers))


def _number(where: str, given: Any) -> Number:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: want an object with {', '.join(sorted(_REQUIRED))}")
    if missing := _REQUIRED - set(given):
        raise ValueError(f"{where}: lacks {', '.join(sorted(missing))}")
    if unknown := set(given) - _KNOWN:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}")
    for field in _AMOUNTS:
        amount = given.get(field, 0)
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise ValueError(f"{where}: {field} is no number: {amount!r}")
        if not math.isfinite(amount) or amount < 0:
            raise ValueError(f"{where}: {field}={amount} must be finite and not negative")
    for field in ("unit", "source"):
        if not isinstance(given[field], str) or not given[field].strip():
            raise ValueError(f"{where}: {field} is empty")
    if given["kind"] not in KINDS:
        raise ValueError(f"{where}: unknown kind {given['kind']!r}; known: {', '.join(KINDS)}")
    if ("low" in given) != ("high" in given):
        raise ValueError(f"{where}: give both low and high, or neither")
    fields: dict[str, Any] = {k: float(v) if k in _AMOUNTS else v for k, v in given.items()}
    number = Number(**fields)
    if number.low is not None and not number.low <= number.value <= (number.high or 0):
        raise ValueError(f"{where}: want low <= value <= high")
    if number.unit in _DIVIDED_BY and 0 in (number.value, number.low):
        raise ValueError(f"{where}: want more than 0 {number.unit}")
    return number
