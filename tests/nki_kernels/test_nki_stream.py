"""Frames through the simulated megakernel, and the frame step within what Neuron's JAX takes."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import stream
from lsd_jax.config import Config, ModelConfig, StreamConfig
from lsd_jax.model import Denoiser
from lsd_jax.ops import dispatch
from nki_kernels import backend, limits
from nki_kernels.plan import Shapes

CONFIG = Config(
    "nki-test",
    ModelConfig(
        height=32, width=32, patch=8, dim=128, layers=2, heads=1, mlp=128, window=2, sinks=1,
        memory=1, memory_every=2, prompt_tokens=4, reference_tokens=4, text_dim=32, text_layers=1,
        detail_dim=8,
    ),
    StreamConfig(passes=2),
)  # fmt: skip
OPS = {
    "xla": dict.fromkeys(("denoise_stack", "attend", "commit", "embed", "readout"), "xla"),
    "nki-sim": {
        "denoise_stack": "nki-sim",
        "remember": "nki-sim",
        "embed": "xla",
        "readout": "xla",
    },
}
_, FRAME, CONTROLS = stream.abstract_inputs(CONFIG)


def streamed(which: str, model: Denoiser, frames: int):
    passes = dataclasses.replace(CONFIG.stream, backend=which)
    config = dataclasses.replace(CONFIG, model=model.config, stream=passes)
    compiled = stream.compile_stream(stream.prepare(model, config), config)
    assert compiled.backends == OPS[which]
    state = stream.init_state(config, jnp.zeros(1, jnp.int32))
    rng, out = np.random.default_rng(0), []
    controls = jnp.full(CONTROLS.shape, 255, jnp.uint8)
    for _ in range(frames):
        frame = jnp.asarray(rng.integers(0, 255, FRAME.shape, dtype=np.uint8))
        state, shown = compiled.step(compiled.model, state, frame, controls)
        out.append(np.asarray(shown, np.int32))
    return np.stack(out), state


def initialised(config: ModelConfig) -> Denoiser:
    make = jax.jit(lambda key: Denoiser(config, key)).lower(jax.random.key(0))
    return make.compile({"xla_backend_optimization_level": 0})(jax.random.key(0))


@pytest.fixture(scope="module")
def model():
    return initialised(CONFIG.model)


@pytest.mark.parametrize("width", [128, 256])
def test_a_stream_through_the_simulated_kernel_equals_xla(width, monkeypatch):
    """Heads of one part of 128, and of two."""
    model, calls = initialised(dataclasses.replace(CONFIG.model, head_width=width)), []
    real = backend.kernel_of

    def counted(shapes: Shapes):
        kernel = real(shapes)
        return lambda *arguments: calls.append(shapes.slots) or kernel(*arguments)

    monkeypatch.setattr(backend, "kernel_of", counted)
    ours, state = streamed("nki-sim", model, 5)  # the window of two wraps around, memory renews
    assert calls == [3, 3, 0] * 5  # two passes and the commit, in one executable a frame
    theirs, expected = streamed("xla", model, 5)
    assert np.abs(ours - theirs).max() <= 1 and ours.std() > 1
    alike = (ours == theirs).all()
    within = 1e-4 if alike else 2e-3  # a byte that was rounded the other way is remembered, too
    for a, b in zip(jax.tree.leaves(state.kv), jax.tree.leaves(expected.kv), strict=True):
        np.testing.assert_allclose(a, b, rtol=within, atol=within)


def moved(model) -> int:
    """Elements of the largest array that a frame step transposes or joins."""
    _, *rest = abstract()
    step = jax.make_jaxpr(stream.frame_step)(model, *rest)
    kinds = ("transpose", "concatenate", "pad")
    sizes = (e.outvars[0].aval.size for e in limits.equations(step.jaxpr)
             if e.primitive.name in kinds)  # fmt: skip
    return max(sizes)


def test_weights_are_packed_at_load_and_not_in_every_frame(model):
    ready, weights = stream.prepare(model, CONFIG), CONFIG.model.layers * 6 * 128 * 128
    with dispatch.using("nki-sim"):
        adapted = stream.adapt(ready, CONFIG, 1)
        assert moved(adapted) < weights <= moved(ready)
    with dispatch.using("xla"):
        assert stream.adapt(ready, CONFIG, 1) is ready


def abstract(config=CONFIG):
    return stream.abstract_prepared(config), *stream.abstract_inputs(config)


def test_without_a_neuron_device_the_kernel_refuses_and_says_why(model):
    config = dataclasses.replace(CONFIG, stream=StreamConfig(backend="nki"))
    with pytest.raises(ValueError, match="backend nki: this is a cpu device.*nki-sim simulates"):
        stream.compile_stream(stream.prepare(model, config), config)


def test_a_placeholder_is_named_before_the_device(model, monkeypatch):
    """Who has it installed meant to use the kernel."""
    monkeypatch.setattr(backend._compat, "PLACEHOLDER", True)
    config = dataclasses.replace(CONFIG, stream=StreamConfig(backend="nki"))
    with pytest.raises(ValueError, match="backend nki: the installed `nki` is an empty placehol"):
        stream.compile_stream(stream.prepare(model, config), config)


def test_weights_in_eight_bits_are_refused(model):
    config = dataclasses.replace(
        CONFIG, stream=StreamConfig(backend="nki-sim", weight_dtype="int8")
    )
    with pytest.raises(ValueError, match="nki-sim: weights in int8.* use float8_e4m3"):
        stream.compile_stream(stream.prepare(model, config), config)


def test_a_single_thread_is_refused_rather_than_waited_for(monkeypatch):
    monkeypatch.setattr(backend, "threads", lambda: 1)
    monkeypatch.setattr(backend.jax, "devices", lambda: [None])
    with dispatch.using("nki-sim"), pytest.raises(NotImplementedError, match="NPROC=4"):
        jax.make_jaxpr(partial(stream.frame_step))(*abstract())
    monkeypatch.undo()
    monkeypatch.setenv("NPROC", "3")
    assert backend.threads() == 3


def kernel_in_place(shapes: Shapes, x, packed, k_buffer, *rest):
    """Stands for the custom call: depends on all that the kernel takes, computes nothing."""
    used = sum(a.astype(jnp.float32).sum() for a in (packed, k_buffer, *rest))
    if shapes.ring:
        return x + used, *(a + used.astype(a.dtype) for a in rest[-3:-1])
    rows = (shapes.layers, shapes.sessions, shapes.tokens, k_buffer.shape[-1])
    return x + used, *(jnp.zeros(rows, packed.dtype) + used.astype(packed.dtype) for _ in range(2))


def test_the_frame_step_keeps_to_what_neuron_takes(monkeypatch):
    monkeypatch.setattr(backend, "_simulate", kernel_in_place)
    monkeypatch.setattr(backend, "_require_simulator", lambda: None)
    for which in ("nki-sim", "xla"):
        with dispatch.using(which) as chosen, jax.default_prng_impl("rbg"):
            assert limits.violations(partial(stream.frame_step), *abstract()) == []
        assert chosen == OPS[which]
