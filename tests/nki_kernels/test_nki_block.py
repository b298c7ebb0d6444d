"""A block of two heads and 128 tokens, as publications of such kernels have it: near float32, and
in the time that a separate, simpler timing of one gave."""

import numpy as np
import pytest

from lsd_jax.hw import chips
from nki_kernels import alone, bench
from nki_kernels.plan import Shapes
from nki_kernels.sim.timeline import schedule

TRN2 = chips.load("trn2")
BLOCK = Shapes(
    layers=1, sessions=1, tokens=128, dim=256, heads=2, mlp=1024, ageless=0, slots=3, ages=4
)


def test_it_is_near_float32_with_one_slot_cold():
    given = alone.arguments(BLOCK)
    cold = (given[4] < -1e8).all(axis=(0, 1))
    assert cold.tolist() == [False, False, True]
    found = alone.run(BLOCK, given, simulate=True)
    _, most, relative = next(alone.differences(BLOCK, given, found))
    assert 0 < most <= 1e-2 and 0 < relative <= 2e-3
    given[2][:, :, -128:] = 9.0  # keys of the cold slot
    other = alone.run(BLOCK, given, simulate=True)
    np.testing.assert_array_equal(found[0], other[0])


def test_its_modelled_time_is_that_of_a_separate_timing():
    us = schedule([bench.trace(BLOCK, TRN2)], TRN2)[0].total_ns / 1e3
    assert us == pytest.approx(37.4, rel=0.2)
