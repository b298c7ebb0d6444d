"""The denoiser's parts: what depends on what, and that its shapes follow the config alone."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsd_jax import ring, stream
from lsd_jax.conditioning import ask as ask_for
from lsd_jax.config import Config, ModelConfig
from lsd_jax.model import Denoiser, abstract_model, abstract_params, build, cast
from lsd_jax.types import Conditioning
from tests.marks import slow


def normals(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def planes(b=1, seed=0):
    """Input, latent and control planes."""
    return (
        normals(b, 32, 32, 3, seed=seed),
        normals(b, 32, 32, 3, seed=seed + 1),
        normals(b, 32, 32, 1, seed=seed + 2),
    )


def full_buffer(config, b=1, seed=5):
    kv = ring.empty(config, b, jnp.float32)
    return dataclasses.replace(
        kv,
        k=normals(*kv.k.shape, seed=seed),
        v=normals(*kv.v.shape, seed=seed + 1),
        pinned=jnp.ones_like(kv.pinned),
        age=jnp.tile(jnp.array([0, 1, 2, 3], jnp.int32), (b, 1)),
    )


@pytest.fixture(scope="module")
def run(small_model):
    """`denoise` and `remember` at one noise level, each compiled once."""

    @jax.jit
    def denoise(source, latent, controls, kv, t):
        modulation = small_model.modulation(t, jnp.zeros_like(t), jnp.ones_like(t))
        return small_model.denoise(source, latent, controls, kv, modulation)

    @jax.jit
    def remember(source, latent, controls, kv, level):
        modulation = small_model.modulation(jnp.ones_like(level), level, jnp.zeros_like(level))
        return small_model.remember(source, latent, controls, kv, modulation)

    return denoise, remember


def test_memory_of_a_frame_ignores_other_frames(run, small_config):
    """So that nothing in the ring ever needs recomputing."""
    denoise, remember = run
    one, other = full_buffer(small_config.model), full_buffer(small_config.model, seed=8)
    pinned, zero = small_config.model.pinned, jnp.zeros(1)
    other = dataclasses.replace(
        other,
        k=other.k.at[:, :, :pinned].set(one.k[:, :, :pinned]),
        v=other.v.at[:, :, :pinned].set(one.v[:, :, :pinned]),
        age=jnp.flip(one.age),
    )
    for a, b in zip(*(remember(*planes(), kv, zero) for kv in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)
    repinned = dataclasses.replace(one, v=one.v + 1)
    assert np.any(remember(*planes(), repinned, zero)[1] != remember(*planes(), one, zero)[1])
    pictures = [denoise(*planes(), kv, zero) for kv in (one, other)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1e-4


def test_every_plane_and_level_matters(run, small_config):
    denoise, remember = run
    kv, zero = full_buffer(small_config.model), jnp.zeros(1)
    expected = denoise(*planes(), kv, zero)
    assert expected.shape == (1, 32, 32, 3) and np.all(np.isfinite(expected))
    for i in range(3):
        changed = list(planes())
        changed[i] = changed[i] + 1
        assert np.abs(denoise(*changed, kv, zero) - expected).max() > 1e-3
    assert np.abs(denoise(*planes(), kv, zero + 0.5) - expected).max() > 1e-4
    k, _ = remember(*planes(), kv, zero)
    assert np.abs(remember(*planes(), kv, zero + 0.5)[0] - k).max() > 1e-4


def test_stored_keys_have_bounded_length(run, small_config):
    """QK-norm, by which a kernel may skip the running maximum."""
    k, _ = run[1](*planes(), full_buffer(small_config.model), jnp.zeros(1))
    lengths = np.linalg.norm(k, axis=-1)
    np.testing.assert_allclose(lengths, small_config.model.head_dim**0.5, rtol=1e-3)


def ask(texts, reference=None, has_reference=False, length=128):
    prompt = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(prompt, texts, strict=True):
        row[: len(text)] = np.frombuffer(text.encode(), np.uint8)
    if reference is None:
        reference = np.zeros((len(texts), 32, 32, 3), np.uint8)
    return jax.tree.map(
        jnp.asarray, Conditioning(prompt, reference, np.full(len(texts), has_reference))
    )


def test_pinned_tokens_tell_prompts_apart(small_model, small_config):
    pin = jax.jit(lambda condition: small_model.pin(condition))
    k, v, valid = pin(ask(["night", "night!", "thing", ""]))
    model = small_config.model
    assert k.shape == v.shape == (model.layers, 4, model.pinned, model.heads, model.head_dim)
    text = slice(0, model.prompt_tokens)
    for a in range(4):
        for b in range(a):
            assert np.abs(v[:, a, text] - v[:, b, text]).max() > 1e-3
    assert np.all(valid[:, text]) and not np.any(valid[:, model.prompt_tokens :])
    assert np.all(np.isfinite(k)) and np.all(np.isfinite(v))

    picture = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    _, v_seen, valid = pin(ask(["night", "night!", "thing", ""], picture, True))
    assert np.all(valid)
    np.testing.assert_allclose(v_seen[:, :, text], v[:, :, text], atol=1e-6)
    assert np.abs((v_seen - v)[:, :, model.prompt_tokens :]).max() > 1e-3


def test_padding_has_no_influence_on_a_prompt(small_model):
    """Were padding read, what stands in the table for byte 0 would change the tokens."""
    params = nnx.to_pure_dict(nnx.state(small_model, nnx.Param))
    table = params["conditioner"]["text"]["table"]
    params["conditioner"]["text"]["table"] = table.at[0].add(50.0)
    other = build(small_model.config, params)
    encode = jax.jit(lambda model, prompt: model.conditioner.text(prompt))
    for text, same in (("night", True), ("", False)):  # an empty prompt reads one padding byte
        prompt = ask([text]).prompt
        assert np.array_equal(encode(small_model, prompt), encode(other, prompt)) == same


def test_external_embeddings_and_no_mask(small_config):
    config = dataclasses.replace(
        small_config.model, external_text_dim=24, prompt_bytes=6, controls=()
    )
    model = abstract_model(config)
    condition = Conditioning(
        jax.ShapeDtypeStruct((2, 6, 24), jnp.float32),
        jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.uint8),
        jax.ShapeDtypeStruct((2,), jnp.bool_),
    )
    k, _, valid = jax.eval_shape(lambda m, c: m.pin(c), model, condition)
    assert k.shape[2] == valid.shape[1] == config.pinned
    less = (
        abstract_params(small_config.model)["embed"].shape[0]
        - abstract_params(config)["embed"].shape[0]
    )
    assert less == config.patch**2


def test_shapes_follow_the_config(small_config):
    def shapes(**changes):
        return abstract_params(dataclasses.replace(small_config.model, **changes))

    assert shapes() == shapes(sinks=3)
    assert shapes(window=5)["stack"]["age_k"].shape[1] == 6
    stack = shapes(layers=5)["stack"]
    assert {leaf.shape[0] for leaf in stack.values()} == {5}
    assert len(jax.tree.leaves(shapes(layers=5))) == len(jax.tree.leaves(shapes()))


@pytest.mark.parametrize(
    ("kv_heads", "per_kv", "memory", "seed"),
    [(1, 4, 0, 1), (2, 3, 1, 2), slow(3, 2, 1, 3), slow(3, 4, 0, 4)],
)
def test_shared_keys_are_those_of_a_model_that_repeats_them(kv_heads, per_kv, memory, seed):
    """Through prompt, commit, sinks, window and memory: what a stream shows, from less state."""
    heads = kv_heads * per_kv
    shared = ModelConfig(
        height=16, width=16, patch=4, dim=12, layers=2, heads=heads, kv_heads=kv_heads,
        head_width=4, mlp=8, window=2, sinks=1, memory=memory, memory_every=2, prompt_tokens=2,
        reference_tokens=2, text_dim=8, text_layers=1, detail_dim=4, detail_patch=2,
    )  # fmt: skip
    whole = dataclasses.replace(shared, kv_heads=0)
    create = jax.jit(lambda key: Denoiser(shared, key))
    params = nnx.to_pure_dict(nnx.state(create(jax.random.key(seed)), nnx.Param))
    frames = np.random.default_rng(seed).integers(0, 256, (5, 1, 16, 16, 3), np.uint8)
    controls = jnp.full((1, 16, 16, 1), 255, jnp.uint8)
    wanted, _ = ask_for(["night"], [None], shared)

    def repeated(x):
        return jnp.repeat(x, per_kv, axis=-2)

    stack, conditioner = params["stack"], params["conditioner"]
    queries, keys = jnp.split(stack["qkv"], [per_kv], axis=2)
    queries = jnp.moveaxis(queries, 2, 3).reshape(2, 12, 1, heads, 4)
    more = {
        "qkv": jnp.concatenate([queries, repeated(keys)], axis=2),
        "out": stack["out"].reshape(2, heads, 4, 12),
        **{name: repeated(stack[name]) for name in ("age_k", "age_v")},
    }
    project = {"project": repeated(conditioner["project"])}
    grown = params | {"stack": stack | more, "conditioner": conditioner | project}
    pictures, sizes = [], []

    @partial(jax.jit, static_argnames="config")
    def streamed(weights, frames, config):
        named = Config("x", config)
        model = stream.prepare(build(config, weights), named)
        state = stream.init_state(named, jnp.zeros(1, jnp.int32))
        state = stream.condition(model, state, wanted, jnp.ones(1, bool))
        return jax.lax.scan(lambda s, x: stream.frame_step(model, s, x, controls), state, frames)

    for config, weights in ((shared, params), (whole, grown)):
        state, shown = streamed(weights, frames, config)
        pictures.append(np.asarray(shown[-1], int))
        sizes.append(state.kv.k.size)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1 and sizes[1] == per_kv * sizes[0]


def test_cast(small_model):
    half = cast(small_model, jnp.bfloat16)
    for a, b in zip(jax.tree.leaves(half), jax.tree.leaves(small_model), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))
