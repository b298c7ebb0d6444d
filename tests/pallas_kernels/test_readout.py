"""The read-out kernel, interpreted, against the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax.config import ModelConfig
from lsd_jax.ops import dispatch
from lsd_jax.ops.readout import readout
from lsd_jax.readout import Readout


def example(batch, height, width, dtype, **changes):
    """A read-out with weights large enough that each part of it shows, and what it is given."""
    config = ModelConfig(height=height, width=width, dim=128, heads=1, detail_dim=24, **changes)
    model = Readout(config, 3, jax.random.key(0))
    rng = np.random.default_rng(0)

    def normals(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

    model = jax.tree.map(lambda x: (3 * x).astype(dtype), model)
    shape = (batch, height, width)
    inputs = normals(batch, config.tokens, 128), normals(*shape, 3), normals(*shape, 3)
    return model, (*inputs, normals(*shape, len(config.controls)))


@pytest.mark.parametrize(
    ("batch", "height", "dtype", "tolerance"), [(1, 48, "float32", 1e-4), (2, 32, "bfloat16", 2e-2)]
)
def test_equals_the_specification(batch, height, dtype, tolerance):
    model, inputs = example(batch, height, 128, dtype)
    exact, exactly = example(batch, height, 128, "float32")
    with dispatch.using("pallas-interpret") as chosen:
        ours = jax.jit(lambda *x: model(*x))(*inputs)
    assert chosen == {"readout": "pallas-interpret"} and ours.dtype == dtype
    theirs = np.asarray(jax.jit(lambda *x: exact(*x))(*exactly))
    assert np.abs(np.asarray(ours, np.float32) - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("width", "changes", "reason"),
    [
        (64, {}, "widths in 128 pixels, not 64"),
        (128, dict(patch=8), "takes patches of 16"),
        (128, dict(controls=("mask", "keypoints")), "one control, not 2"),
    ],
)
def test_what_it_does_not_take_is_refused(width, changes, reason, monkeypatch):
    model, inputs = example(1, 32, width, "float32", **changes)
    monkeypatch.setattr(readout, "minor", False)  # else it is left to the reference
    with dispatch.using("pallas-interpret"), pytest.raises(NotImplementedError, match=reason):
        model(*inputs)
