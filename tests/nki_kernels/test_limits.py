"""Each thing that Neuron's JAX does not take is found, wherever it hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nki_kernels import limits

TWO, SQUARE, KEY = jnp.ones(2), jnp.ones((2, 2)), jax.random.key(0, impl="rbg")


def within_a_loop(x):
    def body(carry, _):
        return jax.lax.cond(carry.sum() > 0, lambda: carry, lambda: -carry), None

    return jax.jit(lambda y: jax.lax.scan(body, y, None, 2))(x)


def printing(x):
    jax.debug.print("{}", x)
    return x


def convolved(x):
    return jax.lax.conv(x[None, None], x[None, None], (1, 1), "SAME")


def calling(x):
    return jax.ffi.ffi_call("whatever", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


NAMED = [
    (lambda x: jax.lax.cond(x.sum() > 0, lambda: x, lambda: -x), TWO, "cond: "),
    (within_a_loop, TWO, "cond: "),
    (lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y + 1, x), TWO, "while: "),
    (lambda x: jax.pure_callback(lambda y: y, x, x), TWO, "pure_callback: host"),
    (lambda x: jax.experimental.io_callback(lambda y: y, x, x), TWO, "io_callback: host"),
    (printing, TWO, "host callbacks"),
    (lambda x: jax.debug.callback(print, x) or x, TWO, "debug_callback: host"),
    (lambda x: jax.lax.reduce_precision(x, 8, 7), TWO, "reduce_precision: "),
    (jnp.fft.fft, TWO, "fft: Fourier"),
    (lambda x: x.astype(jnp.complex64), TWO, "complex numbers"),
    (lambda x: x @ x, jnp.ones((2, 2), jnp.int32), "dot_general: integer"),
    (convolved, jnp.ones((2, 2), jnp.int8), "conv_general_dilated: integer"),
    (lambda x: x.astype(jnp.float8_e4m3fnuz), TWO, "float8_e4m3fnuz; use"),
    (lambda x: x.astype(jnp.float8_e4m3fn), TWO, "float8_e4m3fn; use"),
    (lambda i: jnp.take(TWO, i), jnp.array([1]), "gather: a gather that is out of bounds raises"),
    (lambda x: x.at[jnp.array([0])].get(mode="clip"), TWO, "gather: a gather that is out"),
    (lambda key: jax.random.bits(key, (2,)), jax.random.key(0, impl="threefry2x32"),
     "random_bits: key<fry>, keys of another generator"),
    (calling, TWO, "ffi_call: not used so far"),
    (lambda x: jax.scipy.linalg.solve_triangular(x, x), SQUARE, "triangular_solve: not used"),
    (lambda x: jnp.linalg.cholesky(x), SQUARE, "cholesky: not used"),
    (lambda x: jax.lax.sort((x, x), num_keys=2), TWO, "sort: not used"),
    (lambda x: jnp.sin(x), TWO, "sin: not used"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "argument", "named"), NAMED)
def test_each_limit_is_found_wherever_it_hides(function, argument, named):
    assert any(named in line for line in limits.violations(function, argument))


def test_each_reason_has_a_case():
    printed = {"debug_print", "debug_callback"}  # by which of them, depends on JAX's version
    for name in limits.REFUSED.keys() - printed:
        assert any(named.startswith(f"{name}: ") for _, _, named in NAMED), name
    assert printed & {
        e.primitive.name for e in limits.equations(jax.make_jaxpr(printing)(TWO).jaxpr)
    }


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * 2, x), TWO),
        (lambda x: x.at[np.array([0, 1])].get(mode="promise_in_bounds") * 2, TWO),
        (lambda key: jax.random.bits(key, (2,)), KEY),
        (lambda x: x.astype(jnp.float8_e4m3), TWO),
        (lambda x: x.astype(jnp.float8_e5m2), TWO),
        (lambda x: x @ x, SQUARE),
    ],
)
def test_what_neuron_takes_passes(function, argument):
    assert limits.violations(function, argument) == []
