"""Flow matching with prediction of the clean frame: noising, noise levels, sampling, loss weight.

A noisy latent is `x_t = t * x + (1 - t) * noise`: `t = 0` is pure noise, `t = 1` the clean frame
(rectified flow: Liu et al. 2022; Lipman et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEP_SIZES = (1.0, 0.5, 0.25)  # of one, two and four passes
MIN_NOISE = 0.2  # caps the loss weight 1 / (1 - t)^2 close to the clean frame


def add_noise(
    clean: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """The point at `t` on the straight path from noise to the clean frame."""
    t = t[:, None, None, None].astype(clean.dtype)
    return t * clean + (1 - t) * noise


def sample_levels(key: Array, shape: tuple[int, ...], pure_noise: float) -> Float[Array, "..."]:
    """Levels `sigmoid(N(-0.4, 1))` (logit-normal: Esser et al. 2024), and exactly 0 with
    probability `pure_noise`, since a stream's first pass always starts there."""
    level_key, zero_key = jax.random.split(key)
    t = jax.nn.sigmoid(jax.random.normal(level_key, shape) - 0.4)
    return jnp.where(jax.random.uniform(zero_key, shape) < pure_noise, 0.0, t)


def loss_weight(t: Float[Array, " *b"]) -> Float[Array, " *b"]:
    """Turns the error of the predicted clean frame into that of the velocity
    `(x - x_t) / (1 - t)`, capped."""
    return 1 / jnp.square(jnp.maximum(1 - t, MIN_NOISE))


def pass_levels(passes: int) -> tuple[float, ...]:
    """The level at which each of `passes` passes starts, evenly spaced."""
    return tuple(i / passes for i in range(passes))


def advance(
    x: Float[Array, "b h w c"],
    clean: Float[Array, "b h w c"],
    t: Float[Array, " #b"],
    step: Float[Array, " #b"],
) -> Float[Array, "b h w c"]:
    """An Euler step from `t` to `t + step`, straight towards the clean frame seen from `x`."""
    share = (step / (1 - t))[:, None, None, None].astype(x.dtype)
    return x + (clean - x) * share


def step_size(passes: int) -> float:
    """The step size that a model is told at so many passes: the nearest that it was trained on."""
    return min(STEP_SIZES, key=lambda size: abs(size - 1 / passes))


def sample(
    predict: Callable[[int, Array], Array], noise: Float[Array, "b h w c"], passes: int
) -> Float[Array, "b h w c"]:
    """Euler steps from noise to a clean frame, statically unrolled.

    `predict(i, x_t)` is the clean frame that pass `i` sees in `x_t`; the last one is the result.
    """
    x, step = noise, jnp.full(1, 1 / passes)
    for i, t in enumerate(pass_levels(passes)):
        clean = predict(i, x)
        x = advance(x, clean, jnp.full(1, t), step)
    return clean
