"""The scaling law: what error to expect of an architecture, fitted to the grid's real runs.

    log error = c + a log(parameters of the blocks) + b / tokens of a frame

The last term is how much of the picture a token has to carry: many tokens more are worth little,
and few are dear. One pass is what the law is of; two passes cost the mean factor that the grid's
runs saw. It was fitted to small models and short runs, so it ranks architectures of one resolution
whose proportions the grid has seen (`supported`); its figures are no promise of a trained model's
error. It knows nothing of windows, sinks, memory and precision, since single frames say nothing of
the first three and the grid saw no difference in the last: the search takes those as it is told.
Keys and values that query heads share it counts as parameters that are missing; the grid has none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Law:
    """Coefficients of all runs, and by how much laws miss, as a share of the error: this one on its
    own runs, those of all runs but one on that one, and one without the held-out runs on these."""

    coefficients: tuple[float, ...]
    two_passes: float
    fitted_error: float
    left_out_error: float
    held_out_error: float

    def predict(self, model: Any, passes: Any = 1) -> Any:
        """The expected mean squared error, in [-1, 1] units; takes numbers or arrays."""
        one = np.exp(_features(model) @ np.asarray(self.coefficients))
        return one * np.where(np.asarray(passes) > 1, self.two_passes, 1.0)


def block_parameters(model: Any) -> Any:
    """Of the matrices of all blocks."""
    width = (model.heads + model.key_heads) * model.head_dim
    return model.layers * model.dim * (2 * width + 2 * model.mlp)


def fit(grid: dict[str, Any]) -> Law:
    """The law of a grid's runs. Raises ValueError where there are too few of them."""
    models = [Sizes.of(entry["model"]) for entry in grid["runs"]]
    features = np.stack([_features(model) for model in models])
    errors = np.log([entry["error"]["1"] for entry in grid["runs"]])
    held_out = np.array([entry["held_out"] for entry in grid["runs"]])
    if len(errors) - sum(held_out) <= features.shape[1] or not held_out.any():
        raise ValueError(
            f"{len(errors) - sum(held_out)} runs and {sum(held_out)} held out do not make a law of "
            f"{features.shape[1]} coefficients; finish the grid by lsd search --refit"
        )

    def misses(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        return features[asked] @ solve(features[known], errors[known]) - errors[asked]

    every = np.ones(len(errors), bool)
    left_out = [misses(np.arange(len(errors)) != i, np.array([i])) for i in range(len(errors))]
    two = np.mean([np.log(e["error"]["2"] / e["error"]["1"]) for e in grid["runs"]])
    return Law(
        tuple(float(c) for c in solve(features, errors)), float(np.exp(two)),
        share(misses(every, every)), share(np.concatenate(left_out)),
        share(misses(~held_out, held_out)),
    )  # fmt: skip


SUPPORTED = (16, 128)  # dim over layers of the grid's models


def supported(model: Any) -> Any:
    """Whether the grid has seen such proportions of width and depth."""
    shape = model.dim / model.layers
    return (shape >= SUPPORTED[0]) & (shape <= SUPPORTED[1])


def solve(features: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Least squares, pulled a little towards no effect, since runs are few."""
    pull = 0.05 * np.eye(features.shape[1])
    pull[0, 0] = 0
    return np.linalg.lstsq(
        np.concatenate([features, pull]), np.append(errors, np.zeros(len(pull))), rcond=None
    )[0]


def share(logs: np.ndarray) -> float:
    """The mean size of errors in logs, as a share."""
    return float(np.mean(np.abs(np.expm1(logs))))


def load() -> dict[str, Any]:
    """The grid's runs that come with the package."""
    return json.loads((resources.files("lsd_jax.search") / "grid.json").read_text())


@dataclass(frozen=True)
class Sizes:
    """What the law looks at; numbers, or arrays of them."""

    dim: Any
    layers: Any
    heads: Any
    key_heads: Any
    head_dim: Any
    mlp: Any
    tokens: Any

    @classmethod
    def of(cls, model: dict[str, Any]) -> Sizes:
        """From a stored `ModelConfig`."""
        tokens = (model["height"] // model["patch"]) * (model["width"] // model["patch"])
        width = model["head_width"] or model["dim"] // model["heads"]
        heads = model["heads"]
        kv_heads = model.get("kv_heads") or heads  # a grid's runs may be older than these
        return cls(model["dim"], model["layers"], heads, kv_heads, width, model["mlp"], tokens)


FEWEST = 16.0  # tokens of a frame in the grid
REFERENCE = 1e6  # block parameters where their log is 0: in the middle of the grid


def _features(model: Any) -> np.ndarray:
    parameters = np.log(np.asarray(block_parameters(model)) / REFERENCE)
    columns = np.ones(()), parameters, FEWEST / np.asarray(model.tokens)
    return np.stack(np.broadcast_arrays(*columns), axis=-1)
