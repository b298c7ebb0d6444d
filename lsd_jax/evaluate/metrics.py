"""What one stream's output is worth against ground truths: errors, decibels, texture, nearest."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

CAP_DB = 60.0
"""PSNR counts no higher: a mean squared error of 1e-6, a quarter of a byte's step."""


def psnr_db(mse: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Decibels of a mean squared error of pictures in [0, 1]: -10 log10(mse), at most `CAP_DB`."""
    return -10 * np.log10(np.maximum(mse, 10 ** (-CAP_DB / 10)))


@jax.jit
def squared_errors(
    out: UInt8[Array, "f h w 3"], candidates: UInt8[Array, "c f h w 3"]
) -> Float[Array, "c f"]:
    """Mean squared error of each frame against each candidate, pictures in [0, 1]."""
    ours = out.astype(jnp.int32)

    def one(candidate):
        difference = (ours - candidate.astype(jnp.int32)).astype(jnp.float32)
        return jnp.mean(jnp.square(difference), axis=(1, 2, 3)) / 255**2

    return jax.lax.map(one, candidates)


@jax.jit
def texture_energy(frames: UInt8[Array, "f h w 3"]) -> Float[Array, ""]:
    """Mean square of the Laplacian 4 x - (left + right + above + below), in [0, 1] units.

    It measures fine detail: halving the contrast of texture quarters it, blur takes most of it.
    """
    x = frames.astype(jnp.float32) / 255
    across = x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    down = x[:, :-2, 1:-1] + x[:, 2:, 1:-1]
    return jnp.mean(jnp.square(4 * x[:, 1:-1, 1:-1] - across - down))


def texture_ratio(ours: Iterable[float], truth: Iterable[float]) -> float:
    """Energies summed over streams, output over truth: 1 is right, below is blur, above noise."""
    return (sum(ours) + 1e-9) / (sum(truth) + 1e-9)


def nearest(errors: Float[np.ndarray, " c"], asked: int) -> int:
    """The candidate of least error; the asked one where it ties with another for first place,
    as it does where an edit leaves no trace (removing an object that nobody sees)."""
    best = int(np.argmin(errors))
    return asked if errors[asked] <= errors[best] else best
