"""A stream whose frames several devices share shows what one device shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax import placement, sharding, stream
from lsd_jax.cli.main import main
from lsd_jax.conditioning import ask
from lsd_jax.model import Denoiser
from lsd_jax.session import Session, count_compiles

pytestmark = pytest.mark.multidevice


def untrained(config):
    """A model with random weights."""
    return jax.jit(lambda key: Denoiser(config, key))(jax.random.key(0))


def shown(model, config, mesh, count=5):
    """Pictures of a stream that is asked twice, and what it ran with."""
    prepared = jax.device_put(stream.prepare(model, config), jax.devices()[0])  # as if just read
    compiled = stream.compile_stream(prepared, config, mesh=mesh)
    state = compiled.place(stream.init_state(config, jnp.zeros(1, jnp.int32)))
    size = config.model.height, config.model.width
    frames = np.random.default_rng(0).integers(0, 256, (count, 1, *size, 3), np.uint8)
    controls = np.full((1, *size, len(config.model.controls)), 255, np.uint8)
    pictures = []
    for i, frame in enumerate(frames):
        if i in (0, 3):
            wanted, anew = ask([f"make it {i}"], [None], config.model)
            state = compiled.condition(compiled.model, state, wanted, np.ones(1, bool))
            state = compiled.forget(state, anew)
        state, out = compiled.step(compiled.model, state, frame, controls)
        pictures.append(np.asarray(out, np.int32)[0])
    return np.stack(pictures), compiled, state


@pytest.mark.parametrize("weight_dtype", ["", "int8"])
def test_two_devices_show_what_one_shows(small_config, small_model, weight_dtype):
    streamed = dataclasses.replace(small_config.stream, weight_dtype=weight_dtype)
    config = dataclasses.replace(small_config, stream=streamed)
    alone, _, _ = shown(small_model, config, None)
    both, compiled, state = shown(small_model, config, sharding.sharing(2))
    # Rounding to eight bits of the devices' own shares turns a last bit into a step.
    assert np.abs(alone - both).max() <= (3 if weight_dtype else 1)
    weights = compiled.model.denoiser.stack.weights()
    for whole, axis in ((weights.qkv, 3), (weights.up, 2), (weights.down, 1), (state.kv.k, 3)):
        parts = whole.addressable_shards
        assert len(parts) == 2 and all(2 * p.data.shape[axis] == whole.shape[axis] for p in parts)
    assert state.key.sharding.is_fully_replicated
    aliased = compiled.step.memory_analysis().alias_size_in_bytes
    assert aliased >= state.kv.k.nbytes  # half of the keys, half of the values, on each


def test_each_device_has_whole_heads_of_keys_that_queries_share(small_config):
    shape = dataclasses.replace(small_config.model, heads=4, kv_heads=2)
    config = dataclasses.replace(small_config, model=shape)
    model = untrained(shape)
    alone, _, _ = shown(model, config, None, count=3)
    both, _, state = shown(model, config, sharding.sharing(2), count=3)
    assert np.abs(alone - both).max() <= 1
    assert {part.data.shape[3] for part in state.kv.k.addressable_shards} == {1}


def test_model_and_state_lie_on_all_devices(small_config, small_model):
    """Also what a frame does not read; and a state that came out is taken as it lies."""
    _, compiled, state = shown(small_model, small_config, sharding.sharing(2), count=1)
    arrays = [*jax.tree.leaves(compiled.model), *jax.tree.leaves(state)]
    assert {len(x.sharding.device_set) for x in arrays} == {2}
    _, state_lies = placement.formats(compiled.step)
    assert jax.tree.map(lambda x: x.sharding, state) == state_lies
    given = compiled.condition.input_shardings[0][0]
    pairs = zip(
        jax.tree.leaves(given, is_leaf=lambda x: x is None),
        jax.tree.leaves(compiled.model),
        strict=True,
    )
    assert sum(lies == array.sharding for lies, array in pairs) > 5  # what a change of prompt reads


def test_the_kernel_is_shared_too(small_config):
    """Interpreted; the smaller kernels leave their part to XLA, on each device."""
    model = configs.ModelConfig(
        height=32, width=128, patch=16, dim=128, layers=1, heads=2, head_width=128, mlp=256,
        window=2, prompt_tokens=8, reference_tokens=8, text_dim=32, text_layers=1, detail_dim=8,
    )  # fmt: skip
    config = dataclasses.replace(small_config, model=model)
    denoiser = untrained(model)
    alone, _, _ = shown(denoiser, config, None, count=3)
    backend = dataclasses.replace(config.stream, backend="pallas-interpret")
    config = dataclasses.replace(config, stream=backend)
    both, compiled, _ = shown(denoiser, config, sharding.sharing(2), count=3)
    for op in ("denoise_stack", "remember"):
        assert compiled.backends.pop(op) == "pallas-interpret"
    assert set(compiled.backends.values()) == {"xla"}
    assert np.abs(alone - both).max() <= 1


def test_what_cannot_be_shared_is_refused(small_config, small_model):
    model = stream.prepare(small_model, small_config)
    with pytest.raises(
        ValueError, match="4 devices cannot share a model of 2 heads of keys .*; 1, 2 can"
    ):
        stream.compile_stream(model, small_config, mesh=sharding.sharing(4))
    with pytest.raises(ValueError, match="9 devices cannot share a frame: there are 8 here"):
        sharding.sharing(9)
    assert sharding.sharing(1) is None


def test_a_kernel_of_one_chip_says_so(small_config, small_model):
    streamed = dataclasses.replace(small_config.stream, backend="nki-sim")
    config = dataclasses.replace(small_config, stream=streamed)
    model = stream.prepare(small_model, config)
    with pytest.raises(ValueError, match="the simulated kernel runs on one chip, and 2 share this"):
        stream.compile_stream(model, config, mesh=sharding.sharing(2))


def test_a_session_is_shared_and_says_by_how_many(small_config, small_model):
    session = Session(small_model, small_config, mesh=sharding.sharing(2))
    alone = Session(small_model, small_config)
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    with count_compiles(session.clock):
        shown = [s.step(picture).astype(int) for s in (session, alone) for _ in range(2)]
    assert (session.chips, alone.chips, session.clock.compiles) == (2, 1, 0)
    assert np.abs(shown[1] - shown[3]).max() <= 1


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    command = ["stream", "clip.mp4", "--prompt", "night", "-o", str(tmp_path / "out.mp4")]
    assert main([*command, "--chips", "0"]) == 2
    assert "--chips 0: give at least 1" in capsys.readouterr().err
