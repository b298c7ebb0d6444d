"""The megakernel as an implementation of the seam: on a Neuron device, or simulated anywhere."""

from __future__ import annotations

import os
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lsd_jax.ops.partition import one_chip
from lsd_jax.types import KVBuffer, Rope, StackWeights
from nki_kernels import _compat, pack
from nki_kernels.denoise_stack import make_kernel
from nki_kernels.plan import LANE, Shapes

kernel_of = lru_cache(make_kernel)


def denoise_stack(
    x: Array, weights: pack.AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope
) -> tuple[Array, Array, Array]:
    """`lsd_jax.ops.denoise_stack` on a NeuronCore, a custom call in the graph of the frame.

    Raises NotImplementedError, with the remedy, where there is no Neuron device, no real `nki`,
    or a shape that the kernel does not take.
    """
    if jax.default_backend() != "neuron":
        raise NotImplementedError(
            f"this is a {jax.default_backend()} device, not a Neuron one; "
            "nki-sim simulates the kernel anywhere"
        )
    _compat.require_real()
    one_chip("the kernel")
    return _call(x, weights, kv, bias, modulation, rope, _on_device)


def prepared(weights: StackWeights) -> pack.PackedWeights:
    """Packed for the cores that a device here is, once."""
    return pack.packed(weights, cores_together())


def cores_together() -> int:
    """Physical cores that one device is: two where Neuron joins them (LNC, `NC_v3d`)."""
    return 2 if jax.devices()[0].device_kind.endswith("d") else 1


def simulated(
    x: Array, weights: pack.AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope
) -> tuple[Array, Array, Array]:
    """The same on a simulated trn2: slow, exact, and every rule of the hardware checked."""
    one_chip("the simulated kernel")
    if _compat.REAL:
        raise NotImplementedError("with the real `nki` installed its own simulator is in charge")
    if threads() < 2 and len(jax.devices()) < 2:
        raise NotImplementedError(
            "the simulated kernel is a host callback, which waits for ever where XLA has a single "
            "thread; set the environment variable NPROC=4 before Python starts"
        )
    return _call(x, weights, kv, bias, modulation, rope, _simulate)


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
    rows = (shapes.layers, shapes.sessions, shapes.tokens, -1, LANE)
    heads = kv.k.shape[3]  # cores may have computed more, with zeros
    k, v = (a.reshape(rows)[..., :heads, :].astype(x.dtype) for a in (k, v))
    return pack.tokens_first(out).astype(x.dtype), k, v


def _on_device(shapes: Shapes, *arguments: Array):
    return kernel_of(shapes)[shapes.cores](*arguments)


def _simulate(shapes: Shapes, *arguments: Array):
    x = arguments[0]
    width = arguments[2].shape[-1]
    rows = jax.ShapeDtypeStruct(
        (shapes.layers, shapes.sessions, shapes.tokens, width), arguments[2].dtype
    )
    out = jax.ShapeDtypeStruct(x.shape, jnp.float32)

    def run(*values):
        return kernel_of(shapes)(*(np.asarray(v) for v in values))

    return jax.pure_callback(run, (out, rows, rows), *arguments, vmap_method="sequential")
