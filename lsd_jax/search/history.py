"""What a history is worth: how window, sinks and memory change the error of late frames of streams.

    log error = c + a log(window) + b log(1 + sinks) + d log(1 + memory slots)

Fitted to the grid's runs on clips, which differ in their history alone. Of these terms only those
count that can be told from chance, and only if the law with them misses the held-out runs by less
than their plain mean does. What is not worth anything is searched for by its time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsd_jax.search.regression import Misses, chances, misses, solve

NONE = {"window": 0, "sinks": 1, "memory": 1}  # added to the slots, so that the fewest are log 1
LEVEL = 0.05  # p below which a term is not chance


@dataclass(frozen=True)
class HistoryLaw:
    """The terms that count, by the kind of slots; by how much the law with them misses, and by how
    much the plain mean does, which knows no history."""

    terms: dict[str, float]
    missed: Misses
    mean_missed: Misses
    chance: dict[str, float]  # p of each term beside all others

    def factor(self, model: Any) -> Any:
        """The error over that of a window of one frame without sinks and memory; of what has such
        fields as numbers or arrays."""
        logs = (c * np.log(NONE[kind] + getattr(model, kind)) for kind, c in self.terms.items())
        return np.exp(sum(logs, 0.0))

    def contenders(self, options: Sequence[Any]) -> list[Any]:
        """The histories that may be worth their time: not those that another one of no more slots
        of any kind is expected to match."""

        def beaten(by: Any, other: Any) -> bool:
            fewer = by != other and all(a <= b for a, b in zip(by, other, strict=True))
            return fewer and bool(self.factor(by) <= self.factor(other))

        return [o for o in options if not any(beaten(by, o) for by in options)]


def fit_history(runs: list[dict[str, Any]]) -> HistoryLaw:
    """The law of the grid's runs on clips. Raises ValueError where there are too few of them."""
    errors = np.log([entry["error"] for entry in runs])
    held_out = np.array([entry["held_out"] for entry in runs], bool)

    def features(kinds: list[str]) -> np.ndarray:
        slots = [[NONE[k] + entry["model"][k] for k in kinds] for entry in runs]
        logs = np.log(np.reshape(slots, (len(runs), len(kinds))))
        return np.column_stack([np.ones(len(runs)), logs])

    misses(features(list(NONE)), errors, held_out)  # raises where there are too few
    by_mean = misses(features([]), errors, held_out)
    chance = dict(zip(NONE, chances(features(list(NONE)), errors).tolist(), strict=True))
    kinds = list(NONE)
    while kinds:
        p = chances(features(kinds), errors)
        if p.max() < LEVEL:
            break
        kinds.pop(int(p.argmax()))
    missed = misses(features(kinds), errors, held_out)
    if missed.held_out >= by_mean.held_out:
        kinds, missed = [], by_mean
    terms = dict(zip(kinds, solve(features(kinds), errors)[1:].tolist(), strict=True))
    return HistoryLaw(terms, missed, by_mean, chance)
