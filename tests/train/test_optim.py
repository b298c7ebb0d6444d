"""Which weights Muon turns, how far, and the schedule both optimisers share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsd_jax.config import TrainConfig
from lsd_jax.matrices import MATRICES
from lsd_jax.model import abstract_params
from lsd_jax.train import optim

SETTINGS = TrainConfig(
    learning_rate=0.01, warmup=1, steps=100, weight_decay=0.0, clip_norm=1e9, ema=0.9
)


def at(tree, path):
    for name in path:
        tree = tree[name]
    return tree


def test_labels_cover_exactly_the_matrices_meant(small_config):
    params = abstract_params(small_config.model)
    labels = optim._matrices(params)
    leaves = jax.tree_util.tree_flatten_with_path(
        labels, is_leaf=lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    )[0]
    marked = {tuple(key.key for key in path) for path, label in leaves if label is not None}
    assert marked == set(MATRICES)
    assert len(leaves) == len(jax.tree.leaves(params))
    for path, numbers in MATRICES.items():
        shape = at(params, path).shape
        rows, columns = (
            np.prod([shape[i] for i in np.atleast_1d(axes)])
            for axes in (numbers.summed, numbers.result)
        )
        assert rows > 1 and columns > 1
        if path[0] == "stack":  # layer by layer
            assert small_config.model.layers * rows * columns <= np.prod(shape)


@pytest.fixture(scope="module")
def updates():
    """Two steps' updates of a small tree, with the learning rate 0 in the first."""
    rng = np.random.default_rng(0)
    params = {
        "stack": {"up": rng.standard_normal((2, 24, 40)), "down": rng.standard_normal((2, 40, 24))},
        "position": rng.standard_normal((24, 16)),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimiser = optim.optimizer(SETTINGS)

    @jax.jit
    def run(params):
        state, found = optimiser.init(params), []
        for _ in range(2):
            with jax.numpy_dtype_promotion("standard"):
                changes, state = optimiser.update(params, state, params)
            found.append(changes)
        return found

    return run(params)


def test_warm_up_starts_at_nothing(updates):
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates[0]))


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_muon_step_is_as_large_as_an_adamw_step(updates, name):
    """Orthogonal, each layer on its own, with entries of about 0.2 learning rates."""
    change = np.asarray(updates[1]["stack"][name]) / SETTINGS.learning_rate
    for layer in change:
        assert np.sqrt(np.mean(layer**2)) == pytest.approx(optim.RMS, rel=0.25)
        values = np.linalg.svd(layer, compute_uv=False)
        assert values.max() / values.min() < 2.5
    adam = np.sqrt(np.mean(np.square(updates[1]["position"]))) / SETTINGS.learning_rate
    assert adam == pytest.approx(1.0, rel=0.25)  # its largest, for a gradient that never turns


def test_the_rate_falls_from_all_of_it_to_a_tenth():
    """Under a gradient that never changes, a step of AdamW is soon one learning rate."""
    steps = 7
    optimiser = optim.optimizer(dataclasses.replace(SETTINGS, steps=steps))
    weight = {"position": jnp.ones((3, 3))}
    state, sizes = optimiser.init(weight), []
    for _ in range(steps + 1):
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimiser.update(weight, state, weight)
        sizes.append(-float(change["position"][0, 0]) / SETTINGS.learning_rate)
    assert sizes[0] == 0 and sizes[1] == max(sizes)
    np.testing.assert_allclose([sizes[i] for i in (1, 4, 7)], [1.0, 0.55, 0.1], rtol=0.2)


def test_clipping_bounds_what_the_moments_see():
    gradient = {"position": jnp.full((3, 3), 100.0)}
    optimiser = optim.optimizer(dataclasses.replace(SETTINGS, clip_norm=1.0))
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimiser.update(gradient, optimiser.init(gradient), gradient)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (3, 3)]
    assert moments and max(float(jnp.linalg.norm(x)) for x in moments) <= 1.0
