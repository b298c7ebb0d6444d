"""What one stream's output is worth against ground truths: errors, decibels, texture, nearest."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lsd_jax.data import filters

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


def frame_psnr_db(
    out: UInt8[np.ndarray, "f h w 3"], truth: UInt8[np.ndarray, "f h w 3"]
) -> Float[np.ndarray, " f"]:
    """PSNR of each frame to its truth."""
    return psnr_db(np.asarray(squared_errors(out, truth[None]), np.float64)[0])


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


CHANGED = 4  # bytes by which an edit changes a pixel that counts
STILL = 2  # bytes by which a pixel may change from frame to frame and count as unchanged
BANDS = (1.0, 2.0, 4.0, 8.0)  # sigmas, in pixels of a frame 128 high
SILENCE = 1e-6  # energy of a band, of pictures in [0, 1], that counts as none


@jax.jit
def statistics(
    out: UInt8[Array, "f h w 3"],
    truth: UInt8[Array, "f h w 3"],
    before: UInt8[Array, "2 h w 3"],
) -> dict[str, Float[Array, " f"]]:
    """What can drift, of each frame.

    Args:
        before: output and truth of the frame before the first.

    Returns:
        `mse` of pictures in [0, 1]; `ssim`; `features`, the `feature_distance`; `brightness` and
        `contrast` (mean and standard deviation of the luma) and `texture` of the output over the
        truth's; `flicker`, the mean change of the output since the frame before, in bytes, where
        the truth stands still.
    """
    ours, theirs = (x.astype(jnp.float32) / 255 for x in (out, truth))
    a, b = filters.luma(ours), filters.luma(theirs)

    def moves(frames, first):
        frames = jnp.concatenate([first[None], frames]).astype(jnp.float32)
        return jnp.abs(frames[1:] - frames[:-1])

    still = (jnp.max(moves(truth, before[1]), axis=-1) <= STILL).astype(jnp.float32)
    change = jnp.mean(moves(out, before[0]), axis=-1)
    texture = [jax.vmap(lambda x: texture_energy(x[None]))(x) for x in (out, truth)]
    return {
        "mse": jnp.mean(jnp.square(ours - theirs), axis=(1, 2, 3)),
        "ssim": ssim(a, b),
        "features": feature_distance(a, b),
        "brightness": jnp.mean(a, axis=(1, 2, 3)) / (jnp.mean(b, axis=(1, 2, 3)) + 1e-3),
        "contrast": jnp.std(a, axis=(1, 2, 3)) / (jnp.std(b, axis=(1, 2, 3)) + 1e-3),
        "texture": (texture[0] + SILENCE) / (texture[1] + SILENCE),
        "flicker": jnp.sum(change * still, axis=(1, 2)) / jnp.maximum(jnp.sum(still, (1, 2)), 1),
    }


@jax.jit
def edited_mse(
    out: UInt8[Array, "f h w 3"], truth: UInt8[Array, "f h w 3"], source: UInt8[Array, "f h w 3"]
) -> Float[Array, " f"]:
    """Mean squared error, of pictures in [0, 1], of the pixels that the edit changes by more than
    `CHANGED` bytes; NaN where there are none."""
    ours, theirs, before = (x.astype(jnp.float32) for x in (out, truth, source))
    changed = jnp.any(jnp.abs(theirs - before) > CHANGED, axis=-1).astype(jnp.float32)
    squares = jnp.mean(jnp.square(ours - theirs), axis=-1) / 255**2
    pixels = jnp.sum(changed, axis=(1, 2))
    return jnp.where(
        pixels > 0, jnp.sum(squares * changed, axis=(1, 2)) / jnp.maximum(pixels, 1), jnp.nan
    )


def ssim(a: Float[Array, "f h w 1"], b: Float[Array, "f h w 1"]) -> Float[Array, " f"]:
    """Structural similarity in [-1, 1] of pictures in [0, 1] (Wang et al. 2004, equation 13, with
    its constants; a Gaussian window of sigma 1.5 pixels)."""
    sigma = 1.5 * filters.REFERENCE_HEIGHT / a.shape[1]

    def mean(x):
        return filters.blur(x, sigma)

    # Moments about each picture's own mean: about 0, rounding is as large as the variance of a flat
    # region is small.
    centred_a, centred_b = (x - jnp.mean(x, axis=(1, 2, 3), keepdims=True) for x in (a, b))

    def covary(x, y):
        return mean(x * y) - mean(x) * mean(y)

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = covary(centred_a, centred_a), covary(centred_b, centred_b)
    covariance = covary(centred_a, centred_b)
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    score /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return jnp.mean(score, axis=(1, 2, 3))


def feature_distance(a: Float[Array, "f h w 1"], b: Float[Array, "f h w 1"]) -> Float[Array, " f"]:
    """Root mean square difference in dB of the energies of four octave bands: how alike two
    pictures are in grain and structure wherever these lie. 0 is alike; blur and noise raise it.
    """

    def energies(x):
        found = []
        for sigma in BANDS:
            blurred = filters.blur(x, sigma)
            found.append(jnp.mean(jnp.square(x - blurred), axis=(1, 2, 3)))
            x = blurred
        return 10 * jnp.log10(jnp.stack(found) + SILENCE)

    return jnp.sqrt(jnp.mean(jnp.square(energies(a) - energies(b)), axis=0))


def nearest(errors: Float[np.ndarray, " c"], asked: int) -> int:
    """The candidate of least error; the asked one where it ties with another for first place,
    as it does where an edit leaves no trace (removing an object that nobody sees)."""
    best = int(np.argmin(errors))
    return asked if errors[asked] <= errors[best] else best
