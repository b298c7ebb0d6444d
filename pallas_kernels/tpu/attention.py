"""Attention by each of its implementations, as cases to compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask_info,
)

from lsd_jax.hw.stack import StackShape
from lsd_jax.ops.attend import attend
from pallas_kernels.tpu.attend import over_devices
from pallas_kernels.tpu.chip import chip_here
from pallas_kernels.tpu.plan import LANES
from pallas_kernels.tpu.planner import limit_bytes

Case = tuple[Callable, tuple, tuple[int, ...]]


def attention(implementation: str, gradients: bool, **shape) -> Case:
    """`ops.attend` as a layer of `StackShape(**shape)` calls it, by `pallas`, `splash` or `xla`;
    with what a gradient of its result means to queries, keys and values, if asked for."""
    s = StackShape(**shape)
    kernel = partial(over_devices, room=limit_bytes(chip_here()))  # even where XLA is faster
    run = {"pallas": kernel, "splash": splash, "xla": attend.reference}[implementation]

    def of(rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((s.sessions, rows, s.heads, s.head_dim), jnp.dtype(s.dtype))

    q, k = of(s.tokens * s.per_kv), of(s.keys + s.tokens)
    bias = jax.ShapeDtypeStruct((s.sessions, s.keys), jnp.float32)
    if not gradients:
        return run, (q, k, k, bias), ()

    def both(q, k, v, bias, given):
        out, back = jax.vjp(lambda q, k, v: run(q, k, v, bias), q, k, v)
        return out, back(given)

    return both, (q, k, k, bias, q), ()


def splash(q: jax.Array, keys: jax.Array, values: jax.Array, bias: jax.Array) -> jax.Array:
    """`ops.attend` by jax's splash attention: a key that is not to be seen is of another segment.

    Its public constructor makes a table of blocks to be skipped even where none is; the compiler's
    profile takes what such a table decides for skipped. So it is made without one here.
    """
    (_, t, _, k_dim), s = q.shape, keys.shape[1]
    block, chunk = largest(t, 1024), largest(s, 1280)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=chunk,
        block_kv_compute=largest(chunk, 640),
        block_q_dkv=block,
        block_kv_dkv=chunk,
        block_kv_dkv_compute=largest(chunk, 640),
        use_fused_bwd_kernel=True,
    )
    everything: Any = splash_attention_mask_info.MaskInfo(*[None] * 5)
    run: Callable = splash_attention_kernel.SplashAttentionKernel(
        everything,
        None,
        everything,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=None,
        interpret=False,
    )
    hidden = jnp.pad((bias < 0).astype(jnp.int32), ((0, 0), (0, s - bias.shape[1])))
    seen = jnp.zeros(t, jnp.int32)

    def session(q, k, v, hidden) -> Any:
        return run(q, k, v, segment_ids=splash_attention_kernel.SegmentIds(seen, hidden))

    scaled = (q.astype(jnp.float32) * k_dim**-0.5).astype(q.dtype)
    q, keys, values = (jnp.swapaxes(x, 1, 2) for x in (scaled, keys, values))
    return jnp.swapaxes(jax.vmap(session)(q, keys, values, hidden), 1, 2)


def largest(size: int, most: int) -> int:
    """The largest multiple of a register's lanes, up to `most`, that divides `size`. Raises
    ValueError where none does."""
    found = [n for n in range(LANES, min(size, most) + 1, LANES) if size % n == 0]
    if not found:
        raise ValueError(f"splash attention takes a multiple of {LANES}, not {size}")
    return found[-1]
