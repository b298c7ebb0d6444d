"""`denoise_stack`: every block of the denoiser in one call, the seam that megakernels replace.

The body here, a scan over stacked layers in plain `jnp`, is the specification of every kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsd_jax.layers import modulate, rms_norm, rotate
from lsd_jax.ops.attend import ATTENDED, attend
from lsd_jax.ops.dispatch import Backend, op
from lsd_jax.ops.eight_bits import multiplier
from lsd_jax.types import KVBuffer, Rope, StackWeights

PACK = "nki_kernels.backend:prepared"
KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(ATTENDED),
)
"""What training keeps of a layer: keeping the matmuls' results alone is a third faster than keeping
everything, and what a fused attention found is as much again as one of them, for all its keys."""


@op(
    Backend("pallas", "pallas_kernels.tpu.denoise_stack:denoise_stack"),
    Backend("nki", "nki_kernels.backend:denoise_stack", prepare=PACK),
    Backend("nki-sim", "nki_kernels.backend:simulated", automatic=False, prepare=PACK),
    Backend("pallas-interpret", "pallas_kernels.tpu.denoise_stack:interpreted", automatic=False),
    Backend(
        "xla-unrolled",
        "lsd_jax.ops.unrolled:denoise_stack",
        prepare="lsd_jax.ops.unrolled:apart",
    ),
)
def denoise_stack(
    x: Float[Array, "b t d"],
    weights: StackWeights,
    kv: KVBuffer,
    bias: Float[Array, "b n"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
) -> tuple[Float[Array, "b t d"], Float[Array, "l b t h k"], Float[Array, "l b t h k"]]:
    """Runs all layers over the tokens of one frame of each session.

    Each token attends to the whole KV buffer and to the current frame, in one softmax.

    Args:
        x: residual stream, in the compute dtype.
        weights: stacked blocks. Where their matrices are in eight bits, what they are multiplied
            by is rounded to such numbers, too, int8 with a scale for each token, or for each part
            of its features that an implementation takes at a time.
        kv: pinned, sink and window keys and values. Keys hold QK-norm and rotary position already;
            the age term `age_k[age]`, `age_v[age]` is added here, at read. A buffer of pinned
            tokens alone (no slots) is allowed.
        bias: float32, added to the logits of a buffer key: 0 where it is valid, very negative
            where it is not.
        modulation: per layer `shift, scale, gate` of attention, then of the MLP; a leading batch
            of 1 serves all sessions.
        rope: spatial positions of the current frame's tokens.

    Returns:
        The residual stream after the last layer, and each layer's keys and values of this frame,
        ready to be committed into the buffer.
    """
    layer = jax.checkpoint(partial(block, age=kv.age, bias=bias, rope=rope), policy=KEPT)
    x, (k_new, v_new) = jax.lax.scan(layer, x, (weights, kv.k, kv.v, modulation))
    return x, k_new, v_new


def block(
    x: Float[Array, "b t d"],
    per_layer: tuple[StackWeights, Array, Array, Array],
    age: Int[Array, "b s"],
    bias: Float[Array, "b n"],
    rope: Rope,
    attend: Callable = attend,
) -> tuple[Float[Array, "b t d"], tuple[Float[Array, "b t h k"], Float[Array, "b t h k"]]]:
    """One layer of `denoise_stack`, whose arguments these are: of the weights, the keys, the values
    and the modulation in `per_layer` its own."""
    weight, k_buffer, v_buffer, mod = per_layer
    tokens = x.shape[1]
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (mod[:, i] for i in range(6))

    h = modulate(x, scale_a, shift_a)
    *queries, k, v = jnp.moveaxis(product("btd,dchk->btchk", h, weight, "qkv"), 2, 0)
    queries = [rotate(rms_norm(q) * weight.q_scale, rope) for q in queries]
    k = rotate(rms_norm(k) * weight.k_scale, rope)
    attended = attend(
        jnp.concatenate(queries, axis=1),  # of a head as if they were more tokens
        jnp.concatenate([add_age(k_buffer, weight.age_k, age, tokens), k], axis=1),
        jnp.concatenate([add_age(v_buffer, weight.age_v, age, tokens), v], axis=1),
        bias,
    )
    found = jnp.split(attended, len(queries), axis=1)
    out = product("bthk,hkd->btd", jnp.concatenate(found, axis=-1), weight, "out")
    x = x + gate_a[:, None] * out

    h = modulate(x, scale_m, shift_m)
    h = jax.nn.gelu(product("btd,dm->btm", h, weight, "up"), approximate=True)
    x = x + gate_m[:, None] * product("btm,md->btd", h, weight, "down")
    return x, (k, v)


def product(
    equation: str, x: Float[Array, "b t ..."], layer: StackWeights, name: str
) -> Float[Array, "b t ..."]:
    """The einsum with one of a layer's matrices; of numbers of eight bits, which even bfloat16
    holds exactly, where the matrix is of such."""
    weight = getattr(layer, name)
    if layer.matrix_scales is None:
        return jnp.einsum(equation, x, weight)
    values, row = multiplier(x, weight.dtype)
    weight = weight.astype(x.dtype)
    out = jnp.einsum(equation, values, weight, preferred_element_type=jnp.float32)
    row = jnp.expand_dims(jnp.broadcast_to(row, x.shape[:2]), tuple(range(2, out.ndim)))
    return (out * row * getattr(layer.matrix_scales, name)).astype(x.dtype)


def add_age(
    buffer: Float[Array, "b n h k"],
    table: Float[Array, "a h k"],
    age: Int[Array, "b s"],
    tokens: int,
) -> Float[Array, "b n h k"]:
    """Adds each frame slot's age embedding to its `tokens` keys (or values); pinned ones have
    none."""
    slots = age.shape[1]
    pinned, frames = jnp.split(buffer, [buffer.shape[1] - slots * tokens], axis=1)
    # A choice among a few rows: a gather would cost TPUs a copy for each slot.
    rows = jnp.arange(table.shape[0])
    chosen = (jnp.clip(age, 0, table.shape[0] - 1)[..., None] == rows)[..., None, None]
    per_slot = jnp.sum(jnp.where(chosen, table, 0), axis=2)  # [B, S, H, K]
    return jnp.concatenate([pinned, frames + jnp.repeat(per_slot, tokens, axis=1)], axis=1)
