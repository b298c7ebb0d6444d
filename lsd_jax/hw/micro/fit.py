"""From a log of measurements to a chip's file: rates as they were seen, and prices fitted.

A case's time is taken for the sum of what its operations have (`hw.cpu.features`) times what that
costs; the prices, none negative, are those that minimise the mean relative error (least squares on
relative errors, reweighted so that an outlier counts by its size and not by its square). Times are
the fastest of each case: what it takes while nobody else uses the machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.optimize import nnls

from lsd_jax.hw import cpu
from lsd_jax.hw.chips import Chip, Number
from lsd_jax.hw.micro.case import Measurement
from lsd_jax.hw.micro.work import work_of

FRAMES = 0.5  # share of the frames among the weights of all cases
_TURNS = 30  # of the reweighting
_SMALLEST = 0.02  # relative error below which all cases count alike
_RESAMPLES = 40
_CALLED = ("call", "step")  # methods whose times hold a call


@dataclass(frozen=True)
class Fitted:
    """A chip, and by how much its prices miss each operation's cases: relative errors by name."""

    chip: Chip
    errors: dict[str, dict[str, float]]

    @property
    def mean_error(self) -> float:
        """Mean of the absolute relative errors of all cases fitted."""
        return float(np.mean([abs(e) for of in self.errors.values() for e in of.values()]))


def fit(
    found: Sequence[Measurement], name: str, description: str, memory_bytes: int | None = None
) -> Fitted:
    """The chip that a log shows, with its memory where that is known.

    Raises ValueError where the figures are not measured, or lack what prices need.
    """
    if found[0].kind != "measured":
        raise ValueError(f"a chip is fitted to measured figures, and these are {found[0].kind}")
    cases = [(m, work) for m in found if m.fastest and (work := work_of(m)) is not None]
    missing = {"matmul", "copy", "frame"} - {m.op for m, _ in cases}
    if missing:
        raise ValueError(
            f"the log lacks {', '.join(sorted(missing))}: run the suites matmul, memory and frame"
        )
    features = [cpu.amounts(work, int(m.method in _CALLED)) for m, work in cases]
    amounts = np.array([list(f.values()) for f in features])
    seconds = np.array([m.seconds for m, _ in cases])
    weights = _weights([m.suite for m, _ in cases])
    prices = solve(amounts, 1e9 * seconds, weights)
    errors = defaultdict(dict)
    for (m, _), e in zip(cases, amounts @ prices / (1e9 * seconds) - 1, strict=True):
        errors[m.op][m.name] = float(e)
    numbers = _rates(found) | _prices(amounts, 1e9 * seconds, weights, prices, cases)
    if memory_bytes is not None:
        source = "the operating system, for all programs together"
        numbers["memory_bytes"] = Number(float(memory_bytes), "B", source, "published")
    return Fitted(Chip(name, description, MappingProxyType(numbers)), dict(errors))


def solve(amounts: np.ndarray, times: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The prices `[F]`, none negative, by which `amounts [N, F] @ prices` comes nearest to `times
    [N]` in mean weighted relative error."""
    relative = amounts / times[:, None]
    scale = np.maximum(relative.max(axis=0), np.finfo(float).tiny)  # prices span ten decades
    importance = weights
    for _ in range(_TURNS):
        prices, _ = nnls(relative / scale * importance[:, None], importance)
        errors = np.abs(relative / scale @ prices - 1)
        importance = weights / np.sqrt(np.maximum(errors, _SMALLEST))
    return prices / scale


def _weights(suites: Sequence[str]) -> np.ndarray:
    """Frames count together as `FRAMES` says; they alone show how operations go together."""
    frame = np.array([suite == "frame" for suite in suites])
    each = np.where(frame, FRAMES / max(frame.sum(), 1), (1 - FRAMES) / max((~frame).sum(), 1))
    return np.sqrt(each * len(suites))


def _prices(amounts, times, weights, prices, cases) -> dict[str, Number]:
    """The prices as numbers; their bands are the middle nine tenths of fits to resampled cases."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        some = rng.integers(0, len(times), len(times))
        drawn.append(solve(amounts[some], times[some], weights[some]))
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    numbers = {}
    for i, (name, what) in enumerate(cpu.PRICES.items()):
        having = amounts[:, i] > 0
        if not having.any():
            raise ValueError(f"no case in the log shows what {name} costs ({what}): run all suites")
        off = np.abs(amounts[having] @ prices / times[having] - 1)
        source = (
            f"our fit to {having.sum()} cases that have it, {cases[0][0].chip}; "
            f"they are missed by {off.mean():.0%} in the mean"
        )
        value = float(f"{prices[i]:.5g}")
        numbers[name] = Number(
            value, "ns", source, "measured", min(value, float(f"{low[i]:.5g}")),
            max(value, float(f"{high[i]:.5g}")),
        )  # fmt: skip
    return numbers


def _rates(found: Sequence[Measurement]) -> dict[str, Number]:
    """Rates as they were seen, without a fit: of products, functions and copies."""
    numbers = {}
    for dtype, name, unit in (("f32", "flops_f32", "flop/s"), ("bf16", "flops_bf16", "flop/s"),
                              ("i8", "ops_int8", "op/s")):  # fmt: skip
        products = [m for m in found if m.op == "matmul" and m.dtype == dtype and m.fastest]
        if products:
            numbers[name] = _rate(max(products, key=lambda m: m.operations / m.seconds), unit)
    for m in found:
        if m.suite == "elementwise" and m.dtype == "f32" and m.fastest and "n" in m.shapes:
            key, best = f"{m.op}_per_s", numbers.get(f"{m.op}_per_s")
            rate = _rate(m, "1/s", m.shapes["n"])
            numbers[key] = rate if best is None or rate.value > best.value else best
        if m.op == "copy" and m.fastest and "bytes" in m.shapes:
            numbers[f"copy_bandwidth_{m.shapes['bytes'] // 1024}kib"] = _rate(m, "B/s")
    return numbers


def _rate(m: Measurement, unit: str, amount: int | float = 0) -> Number:
    """Of the fastest run; the slowest one is the low end."""
    amount = amount or (m.bytes if unit == "B/s" else m.operations)
    best, slow = (float(f"{amount / s:.4g}") for s in (m.seconds, max(m.max, m.seconds)))
    source = f"{m.name}, {m.chip}: fastest and, as low, slowest of {len(m.samples)} samples"
    return Number(best, unit, source, "measured", slow, best)
