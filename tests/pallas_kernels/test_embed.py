"""The kernel that embeds pixels, interpreted, against the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax.ops import dispatch
from lsd_jax.ops.embed import embed
from pallas_kernels.tpu import embed as kernel
from tests.pallas_kernels import races


def example(batch, rows, columns, dtype, patch=16, controls=1, dim=128):
    rng = np.random.default_rng(0)

    def normals(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32).astype(dtype)

    shape = (batch, patch * rows, patch * columns)
    weights = normals(patch**2 * (6 + controls), dim) / 40
    pictures = normals(*shape, 3), normals(*shape, 3), normals(*shape, controls)
    return *pictures, weights, normals(rows * columns, dim)


@pytest.mark.parametrize(
    ("batch", "dtype", "controls", "tolerance"),
    [(1, "float32", 1, 1e-4), (2, "float32", 2, 1e-4), (1, "bfloat16", 0, 2e-2)],
)
def test_equals_the_specification(batch, dtype, controls, tolerance):
    given, exact = (example(batch, 3, 8, d, controls=controls, dim=256) for d in (dtype, "float32"))
    with dispatch.using("pallas-interpret") as chosen:
        ours = jax.jit(lambda *x: embed(*x))(*given)
    assert chosen == {"embed": "pallas-interpret"} and ours.dtype == dtype
    theirs = np.asarray(jax.jit(embed.reference)(*exact))
    assert np.abs(np.asarray(ours, np.float32) - theirs).max() <= tolerance * np.abs(theirs).max()


def test_bands_of_strips_are_those_of_the_picture(monkeypatch):
    """Three of them, of two strips each, of two sessions."""
    monkeypatch.setattr(kernel, "BAND", 16)
    assert kernel.strips_of(6, 8) == 2
    given = example(2, 6, 8, "float32")
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    ours = jax.jit(lambda *x: kernel.launch(*x, interpret=simulated))(*given)
    jax.block_until_ready(ours)
    assert not races.found()
    theirs = np.asarray(jax.jit(embed.reference)(*given))
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("rows", "columns", "strips"), [(8, 8, 8), (32, 32, 16), (34, 120, 2), (37, 8, 37), (37, 16, 1)]
)
def test_a_band_divides_the_picture(rows, columns, strips):
    assert kernel.strips_of(rows, columns) == strips


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(columns=4), "widths in 128 pixels, not 64"),
        (dict(patch=8), "patches of 16"),
        (dict(controls=3), "at most 8 planes, not 9"),
        (dict(dim=64), "dim in 128, not 64"),
        (dict(dim=12800), "embed: keeps .* MB in VMEM"),
    ],
)
def test_what_it_does_not_take_is_refused(changes, reason):
    inputs = example(**(dict(batch=1, rows=2, columns=8, dtype="float32") | changes))
    with pytest.raises(NotImplementedError, match=reason):
        kernel.interpreted(*inputs)
