"""Norms, rotary positions, patches and initialisers against their formulas."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsd_jax import layers
from lsd_jax.ops.readout import upsample


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm_has_unit_rms_in_any_dtype():
    x = normals(3, 16) * 40
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(layers.rms_norm(jnp.asarray(x)), expected, rtol=1e-5)
    half = layers.rms_norm(jnp.asarray(x, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=0.02, atol=0.01)
    assert not np.any(layers.rms_norm(jnp.zeros((2, 4))))


def test_modulate_broadcasts_over_sessions():
    x, scale, shift = normals(2, 5, 8), normals(1, 8, seed=1), normals(1, 8, seed=2)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + layers.EPSILON)
    out = layers.modulate(*map(jnp.asarray, (x, scale, shift)))
    np.testing.assert_allclose(out, normed * (1 + scale) + shift, rtol=1e-5, atol=1e-6)


def test_rotation_keeps_length_and_depends_on_offsets_only():
    rows, columns, k = 4, 6, 16
    rope = layers.rope_table(rows, columns, k)
    q, key = (normals(k, seed=s) for s in (1, 2))
    turned = [
        np.asarray(layers.rotate(jnp.asarray(np.tile(x, (1, rows * columns, 1, 1))), rope)).reshape(
            rows, columns, k
        )
        for x in (q, key)
    ]
    for turned_x, x in zip(turned, (q, key), strict=True):
        np.testing.assert_allclose(np.linalg.norm(turned_x, axis=-1), np.linalg.norm(x), rtol=1e-5)
    products = np.einsum("abk,cdk->abcd", *turned)
    np.testing.assert_allclose(products[0, 1, 2, 4], products[1, 0, 3, 3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(products[3, 5, 1, 1], products[2, 4, 0, 0], rtol=1e-4, atol=1e-5)
    assert abs(products[0, 0, 0, 1] - products[0, 0, 1, 0]) > 1e-3  # rows are not columns
    np.testing.assert_array_equal(turned[0][0, 0], q)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_patches_and_back(rows, columns, patch, channels):
    x = normals(2, rows * patch, columns * patch, channels)
    patches = layers.patchify(jnp.asarray(x), patch)
    assert patches.shape == (2, rows, columns, patch * patch * channels)
    np.testing.assert_array_equal(
        np.asarray(patches)[1, -1, -1].reshape(patch, patch, channels), x[1, -patch:, -patch:]
    )
    np.testing.assert_array_equal(layers.unpatchify(patches, patch), x)


def test_fourier_tells_levels_apart():
    levels = jnp.linspace(0, 1, 33)
    features = np.asarray(layers.fourier(levels, 16))
    assert features.shape == (33, 16) and np.abs(features).max() <= 1
    apart = np.linalg.norm(features[:, None] - features[None], axis=-1)
    assert apart[~np.eye(33, dtype=bool)].min() > 0.1


@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_normal_has_the_asked_deviation(gain):
    weights = layers.normal(jax.random.key(0), (64, 64), 64, gain)
    assert float(jnp.std(weights)) == pytest.approx(gain / 8, rel=0.05)
    assert abs(float(jnp.mean(weights))) < 0.01 * gain


@pytest.mark.parametrize(("size", "finer"), [((2, 3), (16, 12)), ((1, 4), (2, 4))])
def test_upsample_interpolates_as_pictures_are_resized(size, finer):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *size, 5)), jnp.float32)
    resized = jax.image.resize(x, (2, *finer, 5), "bilinear")
    np.testing.assert_allclose(upsample(x, finer), resized, rtol=1e-6, atol=1e-6)


def test_a_wrong_shape_is_an_error_at_the_call():
    """As long as the tests run: the session's hook checks what annotations say."""
    with pytest.raises(jaxtyping.TypeCheckError, match="patchify"):
        layers.patchify(jnp.zeros((4, 4, 3)), 2)
