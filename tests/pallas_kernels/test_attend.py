"""Fused attention and its gradients, interpreted, against the specification in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lsd_jax import ring, sharding
from lsd_jax.ops import dispatch
from lsd_jax.ops.attend import attend
from lsd_jax.ops.denoise_stack import denoise_stack
from pallas_kernels.tpu import attend as kernel
from pallas_kernels.tpu import flash
from pallas_kernels.tpu.flash import Tiles
from tests.ops import test_denoise_stack as stack
from tests.pallas_kernels import races

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
HIDDEN = -1e9


def example(batch, queries, keys, biased, heads, dtype, like_keys=0.0, k_dim=128):
    """Queries, keys, values, what a loss says of the result, and a bias that hides half."""
    rng = np.random.default_rng(0)

    def normals(rows):
        return jnp.asarray(rng.standard_normal((batch, rows, heads, k_dim)), jnp.float32)

    arrays = normals(queries), normals(keys), normals(keys), normals(queries)
    if like_keys:
        arrays = like_keys * arrays[1][:, :queries], *arrays[1:]
    bias = np.where(rng.random((batch, biased)) < 0.5, HIDDEN, 0).astype(np.float32)
    return tuple(x.astype(dtype) for x in arrays), jnp.asarray(bias)


def by(backend, bias, gradients=True):
    """The result, and the gradients of all three, as a function of these and the loss's."""

    def run(q, k, v, given):
        with dispatch.using(backend, gradients) as chosen:
            out, back = jax.vjp(lambda q, k, v: attend(q, k, v, bias), q, k, v)
        assert chosen == {"attend": backend}
        return out, *back(given)

    return jax.jit(run)


def assert_near(ours, exact, dtype):
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, exact, strict=True):
        assert a.dtype == dtype
        worst = np.abs(np.asarray(a, np.float32) - b).max() / np.abs(b).max()
        assert worst <= TOLERANCE[dtype], name


def check(dtype, *sizes, **changes):
    arrays, bias = example(*sizes, dtype, **changes)
    exact, _ = example(*sizes, "float32", **changes)
    ours = by("pallas-interpret", bias)(*arrays)
    assert_near(ours, [np.asarray(x) for x in by("xla", bias)(*exact)], dtype)
    return ours, bias


@pytest.mark.parametrize(
    ("dtype", "batch", "queries", "keys", "biased", "heads"),
    [("float32", 3, 24, 57, 33, 1), ("bfloat16", 1, 40, 130, 90, 2), ("bfloat16", 4, 16, 16, 0, 1)],
)
def test_values_and_gradients_are_those_of_the_specification(
    dtype, batch, queries, keys, biased, heads
):
    check(dtype, batch, queries, keys, biased, heads)


@pytest.mark.parametrize("keys", [300, 500])
def test_several_blocks_of_queries_and_chunks_of_keys(keys, monkeypatch):
    """Three chunks one by one, four by twos; nothing races, nothing is read before it is there."""
    whole = kernel.alone
    monkeypatch.setattr(flash, "TOGETHER", 2)
    monkeypatch.setattr(flash, "TOGETHER_BACK", 2)
    monkeypatch.setattr(flash, "BLOCKS", (128,))
    monkeypatch.setattr(flash, "CHUNKS", (128,))
    monkeypatch.setattr(flash, "ONE_CHUNK", 0)
    strict = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    monkeypatch.setattr(kernel, "alone", lambda *a: whole(*a[:-1], strict))
    (_, _, d_k, d_v), bias = check("float32", 1, 200, keys, 200, 2)
    assert not races.found()
    cold = np.asarray(bias[0] < 0)
    for gradient in (d_k, d_v):
        assert not np.any(np.asarray(gradient)[0, :200][cold])
        assert np.all(np.any(np.asarray(gradient)[0, :200][~cold], axis=-1))


def test_large_logits_do_not_overflow():
    """Of queries like keys, more than 2^128."""
    (q, *_), _ = example(1, 24, 57, 33, 1, "float32", like_keys=9.0)
    lengths = jnp.linalg.norm(q[0, :, 0], axis=-1)
    assert jnp.max(lengths**2) / 9 * 128**-0.5 * flash.LOG2_E > 140
    assert flash.shift(flash.scaled(q[0, :, 0]), jnp.full((1, 1), 12.0)) > 40
    check("float32", 1, 24, 57, 33, 1, like_keys=9.0)


def test_what_a_hidden_key_holds_has_no_influence():
    (q, k, v, given), bias = example(1, 24, 57, 33, 1, "float32")
    dirty = jnp.where(jnp.pad(bias, ((0, 0), (0, 24)))[:, :, None, None] < 0, 3e4, k)
    run = by("pallas-interpret", bias)
    for clean, other in zip(run(q, k, v, given), run(q, dirty, v, given), strict=True):
        np.testing.assert_array_equal(clean, other)


@pytest.mark.parametrize(("dtype", "shared"), [("float32", 2), ("bfloat16", 1)])
def test_blocks_train_by_it_as_by_the_specification(dtype, shared):
    """With cold slots, an odd number of them, ages, and query heads that share keys."""
    args = stack.example(b=2, rows=4, columns=5, layers=1, heads=1, k=128, slots=3, g=shared)
    kv = dataclasses.replace(args[2], age=args[2].age.at[0, 1].set(ring.EMPTY))
    bias = ring.bias(kv)

    def run(backend, dtype):
        def cast(tree):
            return jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, tree)

        def loss(x, weights, kv, modulation):
            out, k, v = denoise_stack(x, weights, kv, bias, modulation, args[4])
            return sum(jnp.sum(jnp.sin(a.astype(jnp.float32))) for a in (out, k, v))

        x, weights, _, modulation = args[:4]

        def step(x, weights, keys, values, modulation):
            whole = dataclasses.replace(kv, k=keys, v=values)
            with dispatch.using(backend, gradients=True) as chosen:
                found = jax.grad(lambda *a: loss(*a), (0, 1, 3))(x, weights, whole, modulation)
            assert chosen == {"denoise_stack": "xla", "attend": backend}
            return found

        return jax.jit(step)(*map(cast, (x, weights, kv.k, kv.v, modulation)))

    ours, exact = run("pallas-interpret", dtype), run("xla", "float32")
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        error = np.sqrt(np.mean((np.asarray(a, np.float32) - b) ** 2) / np.mean(np.square(b)))
        assert error <= (1e-4 if dtype == "float32" else 4e-2)


@pytest.mark.multidevice
def test_devices_share_rows_and_heads():
    mesh = sharding.make_mesh(2, 1, 2, jax.devices()[:4])
    arrays, bias = example(2, 16, 40, 24, 2, "float32")

    def run(q, k, v, given):
        with dispatch.using("pallas-interpret", gradients=True, mesh=mesh):
            out, back = jax.vjp(lambda q, k, v: attend(q, k, v, bias), q, k, v)
        return out, *back(given)

    place = jax.NamedSharding(mesh, sharding.BATCH)
    ours = jax.jit(run, in_shardings=place)(*arrays)
    assert_near(ours, [np.asarray(x) for x in by("xla", bias)(*arrays)], "float32")
    odd, other = example(3, 16, 40, 24, 2, "float32")
    with dispatch.using("pallas-interpret", mesh=mesh):
        with pytest.raises(NotImplementedError, match="3 rows do not split over 2 devices"):
            attend(*odd[:3], other)


def test_what_it_does_not_take_is_refused():
    def refuses(reason, room=100 << 20, **changes):
        sizes = dict(batch=1, queries=256, keys=512, biased=256, heads=1, dtype="bfloat16")
        (q, k, v, _), bias = jax.eval_shape(lambda: example(**(sizes | changes)))
        with pytest.raises(NotImplementedError, match=reason):
            jax.eval_shape(lambda *a: kernel.over_devices(*a, room), q, k, v, bias)

    refuses("heads of a multiple of 128 features, not 64; use xla", k_dim=64)
    refuses("takes bfloat16 or float32, not float16", dtype="float16")
    refuses("keeps a head's 512 keys in VMEM, .* MB of 8; use a smaller window", room=8 << 20)


def test_where_it_does_not_gain_it_leaves_attention_to_xla(monkeypatch):
    """On a CPU, and of few queries on a TPU."""
    (q, k, v, _), bias = jax.eval_shape(lambda: example(1, 64, 320, 256, 2, "bfloat16"))
    answers = attend.explain(q, k, v, bias)
    assert answers["pallas"].startswith("refuses: runs on tpu7x, v5e, v5p, v6e, and this is 'cpu'")
    assert answers["xla"] == "chosen" and answers["pallas-interpret"] == "could serve"
    with dispatch.using("pallas"), pytest.raises(NotImplementedError, match="this is 'cpu'"):
        jax.eval_shape(attend, q, k, v, bias)
    monkeypatch.setattr(kernel, "chip_here", lambda: kernel_chip("v6e"))
    assert "64 queries leave a tile of 128" in attend.explain(q, k, v, bias)["pallas"]

    def of(batch, gradients=False):
        arrays, bias = jax.eval_shape(lambda: example(batch, 512, 1024, 512, 2, "bfloat16"))
        with dispatch.using("auto", gradients):
            return attend.explain(*arrays[:3], bias)["pallas"]

    assert "33.6 MB of logits fit into VMEM, where XLA is as fast" in of(8)
    assert of(24) == of(8, gradients=True) == "chosen"


def kernel_chip(name):
    from lsd_jax.hw import chips

    return chips.load(name)


@pytest.mark.parametrize(
    ("queries", "keys", "tiles"),
    [
        (1024, 6400, (512, 640, 1024, 6400)),  # base
        (2040, 10712, (512, 768, 2048, 10752)),  # lucy_1080p
        (256, 1408, (256, 1408, 256, 1408)),  # reference
        (1, 1, (128, 128, 128, 128)),
    ],
)
def test_tiles_waste_little_and_are_large(queries, keys, tiles):
    found = Tiles.of(queries, keys, 128, "bfloat16")
    assert (found.queries, found.keys, found.all_queries, found.all_keys) == tiles
    assert found.forward_bytes < found.backward_bytes < 64 << 20
