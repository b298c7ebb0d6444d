"""Muon for matrices, AdamW for the rest, one learning rate for both."""

from __future__ import annotations

from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers, muon

from lsd_jax.config import TrainConfig

# Which axes of a weight are its matrix; every other axis is a batch of matrices. A convolution is
# the matrix from all that it sees to its features. Position and age tables, scales and what the
# modulation reads are left to AdamW, and so is the last layer, as is usual with Muon.
ROWS, STACKED = MuonDimensionNumbers(0, 1), MuonDimensionNumbers(1, 2)
CONVOLUTION = MuonDimensionNumbers((0, 1, 2), 3)
MATRICES = {
    ("embed",): ROWS,
    ("stack", "qkv"): MuonDimensionNumbers(1, (3, 4)),
    ("stack", "out"): MuonDimensionNumbers((1, 2), 3),
    ("stack", "up"): STACKED,
    ("stack", "down"): STACKED,
    ("readout", "coarse"): ROWS,
    ("readout", "film"): ROWS,
    ("readout", "gather"): ROWS,
    ("readout", "around"): CONVOLUTION,
    ("readout", "enter"): CONVOLUTION,
    ("readout", "mix"): CONVOLUTION,
    ("conditioner", "text", "words"): STACKED,
    ("conditioner", "text", "blocks"): STACKED,
    ("conditioner", "reference", "embed"): ROWS,
    ("conditioner", "reference", "mix"): ROWS,
    ("conditioner", "project"): MuonDimensionNumbers(1, (3, 4)),
} | {
    ("conditioner", encoder, "pool", weight): ROWS
    for encoder in ("text", "reference")
    for weight in ("k", "v", "out")
}
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
    def label(tree, path) -> Any:
        if isinstance(tree, dict):
            return {name: label(sub, (*path, name)) for name, sub in tree.items()}
        return MATRICES.get(path)

    return label(params, ())
