"""The work of a frame, against the traced step and against what XLA counts in the compiled one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from lsd_jax import config as configs
from lsd_jax import stream
from lsd_jax.flops import count_flops
from lsd_jax.hw.stack import abstract_arguments, stack_of
from lsd_jax.hw.work import frame_work, stack_ops
from lsd_jax.ops import dispatch
from lsd_jax.ops.denoise_stack import denoise_stack

CASES = {
    "micro": [],
    "tiny": ["stream.passes=3", "model.sinks=2"],
    "small": ["model.width=384", "model.controls="],
    "base": ["model.head_width=64", "stream.passes=2", "stream.weight_dtype=int8"],
    "lucy_1080p": ["model.kv_heads=4"],
    "reference": ["model.kv_heads=2", "model.memory=1", "stream.weight_dtype=int8"],
}


def abstract_call(config, sessions=1):
    """Arguments of `stream.frame_step`."""
    return stream.abstract_prepared(config), *stream.abstract_inputs(config, sessions)


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_traced_step_exactly(name, sessions):
    config = configs.override(configs.load(name), CASES[name])
    ops = [op for stage in frame_work(config, sessions) for op in stage.ops]
    ours = sum(op.times * op.flops for op in ops if op.kind in ("matmul", "convolution"))
    assert ours == count_flops(stream.frame_step, *abstract_call(config, sessions))
    for op in ops:
        if op.kind == "matmul":
            assert op.flops == 2 * op.batch * op.m * op.k * op.n


@pytest.mark.parametrize(
    "assignments",
    [
        ["model.sinks=1"],
        ["model.patch=16", "stream.passes=2", "model.heads=2"],
        ["model.heads=4", "model.kv_heads=2"],
    ],
)
def test_flops_are_what_xla_counts_within_three_per_cent(assignments):
    """XLA counts the body of the loop over layers once, and so do we here."""
    config = configs.override(configs.load("micro"), ["model.layers=2", *assignments])
    arguments = abstract_call(config)
    counted = jax.jit(stream.frame_step, donate_argnums=1).lower(*arguments).compile()
    counted = counted.cost_analysis()
    once = [replace(s, ops=tuple(replace(op, times=1) for op in s.ops)) for s in frame_work(config)]
    assert sum(stage.flops for stage in once) == pytest.approx(counted["flops"], rel=0.03)
    assert sum(stage.transcendentals for stage in once) == pytest.approx(
        counted["transcendentals"], rel=0.06
    )
    touched = sum(op.bytes for stage in once for op in stage.ops if op.kind != "host")
    assert 0.6 < touched / counted["bytes accessed"] < 1.1  # XLA also counts what stays in caches


def test_layers_apart_are_what_xla_counts_on_a_cpu():
    config = configs.override(configs.load("micro"), ["model.layers=2"])
    with dispatch.using("xla-unrolled"):
        arguments = stream.abstract_adapted(config), *stream.abstract_inputs(config, 1)
        counted = jax.jit(stream.frame_step, donate_argnums=1).lower(*arguments).compile()
    ops = [
        op
        for stage in frame_work(config)
        for op in (stack_ops(stage.stack, apart=True) if stage.stack else stage.ops)
    ]
    ours = sum(op.times * op.flops for op in ops)
    assert ours == pytest.approx(counted.cost_analysis()["flops"], rel=0.03)


def test_abstract_arguments_are_those_that_the_op_takes():
    shape = stack_of(configs.load("tiny").model, "bfloat16", sessions=2)
    x, k, v = jax.eval_shape(denoise_stack, *abstract_arguments(shape))
    assert x.shape == (2, 64, 256) and x.dtype == jnp.bfloat16
    assert k.shape == v.shape == (6, 2, 64, 2, 128)


def test_what_commits_a_frame_sees_the_pinned_tokens_alone():
    model = configs.load("tiny").model
    assert stack_of(model, "float32", commit=True).keys == model.pinned
    assert stack_of(model, "float32").keys == model.keys
