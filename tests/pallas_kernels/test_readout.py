"""The read-out kernel, interpreted, against the specification."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax.config import ModelConfig
from lsd_jax.ops import dispatch
from lsd_jax.ops import readout as op
from lsd_jax.readout import Readout
from pallas_kernels.tpu import detail
from pallas_kernels.tpu import readout as kernel
from tests.pallas_kernels import races


def example(batch, height, width, dtype, **changes):
    """A read-out with weights large enough that each part of it shows, and what it is given."""
    config = ModelConfig(height=height, width=width, dim=128, heads=1, detail_dim=24, **changes)
    model = Readout(config, 3, jax.random.key(0))
    rng = np.random.default_rng(0)

    def normals(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

    model = jax.tree.map(lambda x: (3 * x).astype(dtype), model)
    shape = (batch, height, width)
    inputs = normals(batch, config.tokens, 128), normals(*shape, 3), normals(*shape, 3)
    return model, (*inputs, normals(*shape, len(config.controls)))


@functools.cache
def specified(batch, height, width):
    model, inputs = example(batch, height, width, "float32")
    return np.asarray(jax.jit(lambda *x: model(*x))(*inputs))


@pytest.mark.parametrize(
    ("batch", "height", "width", "dtype", "tolerance"),
    [
        (1, 16, 256, "float32", 1e-4),
        (2, 32, 128, "bfloat16", 2e-2),
    ],
)
def test_equals_the_specification(batch, height, width, dtype, tolerance):
    model, inputs = example(batch, height, width, dtype)
    with dispatch.using("pallas-interpret") as chosen:
        ours = jax.jit(lambda *x: model(*x))(*inputs)
    assert chosen == {"readout": "pallas-interpret"} and ours.dtype == dtype
    theirs = specified(batch, height, width)
    assert np.abs(np.asarray(ours, np.float32) - theirs).max() <= tolerance * np.abs(theirs).max()


def apart(batch: int, strips: int) -> np.ndarray:
    """How far the kernel is from the specification, over its largest value, in each strip of a
    picture, in any session. Memory that nothing has written is no number."""
    model, inputs = example(batch, 16 * strips, 128, "float32")
    names = (field.name for field in dataclasses.fields(op.ReadoutWeights))
    weights = op.ReadoutWeights(**{name: getattr(model, name)[...] for name in names})
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    run = functools.partial(kernel.launch, interpret=simulated)
    ours = jax.jit(lambda *x: run(*x, weights, op.Sizes(16, 2, 8)))(*inputs)
    jax.block_until_ready(ours)
    assert not races.found()
    theirs = specified(batch, 16 * strips, 128)
    far = np.abs(np.asarray(ours) - theirs).reshape(batch, strips, -1).max((0, 2))
    return np.nan_to_num(far, nan=np.inf) / np.abs(theirs).max()


def test_strips_join_without_a_seam():
    """More of them than are kept, an odd number, and a second session over what the first left."""
    assert apart(2, 5).max() <= 1e-4


def test_a_kernel_that_ignores_the_strips_beside_is_caught(monkeypatch):
    """In cells, squares and features in one strip each, and in tokens in the last."""
    surrounded, neighbours = detail.surrounded, detail.neighbours
    asked = iter(["cells"] * 3 + ["squares"] * 3 + ["features"] * 3)
    alone = {"cells": 0, "squares": 2, "features": 4}

    def without(held, r, columns):
        found = surrounded(held, r, columns)
        return jnp.where(r == alone[next(asked)], found.at[0].set(0).at[-1].set(0), found)

    monkeypatch.setattr(detail, "surrounded", without)
    monkeypatch.setattr(
        detail, "neighbours", lambda r, n: [jnp.where(r == 6, r, k) for k in neighbours(r, n)]
    )
    assert (apart(1, 7)[::2] > 1e-3).all()
    assert next(asked, None) is None


def test_a_kernel_that_keeps_a_strip_too_few_is_caught(monkeypatch):
    for module in (kernel, detail):
        monkeypatch.setattr(module, "RING", 3)
    assert apart(1, 5).max() > 1e-3


def test_a_kernel_that_finds_something_below_the_picture_is_caught(monkeypatch):
    monkeypatch.setattr(detail, "blank", lambda *_: None)
    far = apart(1, 5)
    assert far[-1] > 1e-3 and far[:-1].max() <= 1e-4


@pytest.mark.parametrize(
    ("width", "changes", "reason"),
    [
        (64, {}, "widths in 128 pixels, not 64"),
        (128, dict(patch=8), "takes patches of 16"),
        (128, dict(controls=()), "one control, not 0"),
        (
            8192,
            {},
            "readout: keeps .* MB in VMEM, of 126 MB; use a narrower picture, or backend xla",
        ),
    ],
)
def test_what_it_does_not_take_is_refused(width, changes, reason, monkeypatch):
    model, inputs = example(1, 32, width, "float32", **changes)
    monkeypatch.setattr(op.readout, "minor", False)  # else it is left to the reference
    with dispatch.using("pallas-interpret"), pytest.raises(NotImplementedError, match=reason):
        model(*inputs)
