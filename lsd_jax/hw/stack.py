"""The sizes of one denoise stack, the seam that kernels replace, and what any of them has to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes  # noqa: F401  # makes NumPy know bfloat16
import numpy as np

Size = Any  # int, or an array of them


@dataclass(frozen=True)
class StackShape:
    """One denoise stack: everything that its cost depends on. Sizes are integers, or arrays of them
    for many stacks that are costed at once."""

    sessions: Size
    tokens: Size
    dim: Size
    layers: Size
    heads: Size  # of keys and values
    head_dim: Size
    mlp: Size
    ageless: Size  # keys in front of the frame slots: pinned, and memory
    slots: Size
    ages: Size
    modulations: Size  # rows of modulation per layer: 1, or one a session
    dtype: str
    weight_dtype: str = ""  # of the matrices: of eight bits, or empty where it is `dtype`
    places: Size = 0  # of the KV buffer that the keys and values are for; 0: those of no frame yet
    per_kv: Size = 1  # query heads to each head of keys and values

    @property
    def rows(self) -> Size:
        """Tokens of all sessions."""
        return self.sessions * self.tokens

    @property
    def keys(self) -> Size:
        """Keys of a session's buffer."""
        return self.ageless + self.slots * self.tokens

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return np.dtype(self.dtype).itemsize

    @property
    def weight_itemsize(self) -> int:
        """Bytes of a weight of a matrix."""
        return np.dtype(self.weight_dtype or self.dtype).itemsize

    @property
    def matrix_weights(self) -> Size:
        """Weights of a layer's four matrices."""
        return self.dim * (2 * (self.per_kv + 1) * self.heads * self.head_dim + 2 * self.mlp)

    @property
    def matrix_bytes(self) -> Size:
        """Of all matrices, with their scales where they are in eight bits."""
        parts = self.per_kv + 2
        columns = parts * self.heads * self.head_dim + 2 * self.dim + self.mlp
        scales = {"": 0, "int8": columns, "float8_e4m3": parts + 3}[self.weight_dtype]
        return self.layers * (self.weight_itemsize * self.matrix_weights + 4 * scales)


def stack_of(
    model: Any, dtype: str, sessions: int = 1, commit: bool = False, weight_dtype: str = ""
) -> StackShape:
    """The stack of a `lsd_jax.config.ModelConfig`: that of a denoising pass, or of the one that
    commits a frame, which sees the pinned tokens and the frame alone."""
    return StackShape(
        sessions=sessions,
        tokens=model.tokens,
        dim=model.dim,
        layers=model.layers,
        heads=model.key_heads,
        head_dim=model.head_dim,
        mlp=model.mlp,
        ageless=model.pinned if commit else model.keys - model.slots * model.tokens,
        slots=0 if commit else model.slots,
        ages=model.window + 1,
        modulations=1,
        dtype=dtype,
        weight_dtype=weight_dtype,
        places=(2 if model.sinks else 1) if commit else 0,
        per_kv=model.per_kv,
    )


def streamed_stack(config: Any, sessions: int = 1, commit: bool = False) -> StackShape:
    """`stack_of` a `lsd_jax.config.Config`, in the dtypes in which it is streamed."""
    stream = config.stream
    return stack_of(config.model, stream.compute_dtype, sessions, commit, stream.weight_dtype)


def share(shape: StackShape, chips: int) -> StackShape:
    """Of one of several chips: as many heads and MLP features as any other. Raises
    NotImplementedError where they cannot be shared out like that."""
    for name in ("heads", "mlp"):
        if (size := getattr(shape, name)) % chips:
            called = "kv_heads" if name == "heads" and shape.per_kv > 1 else name
            raise NotImplementedError(
                f"{called}={size} cannot be shared by {chips} chips; take as many as divide it"
            )
    return replace(shape, heads=shape.heads // chips, mlp=shape.mlp // chips)


def least_macs(s: StackShape) -> int:
    """Multiply-adds of a pass: projections and MLP, and two products with each key attended."""
    return dense_macs(s) + attended_macs(s)


def dense_macs(s: StackShape) -> int:
    """Multiply-adds with weights: projections and MLP, in eight bits where the weights are."""
    return s.layers * s.rows * s.matrix_weights


def attended_macs(s: StackShape) -> int:
    """Multiply-adds with keys and with values."""
    return 2 * s.layers * s.rows * s.per_kv * (s.keys + s.tokens) * s.heads * s.head_dim


def least_bytes(s: StackShape) -> int:
    """Bytes that have to cross HBM, whatever the plan: weights, keys and values read once, what is
    new written once, the residual stream both."""
    width = s.heads * s.head_dim
    weights = s.weight_itemsize * s.matrix_weights
    keys = 2 * s.sessions * s.keys * width
    new = 2 * s.rows * width
    return s.layers * (weights + s.itemsize * (keys + new)) + s.itemsize * 2 * s.rows * s.dim


def abstract_arguments(s: StackShape) -> tuple[Any, ...]:
    """Shapes and dtypes of the arguments of `ops.denoise_stack`: x, weights, buffer, bias,
    modulation, rope. All ageless keys count as pinned."""
    import jax
    import jax.numpy as jnp

    from lsd_jax.types import KVBuffer, MatrixScales, Rope, StackWeights

    def of(*sizes: int, dtype: Any = s.dtype) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    ages = of(s.layers, s.ages, s.heads, s.head_dim)
    matrix, scale = partial(of, dtype=s.weight_dtype or s.dtype), partial(of, dtype=jnp.float32)
    one = s.weight_dtype == "float8_e4m3"  # scale for a matrix
    scales = MatrixScales(
        qkv=scale(s.layers, s.per_kv + 2, *((1, 1) if one else (s.heads, s.head_dim))),
        out=scale(s.layers, 1 if one else s.dim),
        up=scale(s.layers, 1 if one else s.mlp),
        down=scale(s.layers, 1 if one else s.dim),
    )
    weights = StackWeights(
        qkv=matrix(s.layers, s.dim, s.per_kv + 2, s.heads, s.head_dim),
        q_scale=of(s.layers, s.head_dim),
        k_scale=of(s.layers, s.head_dim),
        out=matrix(s.layers, s.heads, s.per_kv * s.head_dim, s.dim),
        up=matrix(s.layers, s.dim, s.mlp),
        down=matrix(s.layers, s.mlp, s.dim),
        age_k=ages,
        age_v=ages,
        matrix_scales=scales if s.weight_dtype else None,
    )
    buffer = of(s.layers, s.sessions, s.keys, s.heads, s.head_dim)
    kv = KVBuffer(
        k=buffer,
        v=buffer,
        pinned=of(s.sessions, s.ageless, dtype=jnp.bool_),
        age=of(s.sessions, s.slots, dtype=jnp.int32),
        memory=of(s.sessions, 0, dtype=jnp.int32),
    )
    table = of(s.tokens, s.head_dim // 2, dtype=jnp.float32)
    return (
        of(s.sessions, s.tokens, s.dim),
        weights,
        kv,
        of(s.sessions, s.keys, dtype=jnp.float32),
        of(s.layers, s.modulations, 6, s.dim),
        Rope(table, table),
    )
