"""The megakernel on both cores of a chip, interpreted, against the float32 specification."""

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax.hw.stack import share
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.quantize import quantize_stack
from pallas_kernels.tpu import schedule
from pallas_kernels.tpu.denoise_stack import as_seam, by_kernel, shape_of
from pallas_kernels.tpu.launch import launch
from pallas_kernels.tpu.plan import Plan, filling
from tests.pallas_kernels import races
from tests.pallas_kernels.examples import arguments, noticed
from tests.pallas_kernels.test_megakernel import TOLERANCE, assert_near


def plan_of(args, group=1, chunk=128, rows=16, queries=16):
    x, weights, kv, _, modulation, _ = args
    whole = shape_of(x, weights, kv, modulation)
    return Plan(share(whole, 2), group, chunk, rows, queries, filled=filling(whole), cores=2)


def run(args, plan, **options):
    """The seam on two simulated cores, with races looked for."""
    simulated = pltpu.InterpretParams(detect_races=True, **options)
    out = jax.jit(lambda *args: by_kernel(plan, *args, interpret=simulated))(*args)
    out = jax.block_until_ready(out)
    assert not races.found()
    return out


@pytest.mark.parametrize(
    ("dtype", "shape", "tiles"),
    [
        ("float32", dict(heads=4, mlp=512), dict()),
        ("float32", dict(b=2, heads=2), dict(rows=64)),  # one block
        ("bfloat16", dict(b=2, heads=4, mlp=512), dict(rows=32, group=2, chunk=256)),
        ("float32", dict(heads=2, g=2), dict()),  # queries share keys
        ("bfloat16", dict(rows=3), dict()),  # 24 tokens, filled up to 32 rows
    ],
)
def test_equals_the_specification(dtype, shape, tiles):
    args, exact = arguments(dtype, **shape), arguments(**shape)
    if tiles.get("rows") == 64:  # sessions of one block share their modulation
        args, exact = ((*a[:4], a[4][:, :1], a[5]) for a in (args, exact))
    ours = run(args, plan_of(args, **tiles))
    assert {a.dtype.name for a in ours} == {dtype}
    assert_near(ours, jax.jit(denoise_stack)(*exact), TOLERANCE[dtype])


def test_copies_that_are_done_at_once_change_nothing():
    args = arguments(heads=2, mlp=256)
    ours = run(args, plan_of(args), dma_execution_mode="eager")
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


def test_weights_in_eight_bits():
    exact = arguments(heads=2, mlp=256)
    x, weights, *rest = exact
    args = x, quantize_stack(weights, "float32"), *rest
    assert_near(run(args, plan_of(args)), jax.jit(denoise_stack)(*exact), 3e-2)
