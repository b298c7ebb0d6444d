"""The sizes of one denoise stack, the seam that kernels replace, and what any of them has to do."""

from __future__ import annotations

from dataclasses import dataclass
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
    heads: Size
    head_dim: Size
    mlp: Size
    ageless: Size  # keys in front of the frame slots: pinned, and memory
    slots: Size
    ages: Size
    modulations: Size  # rows of modulation per layer: 1, or one a session
    dtype: str

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
        """Bytes of an activation or a weight."""
        return np.dtype(self.dtype).itemsize


def stack_of(model: Any, dtype: str, sessions: int = 1, commit: bool = False) -> StackShape:
    """The stack of a `lsd_jax.config.ModelConfig`: that of a denoising pass, or of the one that
    commits a frame, which sees the pinned tokens and the frame alone."""
    return StackShape(
        sessions=sessions,
        tokens=model.tokens,
        dim=model.dim,
        layers=model.layers,
        heads=model.heads,
        head_dim=model.head_dim,
        mlp=model.mlp,
        ageless=model.pinned if commit else model.keys - model.slots * model.tokens,
        slots=0 if commit else model.slots,
        ages=model.window + 1,
        modulations=1,
        dtype=dtype,
    )


def least_macs(s: StackShape) -> int:
    """Multiply-adds of a pass: projections and MLP, and two products with each key attended."""
    rows, width = s.sessions * s.tokens, s.heads * s.head_dim
    dense = rows * s.dim * (4 * width + 2 * s.mlp)
    return s.layers * (dense + 2 * rows * (s.keys + s.tokens) * width)


def least_bytes(s: StackShape) -> int:
    """Bytes that have to cross HBM, whatever the plan: weights, keys and values read once, what is
    new written once, the residual stream both."""
    rows, width = s.sessions * s.tokens, s.heads * s.head_dim
    weights = s.dim * (4 * width + 2 * s.mlp)
    keys = 2 * s.sessions * s.keys * width
    new = 2 * rows * width
    return s.itemsize * (s.layers * (weights + keys + new) + 2 * rows * s.dim)


def abstract_arguments(s: StackShape) -> tuple[Any, ...]:
    """Shapes and dtypes of the arguments of `ops.denoise_stack`: x, weights, buffer, bias,
    modulation, rope. All ageless keys count as pinned."""
    import jax
    import jax.numpy as jnp

    from lsd_jax.types import KVBuffer, Rope, StackWeights

    def of(*sizes: int, dtype: Any = s.dtype) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))

    ages = of(s.layers, s.ages, s.heads, s.head_dim)
    weights = StackWeights(
        qkv=of(s.layers, s.dim, 3, s.heads, s.head_dim),
        q_scale=of(s.layers, s.head_dim),
        k_scale=of(s.layers, s.head_dim),
        out=of(s.layers, s.heads, s.head_dim, s.dim),
        up=of(s.layers, s.dim, s.mlp),
        down=of(s.layers, s.mlp, s.dim),
        age_k=ages,
        age_v=ages,
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
