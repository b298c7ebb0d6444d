"""A step: that it teaches, and that on any mesh it is the one-device step."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from lsd_jax import sharding
from lsd_jax.checkpoint import Checkpoints
from lsd_jax.model import build
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.step import abstract_state, init_state, state_shardings
from tests.marks import slow

pytestmark = pytest.mark.multidevice
STEPS = 20
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
MESHES = {"data": {"data": 8}, "fsdp": {"data": 1, "fsdp": 8}, "all": {"fsdp": 2, "tensor": 2}}


def mesh_of(**sizes):
    devices = jax.devices()[:1] if sizes == ONE else None
    return sharding.make_mesh(**sizes, devices=devices)


@pytest.fixture(scope="module")
def config(small_config):
    """One for all tests, so that one step is compiled for them; warm from the second on."""
    train = dataclasses.replace(
        small_config.train, warmup=1, frames=2, learning_rate=5e-3, steps=STEPS
    )
    return dataclasses.replace(small_config, train=train)


@pytest.fixture(scope="module")
def batch(small_batch):
    """Of two frames."""
    return jax.tree.map(lambda x: x[:, :2] if x.ndim == 5 else x, small_batch)


@pytest.fixture(scope="module")
def two_steps(config, small_params, batch, shared_step):
    """The state and metrics after two steps on a mesh, as NumPy."""

    def run(sizes):
        mesh = mesh_of(**sizes)
        state = init_state(config, mesh, small_params)
        placed = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
        step = shared_step(config, forcing_loss, mesh)
        metrics = []
        for _ in range(2):
            state, values = step(state, placed)
            metrics.append({k: float(v) for k, v in values.items()})
        for leaf, place in zip(
            jax.tree.leaves(state), jax.tree.leaves(state_shardings(config, mesh)), strict=True
        ):
            assert leaf.sharding == place
        return jax.tree.map(np.asarray, state), metrics

    return run


@pytest.fixture(scope="module")
def one_device(two_steps):
    return two_steps(ONE)


@pytest.mark.parametrize("name", ["all", slow("data"), slow("fsdp")])
def test_a_step_on_a_mesh_equals_the_one_device_step(two_steps, one_device, small_params, name):
    """Tightly in loss and gradient. Muon orthogonalises, which blows rounding up where a
    gradient is nearly singular, so weights are compared by how far they moved."""
    state, metrics = two_steps(MESHES[name])
    expected, expected_metrics = one_device
    for ours, theirs in zip(metrics, expected_metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for part in (lambda s: s.params, lambda s: s.ema):
        for start, ours, theirs in zip(
            *map(jax.tree.leaves, (small_params, part(state), part(expected))), strict=True
        ):
            moved = np.linalg.norm(theirs - start)
            assert np.linalg.norm(ours - theirs) <= 0.02 * moved + 1e-7
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    moved = [np.any(a != b) for a, b in zip(
        *map(jax.tree.leaves, (small_params, state.params)), strict=True)]  # fmt: skip
    assert all(moved)


def test_some_steps_teach_one_batch(config, small_params, batch, shared_step):
    """And the mean of the weights follows them."""
    mesh = mesh_of(**ONE)
    state = init_state(config, mesh, small_params)
    run = shared_step(config, forcing_loss, mesh)
    batch = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
    losses, means = [], []
    for n in range(STEPS):
        before = jax.tree.map(np.asarray, state.ema["embed"])
        state, metrics = run(state, batch)
        losses.append(float(metrics["mse"]))
        decay = min(config.train.ema, (n + 1) / (n + 10))
        expected = decay * before + (1 - decay) * np.asarray(state.params["embed"])
        means.append(np.abs(expected - np.asarray(state.ema["embed"])).max())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert max(means) < 1e-6 and int(state.step) == STEPS and int(state.skipped) == 0
    shown = build(config.model, state.ema)
    assert np.any(np.asarray(shown.embed[...]) != np.asarray(small_params["embed"]))


def test_a_checkpoint_restores_on_another_mesh(config, small_params, tmp_path):
    saved_on, restored_on = mesh_of(**MESHES["all"]), mesh_of(**MESHES["fsdp"])
    state = init_state(config, saved_on, small_params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, config)
        for mesh in (restored_on, mesh_of(**ONE)):
            restored, step, _ = checkpoints.restore(abstract_state(config, mesh))
            assert step == 3
            jax.tree.map(np.testing.assert_array_equal, restored, state)
            places = jax.tree.leaves(state_shardings(config, mesh))
            assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == places
