"""The stages of training: what each makes of the same model, batches and loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import Mesh

from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.data.pipeline import batches
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.history import history_loss
from lsd_jax.train.rollouts import Rollouts
from lsd_jax.train.step import Loss


@dataclass(frozen=True)
class Stage:
    """What `loop.train` needs of a stage."""

    loss: Loss
    batches: Callable[[int], Batch]
    show: Callable[[int, dict, Batch], Batch] | None = None


def prepare(name: str, config: Config, videos: Path | None, mesh: Mesh) -> Stage:
    """The stage `forcing` or `history` of a config, with the folder of videos mixed in.

    Raises ValueError for settings that leave nothing to train on.
    """
    if name == "forcing":
        return Stage(forcing_loss, batches(config, videos))
    rollouts = Rollouts(config, mesh)
    if not rollouts.streams:
        return Stage(history_loss, batches(config, videos))
    clips = config.train.batch - rollouts.streams
    if not clips:
        raise ValueError("history.rolled_out leaves no other clip in the batch; lower it")
    others = replace(config, train=replace(config.train, batch=clips))
    return Stage(history_loss, rollouts.mixed(batches(others, videos)), rollouts.show)
