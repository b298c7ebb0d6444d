"""One table of rules: where it puts what, and what it refuses."""

import jax
import pytest
from jax.sharding import PartitionSpec

from lsd_jax import sharding
from lsd_jax.model import abstract_model
from lsd_jax.train.step import abstract_state, state_shardings

pytestmark = pytest.mark.multidevice


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
