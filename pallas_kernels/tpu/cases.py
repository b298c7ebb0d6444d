"""The seam by each of its implementations, as cases to compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lsd_jax.ops.denoise_stack import denoise_stack as op
from lsd_jax.types import KVBuffer, Rope, StackWeights
from pallas_kernels.tpu.denoise_stack import denoise_stack
from pallas_kernels.tpu.plan import Shape

Case = tuple[Callable, tuple, tuple[int, ...]]


def stack(implementation: str, planned_layers: int = 0, **shape) -> Case:
    """`ops.denoise_stack` of `plan.Shape(**shape)` by `pallas`, `xla` (layers unrolled) or
    `xla-scan`; the kernel with the tiles that it has at `planned_layers`, if given."""
    kernel = partial(denoise_stack, planned_layers=planned_layers)
    run = {"pallas": kernel, "xla": unrolled, "xla-scan": op.reference}[implementation]
    return run, arguments(Shape(**shape)), ()


def arguments(s: Shape) -> tuple:
    """Abstract arguments of the seam."""

    def of(*sizes: int, dtype: str = s.dtype) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    weights = StackWeights(
        qkv=of(s.layers, s.dim, 3, s.heads, s.head_dim),
        q_scale=of(s.layers, s.head_dim),
        k_scale=of(s.layers, s.head_dim),
        out=of(s.layers, s.heads, s.head_dim, s.dim),
        up=of(s.layers, s.dim, s.mlp),
        down=of(s.layers, s.mlp, s.dim),
        age_k=of(s.layers, s.ages, s.heads, s.head_dim),
        age_v=of(s.layers, s.ages, s.heads, s.head_dim),
    )
    kv = KVBuffer(
        k=of(s.layers, s.sessions, s.keys, s.heads, s.head_dim),
        v=of(s.layers, s.sessions, s.keys, s.heads, s.head_dim),
        pinned=of(s.sessions, s.ageless, dtype="bool"),
        age=of(s.sessions, s.slots, dtype="int32"),
        memory=of(s.sessions, 0, dtype="int32"),
    )
    table = of(s.tokens, s.head_dim // 2, dtype="float32")
    return (
        of(s.sessions, s.tokens, s.dim),
        weights,
        kv,
        of(s.sessions, s.keys, dtype="float32"),
        of(s.layers, s.modulations, 6, s.dim),
        Rope(table, table),
    )


def unrolled(x, weights: StackWeights, kv: KVBuffer, bias, modulation, rope: Rope):
    """The specification, a layer at a time: XLA then need not copy from stacked buffers."""
    k_new, v_new = [], []
    for layer in range(weights.qkv.shape[0]):
        one = slice(layer, layer + 1)
        x, k, v = op.reference(
            x,
            jax.tree.map(lambda w, one=one: w[one], weights),
            replace(kv, k=kv.k[one], v=kv.v[one]),
            bias,
            modulation[one],
            rope,
        )
        k_new.append(k)
        v_new.append(v)
    return x, jnp.concatenate(k_new), jnp.concatenate(v_new)
