"""The stack without its loop, against the specification."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax import ring, sharding, stream
from lsd_jax.hw.stack import abstract_arguments, streamed_stack
from lsd_jax.ops import dispatch, unrolled
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.quantize import quantize_stack
from tests.ops.test_denoise_stack import example

BACKEND = "xla-unrolled"


@pytest.mark.parametrize("eight", ["", "int8", "float8_e4m3"])
@pytest.mark.parametrize("g", [1, 3])
def test_it_is_the_specification(g, eight):
    x, weights, kv, modulation, rope = example(g=g, layers=3)
    if eight:
        weights = quantize_stack(weights, jnp.float32, eight)
    rest = kv, ring.bias(kv), modulation, rope
    theirs = jax.jit(denoise_stack)(x, weights, *rest)
    run = jax.jit(unrolled.denoise_stack)
    for given in (weights, unrolled.apart(weights)):
        for a, b in zip(run(x, given, *rest), theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_a_stream_by_it_shows_the_same_pictures(small_model, small_config):
    frames = np.random.default_rng(0).integers(0, 256, (6, 1, 32, 32, 3), np.uint8)
    everywhere, shown = np.full((1, 32, 32, 1), 255, np.uint8), {}
    for backend in ("xla", BACKEND):
        config = configs.override(small_config, [f"stream.backend={backend}"])
        compiled = stream.compile_stream(stream.prepare(small_model, config), config)
        assert compiled.backends["denoise_stack"] == backend
        state = stream.init_state(config, jnp.zeros(1, jnp.int32))
        for frame in frames:
            state, out = compiled.step(compiled.model, state, frame, everywhere)
            shown.setdefault(backend, []).append(np.asarray(out, np.int32))
    assert np.abs(np.array(shown["xla"]) - np.array(shown[BACKEND])).max() <= 1
    assert np.array(shown["xla"]).std() > 1


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_cpu_copies_no_matrix(small_model, small_config, sessions):
    """Out of its stack: that is all that it is for."""
    prepared = stream.prepare(small_model, small_config)
    inputs = stream.abstract_inputs(small_config, sessions)

    def copied(backend):
        config = configs.override(small_config, [f"stream.backend={backend}"])
        with dispatch.using(backend):
            model = stream.adapt(prepared, config, 1)
            step = jax.jit(stream.frame_step, static_argnames="one_by_one")
            lowered = step.lower(model, *inputs, one_by_one=sessions > 1)
            text = lowered.compile().as_text()
        shape = ",".join(map(str, model.denoiser.stack.weights().up[0].shape))
        made = re.findall(rf" = f32\[(?:1,)?{shape}\]\S* ([\w-]+)\(", text)
        return set(made) - {"parameter", "bitcast", "get-tuple-element"}

    assert copied("auto") == set() and copied("xla")


def test_it_refuses_what_is_no_single_cpu(monkeypatch):
    seam = abstract_arguments(streamed_stack(configs.load("micro")))
    assert denoise_stack.explain(*seam)[BACKEND] == "chosen"
    for chips in (1, 2):
        with jax.set_mesh(sharding.make_mesh(1, 1, chips, devices=jax.devices()[:chips])):
            assert "runs on no mesh" in denoise_stack.explain(*seam)[BACKEND]
    monkeypatch.setattr(unrolled, "device_kind", lambda: "NVIDIA H200")
    answers = denoise_stack.explain(*abstract_arguments(streamed_stack(configs.load("tiny"))))
    assert "it is for CPUs, and this is 'NVIDIA H200'" in answers[BACKEND]
    assert answers["xla"] == "chosen"
