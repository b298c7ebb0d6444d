"""`denoise_stack` against plain NumPy in float64, session by session and head by head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsd_jax import ring
from lsd_jax.layers import rope_table
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.types import KVBuffer, StackWeights

run = jax.jit(denoise_stack)


def example(seed=0, b=2, rows=2, columns=3, layers=2, heads=2, k=8, mlp=20, p=5, slots=3, g=1):
    """Arguments with cold slots, sinks and invalid pins, of float32 NumPy; `g` query heads share
    each of `heads`."""
    rng = np.random.default_rng(seed)

    def normals(*shape, scale=1.0):
        return rng.standard_normal(shape).astype(np.float32) * np.float32(scale)

    d, t, window = g * heads * k, rows * columns, max(slots, 1)
    weights = StackWeights(
        qkv=normals(layers, d, g + 2, heads, k, scale=d**-0.5),
        q_scale=1 + normals(layers, k, scale=0.3),
        k_scale=1 + normals(layers, k, scale=0.3),
        out=normals(layers, heads, g * k, d, scale=d**-0.5),
        up=normals(layers, d, mlp, scale=d**-0.5),
        down=normals(layers, mlp, d, scale=mlp**-0.5),
        age_k=normals(layers, window + 1, heads, k),
        age_v=normals(layers, window + 1, heads, k),
    )
    n = p + slots * t
    kv = KVBuffer(
        k=normals(layers, b, n, heads, k),
        v=normals(layers, b, n, heads, k),
        pinned=rng.random((b, p)) < 0.7,
        age=rng.integers(-1, window + 1, (b, slots), dtype=np.int32),
        memory=np.zeros((b, 0), np.int32),
    )
    modulation = normals(layers, b, 6, d, scale=0.5)
    return jax.tree.map(
        jnp.asarray, (normals(b, t, d), weights, kv, modulation, rope_table(rows, columns, k))
    )


def call(x, weights, kv, modulation, rope):
    return run(x, weights, kv, ring.bias(kv), modulation, rope)


def reference(x, weights, kv, modulation, rope):
    """The docstring, in float64 loops."""
    x, weights, kv, modulation, rope = jax.tree.map(
        lambda a: np.asarray(a).astype(np.float64 if a.dtype == np.float32 else a.dtype),
        (x, weights, kv, modulation, rope),
    )
    layers, _, parts, heads, k_dim = weights.qkv.shape
    tokens = x.shape[1]

    def norm(a):
        return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6)

    def turn(a):
        low, high = a[:, : k_dim // 2], a[:, k_dim // 2 :]
        return np.concatenate(
            [low * rope.cos - high * rope.sin, high * rope.cos + low * rope.sin], axis=1
        )

    ks = np.zeros((layers, *x.shape[:2], heads, k_dim))
    vs, out = np.zeros_like(ks), np.zeros_like(x)
    for b in range(x.shape[0]):
        y = x[b]
        for i in range(layers):
            m = modulation[i, min(b, modulation.shape[1] - 1)]
            h = norm(y) * (1 + m[1]) + m[0]
            total = np.zeros_like(y)
            for head in range(heads):
                *queries, k, v = (h @ weights.qkv[i, :, c, head] for c in range(parts))
                k = turn(norm(k) * weights.k_scale[i])
                ks[i, b, :, head], vs[i, b, :, head] = k, v
                keys, values = [], []
                for n in range(kv.k.shape[2]):
                    slot, pinned = divmod(n - kv.pinned.shape[1], tokens)[0], kv.pinned.shape[1]
                    if n < pinned:
                        if kv.pinned[b, n]:
                            keys.append(kv.k[i, b, n, head])
                            values.append(kv.v[i, b, n, head])
                    elif (age := kv.age[b, slot]) >= 0:
                        keys.append(kv.k[i, b, n, head] + weights.age_k[i, age, head])
                        values.append(kv.v[i, b, n, head] + weights.age_v[i, age, head])
                keys, values = np.array([*keys, *k]), np.array([*values, *v])
                for q, out_rows in zip(
                    queries, np.split(weights.out[i, head], parts - 2), strict=True
                ):
                    logits = turn(norm(q) * weights.q_scale[i]) @ keys.T / np.sqrt(k_dim)
                    share = np.exp(logits - logits.max(-1, keepdims=True))
                    total += (share / share.sum(-1, keepdims=True)) @ values @ out_rows
            y = y + m[2] * total
            h = (norm(y) * (1 + m[4]) + m[3]) @ weights.up[i]
            gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            y = y + m[5] * (gelu @ weights.down[i])
        out[b] = y
    return out, ks, vs


def assert_close(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("g", [1, 3])
def test_equals_the_reference(g):
    args = example(g=g)
    assert_close(call(*args), reference(*args), 1e-4)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.integers(0, 99), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 2), st.sampled_from([4, 12]), st.integers(0, 3), st.integers(0, 3),
    st.integers(1, 3),
)  # fmt: skip
def test_equals_the_reference_at_odd_shapes(seed, b, rows, columns, heads, k, p, slots, g):
    args = example(seed, b, rows, columns, 1, heads, k, 7, p, slots, g)
    assert_close(call(*args), reference(*args), 2e-4)


def test_one_row_of_modulation_serves_all_sessions():
    x, weights, kv, modulation, rope = example()
    one = x, weights, kv, modulation[:, :1], rope
    assert_close(call(*one), reference(*one), 1e-4)


@pytest.mark.parametrize("garbage", [1e4, -3e4])
def test_what_is_cold_or_invalid_has_no_influence(garbage):
    x, weights, kv, modulation, rope = example(slots=4)
    assert np.any(kv.age == ring.EMPTY) and not np.all(kv.pinned)
    cold = (ring.bias(kv) != 0)[None, :, :, None, None]
    dirty = dataclasses.replace(
        kv, k=jnp.where(cold, garbage, kv.k), v=jnp.where(cold, garbage, kv.v)
    )
    clean = call(x, weights, kv, modulation, rope)
    for a, b in zip(clean, call(x, weights, dirty, modulation, rope), strict=True):
        np.testing.assert_array_equal(a, b)
    cleared = dataclasses.replace(kv, age=jnp.full_like(kv.age, ring.EMPTY))
    assert np.any(clean[0] != call(x, weights, cleared, modulation, rope)[0])


def test_the_order_of_slots_is_free():
    x, weights, kv, modulation, rope = example(slots=4, p=5)
    order, tokens = np.array([2, 0, 3, 1]), x.shape[1]
    keys = np.concatenate([np.arange(5), *(5 + s * tokens + np.arange(tokens) for s in order)])
    moved = KVBuffer(kv.k[:, :, keys], kv.v[:, :, keys], kv.pinned, kv.age[:, order], kv.memory)
    ours = call(x, weights, moved, modulation, rope)
    for a, b in zip(ours, call(x, weights, kv, modulation, rope), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    stuck = dataclasses.replace(moved, age=kv.age)  # keys moved, ages not
    assert np.abs(call(x, weights, stuck, modulation, rope)[0] - ours[0]).max() > 1e-3


def test_bfloat16_stays_near_the_reference():
    args = example()
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, args)
    ours, theirs = call(*half), reference(*jax.tree.map(jnp.asarray, args))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.asarray(a, np.float64) - b
        assert np.sqrt(np.mean(error**2) / np.mean(b**2)) < 0.03
