"""What to cut so that a chip holds a frame rate: the parts that matter least, by the planner.

Importances are taken to add up. They do not quite, so a short recovery follows, as after any cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsd_jax.config import Config
from lsd_jax.hw.chips import Chip
from lsd_jax.hw.plan import plan_frame
from lsd_jax.prune.score import Scores
from lsd_jax.search.fast import frame_ms
from lsd_jax.search.space import Candidates


@dataclass(frozen=True)
class Cut:
    """Which numbers of layers, heads and MLP channels to keep; milliseconds of a frame, modelled,
    before and after; the share of all importance that goes."""

    keep: dict[str, int]
    before_ms: float
    after_ms: float
    lost: float


def cut_for(config: Config, scores: Scores, chip: Chip, fps: float, multiple: int = 128) -> Cut:
    """The cut of least importance with which one core of a chip holds a rate; of equals the
    fastest.

    Args:
        multiple: of the MLP channels kept, unless all are.

    Raises ValueError, by how much, where even the smallest does not hold it or does not fit.
    """
    every = keeps(config, multiple)
    ms, lost = frame_ms(every, chip), lost_by(scores, every)
    for best in np.lexsort((ms, lost)).tolist():
        if ms[best] > 1000 / fps:
            continue
        after = plan_frame(every.config(best, config.name), chip)
        if after.ms <= 1000 / fps and after.fits:  # the fast figures are a little off
            keep = {name: int(getattr(every, name)[best]) for name in ("layers", "heads", "mlp")}
            return Cut(keep, plan_frame(config, chip).ms, after.ms, float(lost[best]))
    raise _none(config, chip, fps, ms)


def check(config: Config, chip: Chip, fps: float, multiple: int = 128) -> None:
    """Raises ValueError, without any scores, where even the fastest cut is too slow."""
    ms = frame_ms(keeps(config, multiple), chip)
    if ms.min() > 1000 / fps:
        raise _none(config, chip, fps, ms)


def _none(config: Config, chip: Chip, fps: float, ms: np.ndarray) -> ValueError:
    return ValueError(
        f"no cut of {config.name} holds {fps:g} fps on a {chip.name}: the smallest takes "
        f"{ms.min():.2f} ms of {1000 / fps:.2f}; ask for fewer fps, or train a smaller model"
    )


def keeps(config: Config, multiple: int) -> Candidates:
    """The model cut in every way."""
    model = config.model
    channels = sorted({*range(multiple, model.mlp + 1, multiple), model.mlp})
    axes = np.meshgrid(
        range(1, model.layers + 1), range(1, model.key_heads + 1), channels, indexing="ij"
    )
    layers, heads, mlp = (axis.ravel() for axis in axes)

    def same(value: int) -> np.ndarray:
        return np.full(len(layers), value)

    return Candidates(
        config, same(model.dim), layers, model.per_kv * heads, same(model.head_dim), mlp,
        same(model.patch), same(config.stream.passes), same(model.per_kv), same(model.window),
        same(model.sinks), same(model.memory),
    )  # fmt: skip


def lost_by(scores: Scores, every: Candidates) -> np.ndarray:
    """The share of all importance that goes with what is not kept: layers with all that is in them,
    and the least important heads and channels of the layers that stay.

    A layer's own score would make it look cheap: its parts' first-order changes cancel in it.

    Raises ValueError where all scores are zero.
    """
    layers, heads, mlp = (np.asarray(x, float) for x in (scores.layers, scores.heads, scores.mlp))
    order = np.argsort(-layers, kind="stable")
    whole = (layers + heads.sum(axis=1) + mlp.sum(axis=1))[order]

    def of_parts(parts: np.ndarray) -> np.ndarray:
        """Lost by keeping so many layers, and so many parts in each of them: [layers, parts]."""
        best = -np.sort(-parts[order], axis=1)
        return np.cumsum(least_after(best), axis=0)

    kept = every.layers - 1
    lost = least_after(whole[None])[0, kept]
    lost = lost + of_parts(heads)[kept, every.key_heads - 1] + of_parts(mlp)[kept, every.mlp - 1]
    if not whole.sum() > 0:
        raise ValueError("nothing matters by these scores; score on more batches (--batches)")
    return lost / whole.sum()


def least_after(best: np.ndarray) -> np.ndarray:
    """In each row, the sum of all behind each place."""
    return np.cumsum(best[:, ::-1], axis=1)[:, ::-1] - best
