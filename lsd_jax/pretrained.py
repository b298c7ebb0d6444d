"""A trained denoiser from a checkpoint on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lsd_jax import config as configs
from lsd_jax.checkpoint import load_config, load_weights
from lsd_jax.config import Config
from lsd_jax.digests import CheckpointError
from lsd_jax.model import Denoiser, abstract_params, build
from lsd_jax.quantize import dequantize


def load_model(checkpoint: str | Path | None, overrides: list[str]) -> tuple[Denoiser, Config]:
    """The denoiser of a verified checkpoint in float32, and its config with `overrides` applied.

    Takes saved weights, quantised or not, and steps of a training run, of which it takes the
    running mean. Without a path the shipped `checkpoints/tiny` is taken, from the working
    directory or beside the package. Raises CheckpointError where it is absent or damaged, holds
    what is not finite, or other shapes than config and overrides ask for.
    """
    path = Path(checkpoint) if checkpoint else _shipped("tiny")
    found = load_config(path)
    config = configs.override(found, overrides)
    wanted = _shapes(abstract_params(config.model))
    if wanted != _shapes(abstract_params(found.model)):
        fields = ", ".join(configs.differences(config.model, found.model))
        raise CheckpointError(f"{path}: another architecture (asked != found): {fields}")
    params, _ = load_weights(path)
    params = dequantize(params.get("ema", params))
    held = _shapes(params)
    if wrong := sorted(k for k in held | wanted if held.get(k) != wanted.get(k)):
        raise CheckpointError(f"{path}: weights of another version differ in {wrong[0]}")
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    if not all(jax.tree.leaves(jax.tree.map(lambda x: jnp.isfinite(x).all(), params))):
        raise CheckpointError(f"{path}: weights are not finite; give another checkpoint or step")
    return build(config.model, params), config


def load_settings(path: str | Path) -> Config:
    """The config of a Python file, of a shipped name, or of a checkpoint (but not its teacher)."""
    if not (Path(path) / "config.json").is_file():
        return configs.load(path)
    config = load_config(path)
    return replace(config, distill=replace(config.distill, teacher=""))


def weights_for(config: Config, seed: int) -> tuple[Denoiser, str]:
    """Weights for a config, in float32, and where they are from: the shipped checkpoint of its name
    if that has its shapes, else a seed. Raises CheckpointError where that checkpoint is damaged."""
    for path in _places(config.name):
        if path.is_dir() and not configs.differences(load_config(path).model, config.model):
            return load_model(path, [])[0], f"checkpoints/{config.name}, as shipped"
    key = jax.random.key(seed)
    make = jax.jit(lambda key: Denoiser(config.model, key)).lower(key)
    quickly: dict[str, Any] = {"xla_backend_optimization_level": 0}  # it runs once
    return make.compile(quickly)(key), f"initialised by seed {seed}"


def _shapes(tree: dict) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}


def _shipped(name: str) -> Path:
    places = _places(name)
    for place in places:
        if place.is_dir():
            return place
    raise CheckpointError(f"no shipped checkpoint at {places[0]}; give --checkpoint DIR")


def _places(name: str) -> list[Path]:
    """Where a shipped checkpoint may be."""
    return [root / "checkpoints" / name for root in (Path.cwd(), Path(__file__).parent.parent)]
