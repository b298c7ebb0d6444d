"""Metrics against closed forms."""

import numpy as np
import pytest

from lsd_jax.evaluate import metrics

SHAPE = (3, 16, 24, 3)


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 200, SHAPE, dtype=np.uint8)


@pytest.mark.parametrize("offset", [1, 5, 51])
def test_psnr_of_a_known_offset(picture, offset):
    errors = metrics.squared_errors(picture + np.uint8(offset), picture[None])
    assert errors.shape == (1, 3)
    expected = 20 * np.log10(255 / offset)
    np.testing.assert_allclose(metrics.psnr_db(np.asarray(errors)), expected, rtol=1e-5)


def test_psnr_is_per_frame_and_capped(picture):
    other = picture.copy()
    other[1] += 51
    errors = np.asarray(metrics.squared_errors(other, picture[None]), np.float64)[0]
    np.testing.assert_allclose(metrics.psnr_db(errors), [60, 20 * np.log10(5), 60], rtol=1e-5)


def test_a_falling_difference_does_not_wrap_around():
    dark, bright = np.zeros(SHAPE, np.uint8), np.full(SHAPE, 255, np.uint8)
    for ours, theirs in ((dark, bright), (bright, dark)):
        np.testing.assert_allclose(metrics.squared_errors(ours, theirs[None]), 1.0, rtol=1e-4)


def test_texture_of_a_checkerboard_and_of_its_half():
    """A checkerboard of amplitude a has a Laplacian of 8 a everywhere."""
    y, x = np.mgrid[:16, :24]
    sign = np.where((x + y) % 2, 1, -1)[None, ..., None]
    board = np.broadcast_to(sign * 40 + 128, SHAPE).astype(np.uint8)
    half = np.broadcast_to(sign * 20 + 128, SHAPE).astype(np.uint8)
    full_energy, half_energy = (float(metrics.texture_energy(b)) for b in (board, half))
    assert full_energy == pytest.approx((8 * 40 / 255) ** 2, rel=1e-4)
    assert metrics.texture_ratio([half_energy], [full_energy]) == pytest.approx(0.25, rel=1e-5)


def test_texture_ratio_is_one_for_equal_pictures_even_flat_ones(picture):
    for frames in (picture, np.full(SHAPE, 9, np.uint8)):
        energy = float(metrics.texture_energy(frames))
        assert metrics.texture_ratio([energy], [energy]) == pytest.approx(1)


def test_a_slope_has_no_texture():
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None], SHAPE)
    assert float(metrics.texture_energy(ramp)) < 1e-12


@pytest.mark.parametrize(
    ("errors", "asked", "expected"),
    [
        ([0.3, 0.1, 0.2], 1, 1),
        ([0.3, 0.1, 0.2], 2, 1),
        ([0.1, 0.1, 0.2], 1, 1),  # a tie for first place is right
        ([0.1, 0.2, 0.2], 2, 0),  # a tie for second is not
    ],
)
def test_nearest(errors, asked, expected):
    assert metrics.nearest(np.array(errors), asked) == expected
