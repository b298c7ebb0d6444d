"""Batches for training: rendered worlds, mixed with a folder of the user's own videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lsd_jax.config import Config, ModelConfig, TrainConfig
from lsd_jax.data import edits, prompts
from lsd_jax.data.batch import Batch
from lsd_jax.data.footage import footage
from lsd_jax.data.rendered import (
    draw_carried,
    draw_footage_edits,
    draw_masks,
    rendered_batch,
    to_bytes,
)
from lsd_jax.stream import control_planes
from lsd_jax.types import Conditioning


def batches(config: Config, videos: Path | None = None) -> Callable[[int], Batch]:
    """The batch of each step, by its number, so that a resumed run sees what it would have seen.

    With a folder of videos, `train.video_fraction` of the clips come from it: a clip with an
    edited twin teaches its caption, one without teaches the footage edits. Raises ValueError for a
    model that takes embeddings of prompts, a folder without a fraction, a fraction without a
    folder, and a folder without usable videos.
    """
    model, train = config.model, config.train
    if model.external_text_dim:
        raise ValueError(
            "prompts of these batches are bytes: set model.external_text_dim=0, or train from "
            "Python on batches of your own"
        )
    filmed = round(train.video_fraction * train.batch)
    if videos is None:
        if filmed:
            raise ValueError("train.video_fraction is set; give the folder by --videos DIR")
        return lambda step: rendered_batch(model, train, step, train.batch)
    if not filmed:
        raise ValueError(
            f"--videos has no share of the batch of {train.batch}; set train.video_fraction=0.5"
        )
    clips = Footage(model, train, videos, filmed)

    def mixed(step: int) -> Batch:
        drawn = filmed_batch(model, train, clips(step), step)
        if filmed == train.batch:
            return drawn
        rendered = rendered_batch(model, train, step, train.batch - filmed)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), rendered, drawn)

    return mixed


class Footage:
    """A folder's batches by their number, read ahead in threads while asked for in order."""

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

    def __call__(self, step: int) -> dict:
        if self._iterator is None or step != self._next:
            iterator = iter(self._batches)
            iterator.set_state({"next_index": step})
            self._iterator = iterator
        self._next = step + 1
        return next(self._iterator)


def filmed_batch(model: ModelConfig, train: TrainConfig, clips: dict, step: int) -> Batch:
    """A batch of the user's clips: captions for edited twins, footage edits for the others."""
    rng = np.random.default_rng([train.seed, step, 1])
    count, frames = clips["source"].shape[:2]
    footage_edits, texts = draw_footage_edits(rng, count)
    per_group = count // len(footage_edits)
    chosen = np.repeat(footage_edits, per_group, axis=0)
    chosen[clips["paired"]] = 0
    texts = [
        caption if paired else text
        for caption, paired, text in zip(clips["prompt"], clips["paired"], texts, strict=True)
    ]
    starts = rng.integers(1 << 20, size=count, dtype=np.int32)
    target = _edit(clips["target"], chosen, starts[:, None] + np.arange(frames, dtype=np.int32))
    masks = draw_masks(rng, model, count, train.mask_fraction)
    prompt = np.stack([prompts.encode(text, model.prompt_bytes) for text in texts])
    prompt[rng.random(count) < train.prompt_drop] = 0
    controls = control_planes(model.controls, jnp.asarray(masks))[:, None]
    masks = masks[:, None, ..., None]
    return Batch(
        source=jnp.asarray(clips["source"]),
        target=jnp.where(masks > 0, target, clips["source"]),
        controls=jnp.repeat(controls, frames, axis=1),
        condition=Conditioning(
            prompt=jnp.asarray(prompt),
            reference=jnp.zeros((count, model.height, model.width, 3), jnp.uint8),
            has_reference=jnp.zeros(count, bool),
        ),
        carried=jax.tree.map(jnp.asarray, draw_carried(rng, train, count)),
        old=jnp.zeros(count, jnp.int32) if train.old_frames else None,
    )


@jax.jit
def _edit(frames, chosen, index) -> jax.Array:
    """Applies one pair of edits to each clip, `[B, F, H, W, 3]` bytes in and out."""
    pictures = frames.astype(jnp.float32) / 255
    return to_bytes(
        jax.lax.map(
            lambda clip: edits.compose(clip[0][0], clip[0][1], *clip[1:]), (chosen, pictures, index)
        )
    )
