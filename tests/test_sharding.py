"""One table of rules: what it refuses, and that a step on any mesh is the one-device step."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lsd_jax import sharding
from lsd_jax.checkpoint import Checkpoints
from lsd_jax.model import abstract_model
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.step import abstract_state, init_state, state_shardings

pytestmark = pytest.mark.multidevice
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
MESHES = {"data": {"data": 8}, "fsdp": {"data": 1, "fsdp": 8}, "all": {"fsdp": 2, "tensor": 2}}


def mesh_of(**sizes):
    devices = jax.devices()[:1] if sizes == ONE else None
    return sharding.make_mesh(**sizes, devices=devices)


def test_make_mesh_fills_in_what_is_left():
    assert len(jax.devices()) == 8
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(sharding.make_mesh(2, -1, 1).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    "sizes", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (-1, 16, 1), (0, 1, 1), (-1, -1, 1), (1, 1, 1)]
)
def test_make_mesh_refuses_what_does_not_fit(sizes):
    with pytest.raises(ValueError, match=r"data=.* x fsdp=.* x tensor=.*8 devices"):
        sharding.make_mesh(*sizes)


def test_partition_is_canonical():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    cases = [
        (("layer", "embed", None, "heads", None), PartitionSpec(None, "fsdp", None, "tensor")),
        (("layer", "mlp", "embed"), PartitionSpec(None, "tensor", "fsdp")),
        (("embed", None), PartitionSpec("fsdp")),
        (("layer", None), PartitionSpec()),
        ((), PartitionSpec()),
    ]
    for axes, spec in cases:
        found = sharding.partition(axes, (4,) * len(axes), mesh)
        assert found == spec and len(found) == len(spec)


def test_partition_refuses_with_a_way_out():
    mesh = sharding.make_mesh(data=2, tensor=4)
    with pytest.raises(ValueError, match="two of their dimensions on one mesh axis"):
        sharding.partition(("heads", "mlp"), (4, 4), mesh)
    with pytest.raises(ValueError, match="heads=6 does not split over tensor=4; use a multiple of"):
        sharding.partition(("heads", None), (6, 5), mesh)


def test_every_parameter_has_a_canonical_place(small_config):
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    model = abstract_model(small_config.model)
    places = jax.tree.leaves(sharding.parameter_shardings(model, mesh))
    assert len(places) == len(jax.tree.leaves(model))
    assert all(not place.spec or place.spec[-1] is not None for place in places)
    split = {axis for place in places for axis in place.spec if axis}
    assert split == {"fsdp", "tensor"}


def test_moments_lie_beside_their_weights(small_config):
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    places = state_shardings(small_config, mesh)
    shapes = abstract_state(small_config, mesh)
    leaves = jax.tree_util.tree_flatten_with_path(places.optimizer)[0]
    for leaf, (path, place) in zip(jax.tree.leaves(shapes.optimizer), leaves, strict=True):
        names = [str(getattr(key, "key", "")) for key in path]
        if names[-2:] == ["stack", "qkv"]:
            assert leaf.ndim and place.spec == places.params["stack"]["qkv"].spec != PartitionSpec()
        if not leaf.ndim:
            assert place.spec == PartitionSpec()


@pytest.fixture(scope="module")
def config(small_config):
    """Warm from the second step on."""
    return dataclasses.replace(
        small_config, train=dataclasses.replace(small_config.train, warmup=1, frames=2)
    )


@pytest.fixture(scope="module")
def two_steps(config, small_params, small_batch, shared_step):
    """The state and metrics after two steps on a mesh, as NumPy."""
    batch = jax.tree.map(lambda x: x[:, :2] if x.ndim == 5 else x, small_batch)

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


@pytest.mark.parametrize(
    "name", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("data", "fsdp"))]
)  # one step along all axes is tested each time, along one of them when there is time
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
