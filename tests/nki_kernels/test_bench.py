"""The floor of `lsd bench stack` belongs to the work, not to the plan."""

import dataclasses

import jax
import pytest

from lsd_jax.config import load
from lsd_jax.hw import chips
from lsd_jax.hw.stack import abstract_arguments, least_bytes, least_macs, stack_of
from nki_kernels import bench, pack

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


@pytest.mark.parametrize(
    ("name", "ranks", "cores", "weight_dtype", "commit"),
    [
        ("tiny", 1, 1, "", False), ("tiny", 1, 1, "float8_e4m3", True), ("base", 2, 2, "", False),
        ("base", 4, 1, "", True), ("lucy_1080p", 16, 1, "float8_e4m3", False),
    ],
)  # fmt: skip
def test_a_trace_is_of_the_arguments_that_are_packed(name, ranks, cores, weight_dtype, commit):
    model = load(name).model
    shapes = bench.shapes_of(model, TRN2, ranks, cores, weight_dtype, commit)
    whole = dataclasses.replace(shapes.stack, heads=shapes.heads * shapes.cores)
    x, weights, *rest = abstract_arguments(whole)
    x, *packed = jax.eval_shape(lambda *a: pack.pack_call(*a, shapes=shapes), x, weights, *rest)
    mine = bench.arguments(shapes)
    blocks = (shapes.cores, shapes.layers, shapes.first_block["end"], 128, shapes.block)
    assert (mine[1].shape, mine[1].dtype) == (blocks, weights.up.dtype)
    theirs = [x, weights.up.update(shape=blocks), *packed]
    if commit:
        layers, sessions, _, width = mine[2].shape
        assert {a.shape for a in mine[-3:-1]} == {(layers, sessions, model.keys, width)}
        assert mine[-1].shape == (1, shapes.places) and mine[-1].dtype == "int32"
    assert len(mine) == len(theirs) + 3 * commit
    for ours, other in zip(mine, theirs, strict=False):
        assert (ours.shape, ours.dtype) == (other.shape, other.dtype)
