"""One softmax over keys that come in pieces, with the logits of a piece along either axis.

Dimensions: Q queries of a head with K features, C keys of a piece. Logits are powers of 2.

A matrix unit holds one factor of a product while the rows of the other stream past it. `Softmax`
has it hold keys, then values: where it is wider than a head, both leave half of it empty. `Turned`
has it hold queries, half of it empty, and then the weights, which fill it, past which the features
of the values stream: three quarters of the time for both products. Its sums are of whole registers.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pallas_kernels.tpu.plan import LANES, SUBLANES


@dataclass(frozen=True)
class Softmax:
    """Attention so far: weighted values `[Q, K]`, and sums of the weights `[Q, 1]`."""

    values: jax.Array
    sums: jax.Array

    @classmethod
    def empty(cls, queries: int, k_dim: int) -> Softmax:
        zeros = jnp.zeros((queries, k_dim), jnp.float32)
        return cls(zeros, jnp.zeros((queries, 1), jnp.float32))

    @staticmethod
    def weights(q: jax.Array, k: jax.Array, bias: jax.Array) -> jax.Array:
        """Of the keys `k [C, K]`, `[Q, C]`; `bias [1, C]` or `[1, 1]` adds to their logits."""
        return jnp.exp2(dot(q, k, transposed=True) + bias)

    def over(self, weights: jax.Array, v: jax.Array) -> Softmax:
        """With the keys that have these weights and the values `v [C, K]`."""
        sums = jnp.sum(weights, axis=1, keepdims=True)
        return Softmax(self.values + dot(weights.astype(v.dtype), v), self.sums + sums)

    def result(self, dtype) -> jax.Array:
        """`[Q, K]`."""
        return (self.values / self.sums).astype(dtype)


@dataclass(frozen=True)
class Turned:
    """The same with keys along the sublanes and queries along the lanes: weighted values `[K, Q]`,
    and sums of the weights `[8, Q]`, of every eighth key each."""

    values: jax.Array
    sums: jax.Array

    @classmethod
    def empty(cls, queries: int, k_dim: int) -> Turned:
        zeros = jnp.zeros((k_dim, queries), jnp.float32)
        return cls(zeros, jnp.zeros((SUBLANES, queries), jnp.float32))

    @staticmethod
    def weights(q: jax.Array, k: jax.Array, bias: jax.Array) -> jax.Array:
        """Of the keys `k [C, K]`, `[C, Q]`; `bias [C, 128]`, in all lanes the same, or `[1, 1]`
        adds to their logits."""
        if bias.shape[1] == LANES:
            bias = jnp.concatenate([bias] * (q.shape[0] // LANES), axis=1)
        return jnp.exp2(dot(k, q, transposed=True) + bias)

    def over(self, weights: jax.Array, v: jax.Array) -> Turned:
        """With the keys that have these weights and the values `v [C, K]`."""
        sums = jnp.sum(weights.reshape(-1, SUBLANES, weights.shape[1]), axis=0)
        return Turned(self.values + dot(v.T, weights.astype(v.dtype)), self.sums + sums)

    def result(self, dtype) -> jax.Array:
        """`[Q, K]`."""
        return (self.values / jnp.sum(self.sums, axis=0, keepdims=True)).astype(dtype).T


def dot(a: jax.Array, b: jax.Array, transposed: bool = False) -> jax.Array:
    """`a @ b`, or `a @ b.T`, in float32, or of int8 in int32; float32 operands keep all of their
    bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    out = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
    dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=out)
