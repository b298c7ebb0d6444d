"""Pictures of what a model does while it trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from lsd_jax.codec import PixelCodec
from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.data.pictures import write_image
from lsd_jax.model import build
from lsd_jax.train.denoising import pinned_history

COLUMNS = 8


def save_samples(config: Config, params: dict, batch: Batch, path: Path) -> None:
    """A grid of input, one-pass output without history, and truth: a column for each of the
    first clips and of the last."""
    rows = _one_pass(params, batch, config)
    if jax.process_count() > 1:
        rows = multihost_utils.process_allgather(rows, tiled=True)
    if jax.process_index():
        return
    rows = [np.asarray(x) for x in rows]
    count = rows[0].shape[0]
    chosen = np.unique(np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int))
    grid = np.concatenate([np.concatenate(list(row[chosen]), axis=1) for row in rows], axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, grid)


@partial(jax.jit, static_argnames="config")
def _one_pass(params: dict, batch: Batch, config: Config):
    model, codec = build(config.model, params), PixelCodec()
    first = jax.tree.map(lambda x: x[:, :1] if x.ndim == 5 else x, batch)
    source = codec.encode(first.source[:, 0])
    controls = first.controls[:, 0].astype(jnp.float32) / 255
    noise = jax.random.normal(jax.random.key(0), source.shape)
    zero, one = jnp.zeros(1), jnp.ones(1)
    out = model.denoise(
        source, noise, controls, pinned_history(model, first), model.modulation(zero, zero, one)
    )
    return first.source[:, 0], codec.decode(out), first.target[:, 0]
