"""The floor of `lsd bench stack` belongs to the work, not to the plan."""

import dataclasses

import pytest

from lsd_jax.config import load
from lsd_jax.hw import chips
from lsd_jax.hw.stack import least_bytes, least_macs, stack_of
from nki_kernels import bench

TRN2 = chips.load("trn2")


def test_the_floor_does_not_count_what_a_plan_reads_again():
    tiny = load("tiny")
    model = dataclasses.replace(tiny.model, height=384, width=384, layers=1)  # two token tiles
    shapes = bench.shapes_of(model, TRN2)
    moved = sum(i.transfer.hbm_bytes for i in bench.trace(shapes, TRN2).instructions if i.transfer)
    assert least_bytes(shapes.stack) < 0.8 * moved
    slow_memory = TRN2.with_numbers({
        "hbm_bandwidth": dataclasses.replace(TRN2.numbers["hbm_bandwidth"], value=1e9),
    })  # fmt: skip
    row = bench.rows(dataclasses.replace(tiny, model=model), slow_memory)[0]
    assert row["floor_us"] == pytest.approx(least_bytes(shapes.stack) / 1e3)


def test_a_generation_without_eight_bits_at_twice_the_rate_is_a_refusal():
    tiny = load("tiny")
    eight = dataclasses.replace(tiny.stream, weight_dtype="float8_e4m3")
    trn1 = chips.load("trn1").with_numbers({
        "sbuf_bytes_per_partition": TRN2.numbers["sbuf_bytes_per_partition"],
    })  # fmt: skip
    row = bench.rows(dataclasses.replace(tiny, stream=eight), trn1)[0]
    assert "double_row needs generation 3" in row["refused"]


@pytest.mark.parametrize("name", ["reference", "base"])
def test_the_floor_is_that_of_a_tpu(name):
    config = load(name)
    ours, theirs = bench.shapes_of(config.model, TRN2), stack_of(config.model, "bfloat16")
    assert least_bytes(ours.stack) == least_bytes(theirs)
    assert least_macs(ours.stack) == least_macs(theirs)
