"""The megakernel as an implementation of the seam, and of the pass that remembers a frame: on a
Neuron device, or simulated anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lsd_jax.ops.commit import Retention, keep, places, read
from lsd_jax.ops.partition import one_chip
from lsd_jax.ops.remember import finite, pinned_alone
from lsd_jax.types import KVBuffer, Rope, StackWeights
from nki_kernels import _compat, pack
from nki_kernels.plan import Shapes
from nki_kernels.remember import kernel_of

_ahead: ContextVar[int] = ContextVar("ahead", default=0)


@contextmanager
def ahead_of_time(cores: int) -> Iterator[None]:
    """Inside, the kernel is traced for a Neuron device of so many cores, though there is none."""
    token = _ahead.set(cores)
    try:
        yield
    finally:
        _ahead.reset(token)


def denoise_stack(
    x: Array, weights: pack.AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope
) -> tuple[Array, Array, Array]:
    """`lsd_jax.ops.denoise_stack` on a NeuronCore, a custom call in the graph of the frame.

    Raises NotImplementedError, with the remedy, where there is no Neuron device, no real `nki`,
    or a shape that the kernel does not take.
    """
    _require_neuron()
    return _call(x, weights, kv, bias, modulation, rope, _on_device)


def remember(
    x: Array, weights: pack.AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope,
    retention: Retention,
) -> tuple[KVBuffer, Array]:  # fmt: skip
    """`lsd_jax.ops.remember` on a NeuronCore; refuses as `denoise_stack` does."""
    _require_neuron()
    return _remember(x, weights, kv, bias, modulation, rope, retention, _on_device)


def _require_neuron() -> None:
    if _compat.PLACEHOLDER:  # whatever the device: who installed it meant to use the kernel
        _compat.require_real()
    if not _ahead.get() and jax.default_backend() != "neuron":
        raise NotImplementedError(
            f"this is a {jax.default_backend()} device, not a Neuron one; "
            "nki-sim simulates the kernel anywhere"
        )
    _compat.require_real()
    one_chip("the kernel")


def prepared(weights: StackWeights) -> pack.PackedWeights:
    """Packed for the cores that a device here is, once."""
    return pack.packed(weights, cores_together())


def cores_together() -> int:
    """Physical cores that one device is: two where Neuron joins them (LNC, `NC_v3d`)."""
    return _ahead.get() or (2 if jax.devices()[0].device_kind.endswith("d") else 1)


def simulated(
    x: Array, weights: pack.AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope
) -> tuple[Array, Array, Array]:
    """The same on a simulated trn2: slow, exact, and every rule of the hardware checked."""
    _require_simulator()
    return _call(x, weights, kv, bias, modulation, rope, _simulate)


def remember_simulated(
    x: Array, weights: pack.AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope,
    retention: Retention,
) -> tuple[KVBuffer, Array]:  # fmt: skip
    """`lsd_jax.ops.remember` likewise."""
    _require_simulator()
    return _remember(x, weights, kv, bias, modulation, rope, retention, _simulate)


def _require_simulator() -> None:
    one_chip("the simulated kernel")
    if _compat.REAL:
        raise NotImplementedError("with the real `nki` installed its own simulator is in charge")
    if threads() < 2 and len(jax.devices()) < 2:
        raise NotImplementedError(
            "the simulated kernel is a host callback, which waits for ever where XLA has a single "
            "thread; set the environment variable NPROC=4 before Python starts"
        )


def threads() -> int:
    """Threads of XLA's CPU client: `NPROC` where it is set, else the cores that we may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux has it
    ours = len(allowed(0)) if allowed else os.cpu_count() or 1
    return int(os.environ.get("NPROC", 0)) or ours


def _call(x, weights, kv, bias, modulation, rope, execute):
    if not isinstance(weights, pack.PackedWeights):
        weights = prepared(weights)
    shapes = pack.shapes_of(x, weights, kv, cores=weights.cores)
    first, *rest = pack.pack_call(x, weights, kv, bias, modulation, rope, shapes)
    out, k, v = execute(shapes, first, weights.matrices, *rest)
    rows = (shapes.layers, shapes.sessions, shapes.tokens, -1, shapes.head)
    heads = kv.k.shape[3]  # cores may have computed more, with zeros
    k, v = (a.reshape(rows)[..., :heads, :].astype(x.dtype) for a in (k, v))
    return pack.tokens_first(out).astype(x.dtype), k, v


def _remember(x, weights, kv, bias, modulation, rope, retention, execute):
    """The frame's keys and values go into the ring in the kernel; XLA keeps the ages and, if there
    is any, the memory, which is made of what the ring then holds."""
    if not isinstance(weights, pack.PackedWeights):
        weights = prepared(weights)
    alone = pinned_alone(kv)
    shapes = pack.shapes_of(x, weights, alone, cores=weights.cores)
    layers, sessions, keys, heads, _ = kv.k.shape
    tokens = x.shape[1]
    if shapes.heads * shapes.cores != heads or kv.k.dtype != weights.age_k.dtype:
        raise NotImplementedError(
            f"{heads} heads in {kv.k.dtype} cannot be written in place by {shapes.cores} cores "
            f"that compute in {weights.age_k.dtype}; use an even number of heads"
        )
    age, starts = places(kv, tokens, retention.sinks)
    shapes = replace(shapes, ring=keys, places=starts.shape[1])
    first, *rest = pack.pack_call(x, weights, alone, bias, modulation, rope, shapes)
    ring = [a.reshape(layers, sessions, keys, heads * shapes.head) for a in (kv.k, kv.v)]
    out, *ring = execute(shapes, first, weights.matrices, *rest, *ring, starts.reshape(1, -1))
    k, v = (a.reshape(kv.k.shape) for a in ring)
    older = replace(kv, k=k, v=v)  # ages as they were
    if retention.periods:
        k_new, v_new = (read(a, starts[:, 0], tokens) for a in (k, v))
        older = keep(older, k_new, v_new, retention)
    # A key or value that is not finite leaves nothing finite behind it; behind the last is nothing.
    last = (read(a[-1:], starts[:, 0], tokens) for a in (k, v))
    sound = finite(out, 0)
    for new in last:
        sound &= finite(new, 1)
    return replace(older, age=age), sound


def _on_device(shapes: Shapes, *arguments: Array):
    return kernel_of(shapes)[shapes.cores](*arguments)


def _simulate(shapes: Shapes, *arguments: Array):
    x, width = arguments[0], arguments[2].shape[-1]
    keys = shapes.ring or shapes.tokens
    rows = jax.ShapeDtypeStruct((shapes.layers, shapes.sessions, keys, width), arguments[2].dtype)
    out = jax.ShapeDtypeStruct(x.shape, jnp.float32)

    def run(*values):
        return kernel_of(shapes)(*(np.asarray(v) for v in values))

    return jax.pure_callback(run, (out, rows, rows), *arguments, vmap_method="sequential")
