"""Weights and state lie as the compiled step wants them, wherever they come from."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

from lsd_jax import placement, stream


@pytest.fixture
def choosing(monkeypatch):
    monkeypatch.setattr(placement, "CHOOSING", ("cpu",))


def transposed(x):
    (device,) = x.devices()
    return Format(Layout((1, 0)), jax.sharding.SingleDeviceSharding(device))


def test_a_stream_whose_compiler_chooses_shows_the_same(choosing, small_config, small_model):
    model = stream.prepare(small_model, small_config)
    compiled = stream.compile_stream(model, small_config)
    model_lies, state_lies = placement.formats(compiled.step)
    pairs = zip(
        jax.tree.leaves((model_lies, state_lies)),
        jax.tree.leaves(compiled.condition.input_formats[0][:2]),
        strict=True,
    )
    used = [a == b for a, b in pairs if None not in (a.layout, b.layout)]
    assert len(used) >= 5 and all(used)
    assert compiled.step.output_formats[0] == compiled.forget.output_formats == state_lies
    state = compiled.place(stream.init_state(small_config, jnp.zeros(1, jnp.int32)))
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), np.uint8)
    controls = np.full((1, 32, 32, 1), 255, np.uint8)
    expected = stream.init_state(small_config, jnp.zeros(1, jnp.int32))
    step = jax.jit(stream.frame_step)
    for frame in frames:
        state, out = compiled.step(compiled.model, state, frame, controls)
        state = compiled.forget(state, np.zeros(1, bool))
        expected, shown = step(model, expected, frame, controls)
        assert np.abs(np.asarray(out, np.int32) - np.asarray(shown, np.int32)).max() <= 1


def test_a_state_comes_out_as_it_went_in(choosing, monkeypatch):
    """Also where the compiler would rather have it come out otherwise."""
    x = jnp.arange(6.0).reshape(2, 3)
    lies, asked = transposed(x), []

    told = Mock(jax.stages.Compiled)
    told.input_formats = (lies, lies), {}
    told.output_formats = Format(Layout((0, 1)), lies.sharding), None
    jit = jax.jit

    def first(function, **options):
        asked.append(options["in_shardings"][:2] + (options["out_shardings"][0],))
        if len(asked) > 1:
            return jit(function, **options)
        jitted = Mock()
        jitted.lower.return_value.compile.return_value = told
        return jitted

    monkeypatch.setattr(jax, "jit", first)
    step = placement.compile_step(lambda model, state: (state + model, model), x, x)
    assert asked[1] == (lies, lies, lies)
    placed = placement.place(x, lies)
    state, _ = step(placed, placement.place(x, lies))
    assert state.format.layout.major_to_minor == (1, 0)
    np.testing.assert_array_equal(state, 2 * x)


def test_what_lies_as_it_should_is_left_alone():
    x = jnp.ones((2, 3))
    assert placement.place(x, None) is x
