"""The scaling law: what error to expect of an architecture, fitted to the grid's real runs.

    log error = c + a log(parameters of the blocks) + b / tokens of a frame + history

The term before the last is how much of the picture a token has to carry: many tokens more are worth
little, and few are dear. These are of single frames at one pass; two passes cost the mean factor
that the grid's runs saw. What a history is worth comes from another grid, of streams (`history`).

The law was fitted to small models and short runs, so it ranks architectures of one resolution whose
proportions the grid has seen (`supported`); its figures are no promise of a trained model's error.
It knows nothing of the precision of weights, in which the grid saw no difference. Keys and values
that query heads share it counts as parameters that are missing; a term `d log(heads / heads of
keys)` beside that counts where the grid's runs can tell it from chance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lsd_jax.files import read_json
from lsd_jax.search.history import LEVEL, HistoryLaw, fit_history
from lsd_jax.search.regression import Misses, chances, misses, require_enough, solve


@dataclass(frozen=True)
class Law:
    """Coefficients of all runs on pictures, and by how much such laws miss; and what is known of
    histories."""

    coefficients: tuple[float, ...]
    sharing: float  # p of the term for shared keys; below `LEVEL` its coefficient is not 0
    two_passes: float
    missed: Misses
    history: HistoryLaw

    def predict(self, model: Any, passes: Any = 1) -> Any:
        """The expected mean squared error, in [-1, 1] units; takes numbers or arrays."""
        one = np.exp(_features(model) @ np.asarray(self.coefficients))
        two = np.where(np.asarray(passes) > 1, self.two_passes, 1.0)
        return one * two * self.history.factor(model)


def block_parameters(model: Any) -> Any:
    """Of the matrices of all blocks."""
    width = (model.heads + model.key_heads) * model.head_dim
    return model.layers * model.dim * (2 * width + 2 * model.mlp)


def fit(grid: dict[str, Any]) -> Law:
    """The law of a grid's runs. Raises ValueError where there are too few of them."""
    runs = grid["runs"]
    features = np.stack([_features(Sizes.of(entry["model"])) for entry in runs])
    errors = np.log([entry["error"]["1"] for entry in runs])
    held_out = np.array([entry["held_out"] for entry in runs], bool)
    require_enough(features, held_out)
    sharing = float(chances(features, errors)[-1]) if features[:, -1].any() else 1.0
    features[:, -1] *= sharing < LEVEL
    missed = misses(features, errors, held_out)
    two = np.mean([np.log(e["error"]["2"] / e["error"]["1"]) for e in runs])
    coefficients = tuple(float(c) for c in solve(features, errors))
    history = fit_history(grid.get("clips", {}).get("runs", []))
    return Law(coefficients, sharing, float(np.exp(two)), missed, history)


SUPPORTED = (16, 128)  # dim over layers of the grid's models


def supported(model: Any) -> Any:
    """Whether the grid has seen such proportions of width and depth."""
    shape = model.dim / model.layers
    return (shape >= SUPPORTED[0]) & (shape <= SUPPORTED[1])


def load() -> dict[str, Any]:
    """The grid's runs that come with the package."""
    return json.loads((resources.files("lsd_jax.search") / "grid.json").read_text())


def read(path: Path) -> dict[str, Any]:
    """A grid's file. Raises ValueError for anything else than an object of JSON."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no file of lsd search --refit")
    return found


def of(path: Path) -> Law:
    """The law of a grid's file. Raises ValueError for any other file, and for too few runs."""
    try:
        return fit(read(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of lsd search --refit: {error!r}") from error


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
    sharing = np.log(np.asarray(model.heads) / np.asarray(model.key_heads))
    columns = np.ones(()), parameters, FEWEST / np.asarray(model.tokens), sharing
    return np.stack(np.broadcast_arrays(*columns), axis=-1)
