"""Two logs side by side: which cases differ, and by how much, beyond what chance would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import mannwhitneyu

from lsd_jax.hw.micro.case import Measurement
from lsd_jax.hw.micro.log import same

LEVEL = 0.01
"""Chance of a false alarm in the whole comparison, shared among its cases (Holm 1979)."""


@dataclass(frozen=True)
class Change:
    """A case in both logs. `ratio` is the second median by the first; `p` the chance of ranks as
    unlike as these if nothing had changed (Mann-Whitney U, two-sided), None of figures that are not
    samples; `significant` says whether it holds beside all the other cases."""

    name: str
    before: float
    after: float
    p: float | None
    significant: bool

    @property
    def ratio(self) -> float:
        return self.after / self.before


def compare(before: Sequence[Measurement], after: Sequence[Measurement]) -> list[Change]:
    """The cases in both, the largest change first.

    Where figures are computed and not sampled (compiled, modelled) any change is significant. A
    median that is not above 0, a difference of loops lost in noise, has no ratio to another.
    Raises ValueError for logs of different chips or kinds, or without a case in common.
    """
    same([before[0], after[0]])
    old, new = ({m.name: m for m in log if m.samples and m.p50 > 0} for log in (before, after))
    pairs = [(old[name], new[name]) for name in new if name in old]
    if not pairs:
        raise ValueError("the logs have no case in common whose times are above 0")
    chances = [_chance(a, b) for a, b in pairs]
    holds = holm([p for p in chances if p is not None], LEVEL)
    found = []
    for (a, b), p in zip(pairs, chances, strict=True):
        significant = a.p50 != b.p50 if p is None else p <= holds
        found.append(Change(a.name, a.p50, b.p50, p, significant))
    return sorted(found, key=lambda c: (not c.significant, -abs(c.ratio - 1)))


def holm(chances: Sequence[float], level: float) -> float:
    """The largest chance that is significant, so that all together raise a false alarm with at most
    `level` (step-down procedure of Holm 1979); -1 where none is."""
    largest = -1.0
    for i, p in enumerate(sorted(chances)):
        if p > level / (len(chances) - i):
            break
        largest = p
    return largest


def _chance(a: Measurement, b: Measurement) -> float | None:
    if a.kind != "measured":
        return None
    return float(mannwhitneyu(a.samples, b.samples, alternative="two-sided").pvalue)
