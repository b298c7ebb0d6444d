"""Which checkpoints make a model, and what is said of those that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax.checkpoint import save_weights
from lsd_jax.digests import CheckpointError
from lsd_jax.pretrained import load_model


def test_the_training_mean_is_taken_from_a_training_step(small_params, small_config, tmp_path):
    mean = jax.tree.map(lambda x: x + 1, small_params)
    save_weights(tmp_path / "7", {"params": small_params, "ema": mean}, small_config)
    model, config = load_model(tmp_path / "7", ["stream.passes=2"])
    assert config.stream.passes == 2
    np.testing.assert_array_equal(model.embed[...], mean["embed"])


def test_weights_in_bfloat16_become_float32(small_params, small_config, tmp_path):
    halved = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small_params)
    save_weights(tmp_path / "half", halved, small_config)
    model, _ = load_model(tmp_path / "half", [])
    assert model.embed.dtype == jnp.float32
    np.testing.assert_array_equal(model.embed[...], halved["embed"].astype(jnp.float32))


def test_other_shapes_are_refused(small_params, small_config, tmp_path):
    save_weights(tmp_path / "odd", small_params | {"embed": jnp.ones((3, 3))}, small_config)
    with pytest.raises(CheckpointError, match="odd: weights of another version differ in embed"):
        load_model(tmp_path / "odd", [])
    with pytest.raises(CheckpointError, match="another architecture.*layers: 4 != 2"):
        load_model(tmp_path / "odd", ["model.layers=4"])


def test_weights_that_are_not_finite_are_refused(small_params, small_config, tmp_path):
    broken = small_params | {"embed": small_params["embed"].at[0, 0].set(jnp.inf)}
    save_weights(tmp_path / "broken", broken, small_config)
    with pytest.raises(CheckpointError, match="broken: weights are not finite; give another"):
        load_model(tmp_path / "broken", [])
