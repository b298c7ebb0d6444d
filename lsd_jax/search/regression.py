"""Least squares on few runs, and by how much they miss those that they have not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

PULL = 0.05  # towards no effect, since runs are few


@dataclass(frozen=True)
class Misses:
    """By how much fits miss, as a share of the error: one on its own runs, those of all runs but
    one on that one, and one without the held-out runs on these."""

    fitted: float
    left_out: float
    held_out: float

    def __str__(self) -> str:
        return (
            f"{self.held_out:.1%} on held-out runs, {self.left_out:.1%} on each left out, "
            f"{self.fitted:.1%} on its own"
        )


def solve(features: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Coefficients of features `[runs, n]`, the first of which is 1, for the logs of errors; pulled
    a little towards no effect."""
    pull = PULL * np.eye(features.shape[1])
    pull[0, 0] = 0
    return np.linalg.lstsq(
        np.concatenate([features, pull]), np.append(errors, np.zeros(len(pull))), rcond=None
    )[0]


def require_enough(features: np.ndarray, held_out: np.ndarray) -> None:
    """Raises ValueError where there are too few runs for a law, or for a test of it."""
    runs, count = len(features), int(sum(held_out))
    if runs - count <= features.shape[1] or not count:
        raise ValueError(
            f"{runs - count} runs and {count} held out do not make a law of "
            f"{features.shape[1]} coefficients; finish the grid by lsd search --refit"
        )


def misses(features: np.ndarray, errors: np.ndarray, held_out: np.ndarray) -> Misses:
    """How well `solve` does on these runs. Raises ValueError where there are too few of them."""
    require_enough(features, held_out)

    def missed(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return features[asked] @ solve(features[known], errors[known]) - errors[asked]

    every = np.arange(len(errors))
    left_out = np.concatenate([missed(every != i, every == i) for i in every])
    found = missed(every >= 0, every >= 0), left_out, missed(~held_out, held_out)
    return Misses(*(float(np.mean(np.abs(np.expm1(logs)))) for logs in found))


def chances(features: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """For each feature but the first, how often chance alone would make its coefficient as large:
    p of a two-sided t-test of ordinary least squares."""
    coefficients = np.linalg.lstsq(features, errors, rcond=None)[0]
    free = len(errors) - features.shape[1]
    noise = np.sum(np.square(errors - features @ coefficients)) / free
    deviations = np.sqrt(noise * np.diag(np.linalg.pinv(features.T @ features)))
    return 2 * stats.t.sf(np.abs(coefficients / deviations), free)[1:]
