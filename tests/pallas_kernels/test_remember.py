"""`ops.remember` by the megakernel, and what the plan says of it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax import ring
from lsd_jax.hw.chips import load
from lsd_jax.hw.stack import streamed_stack
from lsd_jax.ops import dispatch
from lsd_jax.ops.commit import Retention
from lsd_jax.ops.remember import pinned_alone, remember
from pallas_kernels.tpu.cost import total
from pallas_kernels.tpu.planner import choose, choose_cycles
from pallas_kernels.tpu.schedule import program
from tests.pallas_kernels.examples import arguments


def test_a_frame_is_remembered_as_the_specification_says():
    x, weights, kv, _, modulation, rope = arguments(b=2)
    bias = ring.bias(pinned_alone(kv))
    retention = Retention(sinks=0, periods=(), grid=(4, 8))

    def by(backend):
        with dispatch.using(backend) as chosen:
            out = jax.jit(
                lambda x, kv: remember(x, weights, kv, bias, modulation, rope, retention)
            )(x, kv)
        return chosen, out

    chosen, (ours, fine) = by("pallas-interpret")
    assert chosen == dict.fromkeys(("remember", "commit"), "pallas-interpret")
    _, (theirs, well) = by("xla")
    np.testing.assert_array_equal(fine, well)
    np.testing.assert_array_equal(ours.age, theirs.age)
    for a, b in zip((ours.k, ours.v), (theirs.k, theirs.v), strict=True):
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_the_plan_leaves_out_what_nobody_wants_of_the_last_layer(name):
    shape, chip = streamed_stack(configs.load(name), commit=True), load("v6e")
    assert shape.places
    less, more = choose(shape, "v6e").total, choose(replace(shape, places=0), "v6e").total
    saved = 1 - less.compute_cycles / more.compute_cycles
    assert 0.6 / shape.layers < saved < 1 / shape.layers
    assert less.hbm_bytes < more.hbm_bytes
    plan = choose(replace(shape, places=0), "v6e").plan
    whole = tuple(node for node in program(plan) if getattr(node, "times", 1))
    assert len(whole) < len(program(plan)) and total(whole, plan, chip) == more
    shapes = [shape, replace(shape, places=0)]
    np.testing.assert_allclose(choose_cycles(shapes, chip), [less.cycles, more.cycles])
