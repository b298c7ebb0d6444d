"""The pass that remembers: the simulated kernel writes the ring as XLA does, and waits for none of
it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_nki_stack import BASE_LAYER, SHARED, SMALLER, TRN2, WIDE, errors, model_call

from lsd_jax import ring
from lsd_jax.ops import dispatch
from lsd_jax.ops.remember import pinned_alone, remember
from nki_kernels import alone, bench, sim
from nki_kernels.backend import kernel_of
from nki_kernels.remember_ref import remember_ref
from nki_kernels.sim.errors import OutOfBoundsError
from nki_kernels.sim.timeline import schedule

SINKS = dataclasses.replace(SMALLER, sinks=2, memory=2, memory_every=2)
ODD = dataclasses.replace(SMALLER, height=384, width=368, layers=1, memory=0)  # 552 tokens


@functools.cache
def compiled(backend, config):
    def run(x, weights, kv, modulation, rope):
        bias = ring.bias(pinned_alone(kv))
        return remember(x, weights, kv, bias, modulation, rope, ring.retention(config))

    return jax.jit(run), {}


def remembered(backend, config, call):
    """What `remember` gives by a backend, and who computed what."""
    run, who = compiled(backend, config)
    x, weights, kv, _, modulation, rope = call
    with dispatch.using(backend) as chosen:
        out = run(x, weights, kv, modulation, rope)
    who.update(chosen)  # when it was traced
    return out, who


@pytest.mark.parametrize(
    ("config", "ages"),
    [
        (SMALLER, [[-1, -1, -1]]),  # cold
        (SMALLER, [[3, 1, 2]]),  # the oldest in front
        (SINKS, [[0, -1, 2, 1, 3], [0, 0, -1, 1, -1]]),  # a free sink, and none
        (ODD, [[1, 2, -1]]),
        (SHARED, [[3, 1, 2]]),
        (WIDE, [[3, 1, 2]]),
    ],
)
def test_the_ring_is_what_xla_makes_it(config, ages):
    call = model_call(config, ages)
    (ours, fine), chosen = remembered("nki-sim", config, call)
    (theirs, _), by_xla = remembered("xla", config, call)
    assert chosen == {"remember": "nki-sim"}
    assert by_xla == dict.fromkeys(("denoise_stack", "attend", "commit"), "xla")
    for name in ("age", "memory", "pinned"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    before, fresh = call[2], 0
    for name in ("k", "v"):
        mine, other, old = (np.asarray(getattr(a, name)) for a in (ours, theirs, before))
        kept = (other == old).all(axis=(0, 3, 4))  # [B, N]
        np.testing.assert_array_equal(mine[:, kept], old[:, kept])
        assert errors(mine[:, ~kept], other[:, ~kept])[1] < 2e-6
        fresh += (~kept).sum()
    assert fresh >= 2 * len(ages) * config.tokens and np.asarray(fine).all()


def test_what_is_not_finite_is_told_of_its_session():
    x, *rest = model_call(SINKS, [[0, -1, 2, 1, 3], [0, 0, -1, 1, -1]])
    call = (x.at[1, 3, 5].set(jnp.nan), *rest)
    for backend in ("nki-sim", "xla"):
        assert remembered(backend, SINKS, call)[0][1].tolist() == [True, False]


def test_what_cannot_be_written_in_place_is_left_to_xla(monkeypatch):
    """Three heads on two cores: one computes with zeros, for which the buffer has no room."""
    config = dataclasses.replace(SMALLER, heads=3, head_width=128, layers=1)
    x, weights, *rest = model_call(config, [[1, -1, 2]])
    from nki_kernels import backend, pack

    monkeypatch.setattr(backend, "_simulate", lambda shapes, *a: pytest.fail("asked to compute"))
    kv, _, modulation, rope = rest
    with pytest.raises(NotImplementedError, match="3 heads in float32 .* an even number of heads"):
        backend.remember_simulated(
            x, pack.packed(weights, 2), kv, ring.bias(pinned_alone(kv)), modulation, rope,
            ring.retention(config),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "cores", "per_kv", "head"),
    [(1, 1, 1, 128), (2, 1, 1, 128), (2, 2, 1, 128), (2, 2, 2, 128), (2, 2, 1, 256)],
)
def test_equals_its_own_reference(layers, cores, per_kv, head):
    """Two cores that act as one write their heads' columns of the same rows."""
    config = dataclasses.replace(
        SINKS, layers=layers, heads=2 * per_kv, kv_heads=2, head_width=head
    )
    shapes = bench.shapes_of(config, TRN2, cores, cores, commit=True)
    shapes = dataclasses.replace(shapes, itemsize=4, sessions=2)
    ring_shape = (layers, 2, config.keys, cores * shapes.width)
    ring = np.random.default_rng(1).standard_normal(ring_shape, np.float32)
    starts = np.int32([[config.keys - 64, 96, 64, 64]])  # one session has a sink free
    given = [*alone.arguments(shapes), ring, -ring, starts]
    ours = sim.run(kernel_of(shapes)[cores], given).outputs[0]
    for a, b in zip(ours, remember_ref(shapes, *given), strict=True):
        assert errors(a, b)[1] < 2e-6


def without(trace, name):
    """The trace less the instructions of that name."""
    kept = [i for i in trace.instructions if i.name != name]
    numbered = [dataclasses.replace(i, number=n) for n, i in enumerate(kept)]
    return dataclasses.replace(trace, instructions=numbered)


@pytest.mark.parametrize("sinks", [0, 1])
def test_nothing_waits_for_the_ring_which_drains_last(sinks):
    """Without its writes all else would end when it does. The ring is only written, and where is
    known at run time alone."""
    config = dataclasses.replace(BASE_LAYER, layers=2, height=512, sinks=sinks)  # two token tiles
    shapes = bench.shapes_of(config, TRN2, commit=True)
    trace = bench.trace(shapes, TRN2)
    stores = {i.number: i for i in trace.instructions if i.name == "store"}
    assert len(stores) == 2 * 2 * 2 * (1 + sinks)  # layers, token tiles, keys and values, places
    storages = {region.storage for store in stores.values() for region in store.writes}
    read = {region.storage for i in trace.instructions for region in i.reads}
    assert len(storages) == 2 and not storages & read
    spans = schedule([trace], TRN2)[0].spans
    all_else = max(span.end for span in spans if span.number not in stores)
    alone = max(span.end for span in schedule([without(trace, "store")], TRN2)[0].spans)
    assert all_else == pytest.approx(alone, rel=1e-3)
    assert max(spans, key=lambda span: span.end).number in stores


def test_a_place_beyond_the_buffer_is_an_error():
    config = dataclasses.replace(SMALLER, layers=1)
    shapes = bench.shapes_of(config, TRN2, commit=True)
    two = dataclasses.replace(shapes, sessions=2)
    arguments = [np.zeros(a.shape, a.dtype) for a in bench.arguments(two)]
    arguments[-1] += config.keys - config.tokens + 1
    with pytest.raises(OutOfBoundsError, match="leaves its axis"):
        sim.run(kernel_of(two), arguments)
