"""From the seam's arrays to the kernel's: weights once at load, the small rest in every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lsd_jax.hw.stack import StackShape
from lsd_jax.types import KVBuffer, MatrixScales, Rope, StackWeights
from nki_kernels.plan import KINDS, LANE, Shapes
from nki_kernels.sharing import share

SAFE_LOGIT = 66.0  # float32's exp overflows at 88.7; e^22 is left for sums over keys, and values


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedWeights:
    """`StackWeights` as the kernel of one rank reads them: packed once at load, by `packed`."""

    matrices: Float[Array, "cores l blocks 128 block"]  # of eight bits where there are scales
    q_scale: Float[Array, "l k"]
    k_scale: Float[Array, "l k"]
    age_k: Float[Array, "l a h k"]
    age_v: Float[Array, "l a h k"]
    matrix_scales: MatrixScales | None
    mlp: int = field(metadata={"static": True})
    per_kv: int = field(metadata={"static": True})
    cores: int = field(metadata={"static": True})


AnyWeights = StackWeights | PackedWeights


def packed(weights: StackWeights, cores: int = 1) -> PackedWeights:
    """The weights of one rank, for so many cores that act as one.

    Raises NotImplementedError for what the kernel cannot do.
    """
    layers, ages, heads, head_dim = weights.age_k.shape
    dim, mlp = weights.up.shape[1:]
    dtype = weights.age_k.dtype.name
    stack = StackShape(
        1, LANE, dim, layers, heads, head_dim, mlp, 0, 0, ages, 1, dtype,
        weight_dtype_of(weights), per_kv=per_kv_of(weights),
    )  # fmt: skip
    shapes = share(stack, cores=cores)
    matrices = pack_weights(weights, shapes)
    names = ("q_scale", "k_scale", "age_k", "age_v", "matrix_scales")
    small = {name: getattr(weights, name) for name in names}
    return PackedWeights(matrices, **small, mlp=mlp, per_kv=shapes.per_kv, cores=cores)


def shapes_of(
    x, weights: AnyWeights, kv: KVBuffer, ranks: int = 1, cores: int = 1, **limits
) -> Shapes:
    """The sizes of a call of the seam. Raises NotImplementedError for what the kernel cannot do."""
    sessions, tokens, dim = x.shape
    layers, ages, heads, head_dim = weights.age_k.shape
    slots = kv.age.shape[1]
    stack = StackShape(
        sessions=sessions,
        tokens=tokens,
        dim=dim,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        mlp=weights.mlp if isinstance(weights, PackedWeights) else weights.up.shape[2],
        ageless=kv.k.shape[2] - slots * tokens,
        slots=slots,
        ages=ages,
        modulations=1,
        dtype=weights.age_k.dtype.name,
        weight_dtype=weight_dtype_of(weights),
        per_kv=per_kv_of(weights),
    )
    return share(stack, ranks, cores, **limits)


def weight_dtype_of(weights: AnyWeights) -> str:
    """Of the matrices, as `StackShape` has it."""
    if weights.matrix_scales is None:
        return ""
    return (weights.matrices if isinstance(weights, PackedWeights) else weights.up).dtype.name


def per_kv_of(weights: AnyWeights) -> int:
    """Query heads to each head of keys and values."""
    return weights.per_kv if isinstance(weights, PackedWeights) else weights.qkv.shape[2] - 2


def pack_weights(weights: StackWeights, shapes: Shapes) -> Array:
    """All matrices as `[ranks, L, blocks, 128, block]`: see `plan.Shapes` for what a block holds.

    Input feature f of a matrix stands at partition f % 128 of depth f // 128. Where heads or MLP do
    not split evenly, the last ranks compute with zeros, which add nothing.
    """
    heads, mlp = shapes.heads, shapes.mlp
    ranks = []
    for r in range(shapes.ranks):
        own, inner = slice(r * heads, (r + 1) * heads), slice(r * mlp, (r + 1) * mlp)
        qkv = _share(weights.qkv, 3, own)
        flat = {
            "q": jnp.swapaxes(qkv[:, :, :-2], 2, 3), "k": qkv[:, :, -2], "v": qkv[:, :, -1],
            "out": _share(weights.out, 1, own), "up": _share(weights.up, 2, inner),
            "down": _share(weights.down, 1, inner),
        }  # fmt: skip
        ranks.append(jnp.concatenate([_blocks(flat[n], n, shapes) for n in KINDS], axis=1))
    return jnp.stack(ranks)


def _share(array: Array, axis: int, own: slice) -> Array:
    """A slice of an axis, with zeros where it reaches beyond the end."""
    size = array.shape[axis]
    taken = jax.lax.slice_in_dim(array, min(own.start, size), min(own.stop, size), axis=axis)
    missing = (own.stop - own.start) - taken.shape[axis]
    if not missing:
        return taken
    return jnp.pad(taken, [(0, missing if i == axis else 0) for i in range(array.ndim)])


def _blocks(matrix: Array, kind: str, shapes: Shapes) -> Array:
    layers, depth, outputs = matrix.shape[0], shapes.depth[kind], shapes.outputs[kind]
    tiled = matrix.reshape(layers, depth, LANE, outputs, LANE).transpose(0, 3, 2, 1, 4)
    blocks = []
    for first, count in shapes.tiles_of_block(kind):
        block = tiled[:, first : first + count]  # [L, output, partition, depth, 128]
        order = (0, 2, 3, 1, 4) if kind == "v" else (0, 2, 1, 3, 4)
        block = block.transpose(order).reshape(layers, LANE, count * depth * LANE)
        blocks.append(jnp.pad(block, ((0, 0), (0, 0), (0, shapes.block - block.shape[2]))))
    return jnp.stack(blocks, axis=1)


def pack_call(
    x: Array, weights: AnyWeights, kv: KVBuffer, bias: Array, modulation: Array, rope: Rope,
    shapes: Shapes, rank: int = 0,
) -> tuple[Array, ...]:  # fmt: skip
    """The kernel's arguments but for the packed weights, for one rank; see `denoise_stack.body`."""
    dtype = weights.age_k.dtype
    layers, sessions = shapes.layers, shapes.sessions
    heads = shapes.heads * shapes.cores  # two cores that act as one see the heads of both
    own = slice(rank * heads, (rank + 1) * heads)
    across, width = shapes.dim // LANE, shapes.cores * shapes.width

    def rows(buffer: Array) -> Array:
        return _share(buffer, 3, own).reshape(layers, sessions, shapes.keys, width).astype(dtype)

    def ages(table: Array) -> Array:
        return _share(table, 2, own).reshape(layers, shapes.ages, width).astype(dtype)

    age = jnp.clip(kv.age, 0, shapes.ages - 1)
    onehot = (age[:, None, :] == jnp.arange(shapes.ages)[:, None]).astype(dtype)  # [B, A, S]
    if not shapes.slots:  # nothing reads it, but an array without elements is none to a kernel
        onehot = jnp.zeros((sessions, shapes.ages, 1), dtype)
    of_scales = np.array([[0], [1], [0], [0], [1], [0]], np.float32)
    mod = modulation.astype(jnp.float32) + of_scales
    of_results = jnp.ones((6, layers))  # of q, k, v, out, up, down
    if (own_scales := weights.matrix_scales) is not None:
        each = (*(own_scales.qkv[:, i].ravel() for i in (0, -2, -1)), own_scales.out.ravel(),
                own_scales.up.ravel(), own_scales.down.ravel())  # fmt: skip
        of_results = jnp.stack(each)
        same = jnp.ones(layers)
        gates = jnp.stack([same, same, of_results[3], same, same, of_results[5]], axis=1)
        mod = mod * gates[:, None, :, None]
    mod = mod.reshape(layers, -1, 6, across, LANE).transpose(0, 1, 4, 2, 3)
    whole = (layers, LANE)
    shift = jnp.broadcast_to(-logit_shift(weights)[:, None], whole)
    raw = [jnp.broadcast_to(of_results[i][:, None], whole) for i in (0, 1, 2, 4)]
    learned = [
        scale.astype(jnp.float32).reshape(layers, -1, LANE) * of[:, None]
        for scale, of in zip((weights.q_scale, weights.k_scale), raw, strict=False)
    ]
    first, *second = ([scale[:, part] for scale in learned] for part in range(shapes.parts))
    scales = jnp.stack([*first, shift, *raw, *chain(*second)], axis=-1)
    turns = [t.T.astype(dtype) for t in (rope.cos, rope.sin)]  # of half a head
    turns = [jnp.tile(t, (LANE // len(t), 1)) for t in turns]
    return (
        features_first(x),
        rows(kv.k),
        rows(kv.v),
        _bias_of_pieces(bias, shapes),
        jnp.broadcast_to(onehot[..., None], (*onehot.shape, LANE)),
        ages(weights.age_k),
        ages(weights.age_v),
        scales,
        mod,
        jnp.stack(turns),
        jnp.asarray(rotation(), dtype),
    )


def logit_shift(weights: AnyWeights) -> Array:
    """What to take from all logits of each layer, `[L]` float32, such that no exp overflows.

    QK-norm bounds them: |q . k| <= |q| |k|, where |q| <= sqrt(K) max|q_scale| and likewise for k,
    beside an age embedding. The softmax stays the same, and costs no running maximum; the shift is
    0 unless scales are large. A row all of whose logits lie some 150 below the bound would
    underflow, to NaN: that takes a bound above 75 and a query that points away from every key.
    """
    q, k = (
        jnp.max(jnp.abs(scale.astype(jnp.float32)), axis=-1)
        for scale in (weights.q_scale, weights.k_scale)
    )
    age = jnp.max(jnp.linalg.norm(weights.age_k.astype(jnp.float32), axis=-1), axis=(1, 2))
    return jnp.maximum(q * (weights.q_scale.shape[-1] ** 0.5 * k + age) - SAFE_LOGIT, 0.0)


def features_first(x: Array) -> Array:
    """`[B, T, D]` as `[B, 128, D / 128, T]` float32."""
    sessions, tokens, dim = x.shape
    split = x.astype(jnp.float32).reshape(sessions, tokens, dim // LANE, LANE)
    return split.transpose(0, 3, 2, 1)


def tokens_first(x: Array) -> Array:
    """The inverse of `features_first`, in float32."""
    sessions, _, across, tokens = x.shape
    return x.transpose(0, 3, 2, 1).reshape(sessions, tokens, across * LANE)


def rotation() -> np.ndarray:
    """The stationary matrix that takes the (low, high) halves of a head of 128 to (-high, low)."""
    half = LANE // 2
    matrix = np.zeros((LANE, LANE), np.float32)
    matrix[half + np.arange(half), np.arange(half)] = -1
    matrix[np.arange(half), half + np.arange(half)] = 1
    return matrix


def _bias_of_pieces(bias: Array, shapes: Shapes) -> Array:
    if not shapes.buffer_pieces:
        return jnp.zeros((shapes.sessions, LANE, 1), jnp.float32)
    columns = [
        jnp.pad(
            bias[:, p.start : p.start + p.count * p.step : p.step], ((0, 0), (0, LANE - p.count))
        )
        for p in shapes.buffer_pieces
    ]
    return jnp.stack(columns, axis=-1).astype(jnp.float32)
