"""Muon for matrices, AdamW for the rest, one learning rate for both."""

from __future__ import annotations

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from lsd_jax.config import TrainConfig
from lsd_jax.matrices import MATRICES

RMS = 0.2  # makes a Muon step as large as an AdamW step (Liu et al. 2025, "Muon is scalable")


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipped Muon and AdamW under a linear warm-up and a cosine to a tenth (Jordan et al. 2024
    for Muon; Loshchilov & Hutter 2019 for AdamW)."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup,
        max(config.steps, config.warmup + 1),
        config.learning_rate / 10,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_weight_decay=config.weight_decay,
            consistent_rms=RMS,
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def _matrices(params) -> Any:
    """The axes of each weight that is a matrix, for Muon; None for AdamW."""

    def label(path, _) -> Any:
        matrix = MATRICES.get(tuple(key.key for key in path))
        return matrix and MuonDimensionNumbers(*matrix)

    return jax.tree_util.tree_map_with_path(label, params)
