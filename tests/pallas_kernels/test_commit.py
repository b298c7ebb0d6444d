"""The commit kernel, interpreted, against the specification: ages and bytes, frame after frame."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax import ring
from lsd_jax.config import ModelConfig
from lsd_jax.ops import commit as op
from lsd_jax.ops import dispatch
from pallas_kernels.tpu import commit as kernel
from tests.pallas_kernels import races


def model(**changes) -> ModelConfig:
    shape = dict(
        height=128, width=64, patch=8, dim=128, layers=2, heads=2, head_width=128, window=2,
        prompt_tokens=8, reference_tokens=8, memory_every=2,
    )  # fmt: skip
    return ModelConfig(**(shape | changes))


def normals(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def begin(config, batch, dtype):
    """Full of what must not be touched; no session has the ages of another."""
    kv = ring.empty(config, batch, dtype)
    age = np.array(kv.age)
    age[-1, config.sinks :] = np.arange(config.window)[::-1] + 1
    filled = {"k": normals(1, kv.k.shape, dtype), "v": normals(2, kv.v.shape, dtype)}
    return dataclasses.replace(kv, age=jnp.asarray(age), **filled)


@pytest.mark.parametrize(
    ("batch", "dtype", "changes"),
    [
        (1, "bfloat16", dict(memory=3, sinks=1)),
        (2, "float32", dict(memory=1, window=3)),
        (3, "float32", dict(sinks=2)),
    ],
)
def test_equals_the_specification(batch, dtype, changes):
    config = model(**changes)
    periods = tuple(config.memory_period(slot) for slot in range(config.memory))
    retention = op.Retention(config.sinks, periods, config.grid)
    simulated = pltpu.InterpretParams(detect_races=True)
    run = jax.jit(lambda kv, k, v: kernel.launch(kv, k, v, retention, interpret=simulated))
    exact = jax.jit(lambda kv, k, v: op.commit(kv, k, v, retention))
    ours = theirs = begin(config, batch, dtype)
    shape = (config.layers, batch, config.tokens, config.heads, config.head_dim)
    renewed = 0
    for frame in range(12):
        k, v = (normals(10 * frame + i, shape, dtype) for i in (3, 4))
        ours, theirs = run(ours, k, v), exact(theirs, k, v)
        jax.block_until_ready(ours)
        assert not races.found()
        np.testing.assert_array_equal(ours.age, theirs.age)
        np.testing.assert_array_equal(ours.memory, theirs.memory)
        np.testing.assert_array_equal(ours.pinned, theirs.pinned)
        renewed += int((theirs.memory == 0).sum())
        for a, b in ((ours.k, theirs.k), (ours.v, theirs.v)):
            assert a.dtype == b.dtype
            a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
            at = config.keys - config.slots * config.tokens
            np.testing.assert_array_equal(a[:, :, at:], b[:, :, at:])
            np.testing.assert_array_equal(a[:, :, : config.pinned], b[:, :, : config.pinned])
            np.testing.assert_allclose(a, b, rtol=1e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6)
    assert (renewed > 6) == bool(config.memory)


def test_a_stream_around_a_ring_of_sinks_and_window():
    """By the seam, as a stream calls it."""
    config = model(sinks=1, layers=1)
    kv = exact = ring.empty(config, 1, jnp.float32)
    shape = (1, 1, config.tokens, config.heads, config.head_dim)
    with dispatch.using("pallas-interpret") as chosen:
        step = jax.jit(lambda kv, x: ring.commit(kv, x, -x, config))
        for frame in range(5):
            kv = step(kv, jnp.full(shape, 1.0 + frame))
    assert chosen == {"commit": "pallas-interpret"}
    for frame in range(5):
        exact = ring.commit(exact, *[jnp.full(shape, s * (1.0 + frame)) for s in (1, -1)], config)
    jax.tree.map(np.testing.assert_array_equal, kv, exact)
    assert sorted(np.unique(kv.k[0, 0, config.pinned :])) == [1, 4, 5]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(head_width=64), "head_dim=64 is no multiple of 128"),
        (dict(height=16, memory=1), "tokens of a memory slot=4 is no multiple of 8"),
        (dict(prompt_tokens=3), "pinned=11 is no multiple of 8"),
    ],
)
def test_what_it_does_not_take_is_refused(changes, reason):
    config = model(**changes)
    kv = ring.empty(config, 1, jnp.float32)
    new = jnp.zeros((config.layers, 1, config.tokens, config.heads, config.head_dim))
    periods = tuple(config.memory_period(slot) for slot in range(config.memory))
    with pytest.raises(NotImplementedError, match=reason):
        kernel.interpreted(kv, new, new, op.Retention(config.sinks, periods, config.grid))


def test_pooling_takes_means_of_squares():
    tokens = np.arange(24.0)
    means = tokens.reshape(2, 2, 3, 2).mean((1, 3)).ravel()
    np.testing.assert_allclose(kernel.pooling((4, 6)) @ tokens, means)
