"""Short real training runs on a fixed grid of small models: what the scaling law is fitted to.

Every run is the stage `forcing` at 128x128, on single frames, over the same batches, by the loop
that `lsd train` runs, with as many steps. Its score is the error of the frame shown, sampled as a
stream does, on batches that no run has trained on and that are the same for all.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsd_jax import diffusion
from lsd_jax.checkpoint import load_weights
from lsd_jax.config import Config, ModelConfig, TrainConfig, section_from_dict
from lsd_jax.data.batch import Batch
from lsd_jax.data.pipeline import batches
from lsd_jax.model import Denoiser, build
from lsd_jax.quantize import dequantize, quantize
from lsd_jax.reports import provenance, write_json
from lsd_jax.sharding import make_mesh
from lsd_jax.train.denoising import look, remember
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.loop import train

TRAIN = TrainConfig(
    batch=16, frames=1, steps=200, learning_rate=2e-3, warmup=20, ema=0.97, pure_noise=0.85,
    prompt_drop=0.0, checkpoint_every=100, sample_every=100_000, log_every=25,
)  # fmt: skip
UNSEEN = 1_000_000  # the number of the first batch that scores
SCORED = 8  # batches
PASSES = (1, 2)


def _model(dim: int, layers: int, patch: int = 16, ratio: int = 4) -> ModelConfig:
    """All that is not searched is as `tiny` has it; a single frame needs no window."""
    heads = max(1, dim // 128)
    return ModelConfig(
        patch=patch, dim=dim, layers=layers, heads=heads, head_width=dim // heads,
        mlp=ratio * dim, window=1,
    )  # fmt: skip


FITTED = (
    _model(256, 6),
    _model(128, 3, patch=8),
    _model(512, 4, patch=32),
    _model(128, 3),
    _model(256, 3),
    _model(128, 3, patch=32),
    _model(128, 8),
    _model(256, 6, patch=32),
    _model(256, 6, ratio=1),
    _model(384, 6),
)
HELD_OUT = (
    _model(192, 4, ratio=3),
    _model(384, 4, patch=32),
    _model(192, 3, patch=8),
)


def name_of(model: ModelConfig) -> str:
    """What distinguishes a run of the grid."""
    return (
        f"d{model.dim}-l{model.layers}-h{model.heads}x{model.head_dim}-m{model.mlp}-p{model.patch}"
    )


def run(path: Path, folder: Path, most: int = 0) -> dict[str, Any]:
    """Trains and scores what `path` does not hold yet, and writes it there, run by run; stops after
    `most` runs where that is not 0.

    Runs keep their checkpoints in `folder`, so that one that was interrupted goes on. Raises
    ValueError for a file of other settings.
    """
    settings: dict[str, Any] = {"kind": "measured", "train": asdict(TRAIN), "scored": SCORED}
    found: dict[str, Any] = (
        json.loads(path.read_text()) if path.is_file() else settings | {"runs": []}
    )
    same = all(found[key] == settings[key] for key in ("kind", "scored"))
    if not same or section_from_dict("train", found["train"]) != TRAIN:
        raise ValueError(f"{path} holds runs of other settings; move it away to begin anew")
    done = {entry["name"] for entry in found["runs"]}
    missing = [model for model in (*FITTED, *HELD_OUT) if name_of(model) not in done]
    for model in missing[: most or None]:
        started = time.monotonic()
        config = Config(name_of(model), model, train=TRAIN)
        entry = {"name": config.name, "held_out": model in HELD_OUT, "model": asdict(model)}
        entry |= score(trained(config, folder / config.name), config)
        found["runs"].append(entry | {"seconds": round(time.monotonic() - started)})
        found |= provenance()
        write_json(str(path), found)
    return found


def trained(config: Config, folder: Path) -> Denoiser:
    """The running mean of the weights after the stage `forcing`; goes on where it had stopped."""
    shared = shared_batches(config.model.height, config.model.width, config.train)
    train(config, forcing_loss, shared, folder, make_mesh(devices=jax.devices()[:1]))
    params, _ = load_weights(folder / "weights")
    return build(config.model, params)


@cache
def shared_batches(height: int, width: int, settings: TrainConfig):
    """The batches of a step, rendered once for all runs: they do not depend on the model."""
    config = Config("shared", ModelConfig(height=height, width=width), train=settings)
    return cache(batches(config))


def score(model: Denoiser, config: Config) -> dict[str, Any]:
    """Mean squared errors of the frames shown, in [-1, 1] units: by passes, and at one pass with
    weights rounded."""
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params)
    forms = {"bfloat16": rounded, "int8": dequantize(quantize(params, "int8"))}
    shared = shared_batches(config.model.height, config.model.width, config.train)
    keys = jax.random.split(jax.random.key(1), SCORED)
    error = jax.jit(shown_error, static_argnums=3)

    def mean(model: Denoiser, passes: int) -> float:
        each = [error(model, shared(UNSEEN + i), keys[i], passes) for i in range(SCORED)]
        return float(np.mean(jax.device_get(each)))

    return {
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "error": {str(passes): mean(model, passes) for passes in PASSES},
        "weights": {form: mean(build(config.model, p), 1) for form, p in forms.items()},
    }


def shown_error(model: Denoiser, batch: Batch, key: jax.Array, passes: int) -> jax.Array:
    """The error of the frames that `passes` passes show, against their truth."""

    def without_error(clean, source, key):
        return clean, jnp.zeros(clean.shape[:2])

    seen = look(batch, without_error, key, model.embed.dtype)
    kv = remember(model, batch, seen)
    rows, levels = seen.level.shape[0], diffusion.pass_levels(passes)
    step = jnp.full(rows, diffusion.step_size(passes))

    def predict(i: int, noisy: jax.Array) -> jax.Array:
        modulation = model.modulation(jnp.full(rows, levels[i]), jnp.zeros(rows), step)
        return model.denoise(seen.source, noisy, seen.controls, kv, modulation)

    noise = jax.random.normal(key, seen.clean.shape, seen.clean.dtype)
    shown = jnp.clip(diffusion.sample(predict, noise, passes).astype(jnp.float32), -1, 1)
    return jnp.mean(jnp.square(shown - seen.clean.astype(jnp.float32)))
