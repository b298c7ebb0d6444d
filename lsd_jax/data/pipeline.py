"""What each training step is to see: rendered worlds, mixed with a folder of the user's videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lsd_jax.config import Config, ModelConfig, TrainConfig
from lsd_jax.data.footage import footage
from lsd_jax.data.plan import Film, Plan, draw_plan, longest_prompt

PLANS, BANK, STREAMS = 1001, 1002, 1003
"""What a generator that is seeded by `[seed, one of these, ...]` is for. NumPy takes zeros at the
end of a seed for nothing, so each says something else in front of them."""


def plans(config: Config, videos: Path | None = None) -> Callable[[int], Plan]:
    """The plan of each step's batch, by its number, so that a resumed run sees what it would have
    seen.

    With a folder of videos, `train.video_fraction` of the clips come from it: a clip with an
    edited twin teaches its caption, one without teaches the footage edits. Raises ValueError for a
    model that takes embeddings of prompts or too few bytes of them, a folder without a fraction, a
    fraction without a folder, and a folder without usable videos.
    """
    model, train = config.model, config.train
    if model.external_text_dim:
        raise ValueError(
            "prompts of these batches are bytes: set model.external_text_dim=0, or train from "
            "Python on batches of your own"
        )
    longest = longest_prompt(train)
    if len(longest) > model.prompt_bytes:
        raise ValueError(
            f"model.prompt_bytes={model.prompt_bytes} is too small for {longest!r}, which is "
            f"trained; set it to {len(longest)} or more"
        )
    filmed = round(train.video_fraction * train.batch)
    if videos is None:
        if filmed:
            raise ValueError("train.video_fraction is set; give the folder by --videos DIR")
        reel = None
    elif not filmed:
        raise ValueError(
            f"--videos has no share of the batch of {train.batch}; set train.video_fraction=0.5"
        )
    else:
        reel = Footage(model, train, videos, filmed)

    def plan(step: int) -> Plan:
        rng = np.random.default_rng([train.seed, PLANS, step])
        return draw_plan(model, train, rng, train.batch, reel(step) if reel else None)

    return plan


class Footage:
    """A folder's clips for each step, by its number, read ahead in threads while asked for in
    order."""

    def __init__(self, model: ModelConfig, train: TrainConfig, folder: Path, clips: int):
        self._batches = footage(
            folder,
            frames=train.frames,
            height=model.height,
            width=model.width,
            batch=clips,
            seed=train.seed,
            prompt_bytes=model.prompt_bytes,
        )
        self._iterator: Iterator | None = None
        self._next = 0

    def __call__(self, step: int) -> Film:
        if self._iterator is None or step != self._next:
            iterator = iter(self._batches)
            iterator.set_state({"next_index": step})
            self._iterator = iterator
        self._next = step + 1
        return Film(**next(self._iterator))
