"""Noising, levels, sampling and the weight of the loss against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import diffusion


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_noise_is_on_the_straight_path():
    clean, noise = normals(3, 2, 2, 3), normals(3, 2, 2, 3, seed=1)
    t = np.array([0, 0.25, 1], np.float32)
    out = diffusion.add_noise(*map(jnp.asarray, (clean, noise, t)))
    np.testing.assert_array_equal(out[0], noise[0])
    np.testing.assert_array_equal(out[2], clean[2])
    np.testing.assert_allclose(out[1], 0.25 * clean[1] + 0.75 * noise[1], rtol=1e-6)


def test_levels_are_logit_normal_with_a_share_of_pure_noise():
    t = np.asarray(diffusion.sample_levels(jax.random.key(0), (4000,), 0.25))
    assert np.mean(t == 0) == pytest.approx(0.25, abs=0.03)
    logit = np.log(t[t > 0] / (1 - t[t > 0]))
    assert (logit.mean(), logit.std()) == pytest.approx((-0.4, 1.0), abs=0.06)
    assert not np.any(np.asarray(diffusion.sample_levels(jax.random.key(0), (8,), 1.0)))


def test_loss_weight_makes_a_velocity_error():
    x, predicted, noise = (normals(1, 4, 4, 3, seed=s) for s in range(3))
    for t in (0.0, 0.3, 0.7):
        x_t = t * x + (1 - t) * noise
        velocity = np.square((predicted - x_t) / (1 - t) - (x - x_t) / (1 - t)).mean()
        weight = float(diffusion.loss_weight(jnp.full(1, t))[0])
        assert weight * np.square(predicted - x).mean() == pytest.approx(velocity, rel=1e-4)
    cap = diffusion.loss_weight(jnp.array([0.9, 1.0]))
    np.testing.assert_allclose(cap, 1 / diffusion.MIN_NOISE**2, rtol=1e-6)


@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_sampling_is_euler(passes):
    """Against steps along the velocity, with a prediction that depends on what it sees."""
    noise = normals(2, 2, 2, 3)
    seen = []

    def predict(i, x):
        seen.append(i)
        return 0.3 * x + 0.1 * i

    out = diffusion.sample(predict, jnp.asarray(noise), passes)
    x, levels = noise, diffusion.pass_levels(passes)
    for i, t in enumerate(levels):
        clean = 0.3 * x + np.float32(0.1 * i)
        x = x + (clean - x) / (1 - t) / passes
    assert seen == list(range(passes)) and levels == tuple(np.arange(passes) / passes)
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("passes", [1, 4])
def test_a_perfect_prediction_is_the_result(passes):
    clean = jnp.asarray(normals(1, 2, 2, 3))
    noise = jnp.asarray(normals(1, 2, 2, 3, seed=1))
    np.testing.assert_array_equal(diffusion.sample(lambda i, x: clean, noise, passes), clean)


def test_a_model_is_told_a_step_size_that_it_knows():
    told = [diffusion.step_size(passes) for passes in (1, 2, 3, 4)]
    assert told == [1, 0.5, 0.25, 0.25]
