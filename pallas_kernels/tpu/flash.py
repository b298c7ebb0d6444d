"""Attention in one launch, and its gradients in another, without logits in HBM.

After FlashAttention (Dao et al. 2022, 2023), with two differences. A head's keys and values lie in
VMEM whole, so that the second launch finds all three gradients in one pass. And a bound takes the
place of a softmax's running maximum, see `shift`.

Dimensions: B, H and K of `lsd_jax.types`, here with T queries and S keys, filled up to whole tiles.
Logits are powers of 2.

Memory budget: `Tiles.forward_bytes`, `Tiles.backward_bytes`.

Pseudocode: for each session, head and block of queries,

    forward:  p = 2^(q k^T + bias - shift); out = p v / sum(p); total = shift + log2(sum(p))
    backward: p^T = 2^(k q^T + bias^T - total); ds^T = p^T * (v do^T - sum(do * out))
              dq = ds k; dk += ds^T q; dv += p^T do
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lsd_jax.ops.attend import ATTENDED
from pallas_kernels.tpu.kernel import LOG2_E, SAFE_EXPONENT
from pallas_kernels.tpu.loops import Interpret, Rows
from pallas_kernels.tpu.plan import LANES, Buffer, up
from pallas_kernels.tpu.planner import SPARE_BYTES
from pallas_kernels.tpu.softmax import dot

BLOCKS = (640, 512, 384, 256, 128)  # of queries
CHUNKS = (768, 640, 512, 384, 256, 128)  # of keys
ONE_CHUNK = 1536  # keys, up to which they are one chunk
OVERHEAD = 96  # rows of a tile that cost as much as a tile does beside its rows
TOGETHER, TOGETHER_BACK = 10, 5  # chunks in a turn of a loop, at most
COLD = -1e8  # a bias below it hides its key


@dataclass(frozen=True)
class Tiles:
    """How many `queries` are a block and how many `keys` are taken at once, of all, filled up to a
    multiple."""

    queries: int
    keys: int
    all_queries: int
    all_keys: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, queries: int, keys: int, head_dim: int, dtype: str) -> Tiles:
        whole = (up(keys, LANES),) if keys <= ONE_CHUNK else ()
        block, chunk = best(queries, BLOCKS), best(keys, (*whole, *CHUNKS))
        return cls(block, chunk, up(queries, block), up(keys, chunk), head_dim, dtype)

    def _bytes(self, rows: int, keys: int, singles: int, temporaries: int) -> int:
        s, k = self.all_keys, self.head_dim
        held = (
            *[Buffer((2, self.queries, k), self.dtype)] * rows,  # one in use, one on its way
            *[Buffer((2, s, k), self.dtype)] * keys,
            *[Buffer((s, k), "float32")] * singles,
            *[Buffer((self.keys, self.queries), "float32")] * temporaries,
        )
        return sum(b.bytes for b in held)

    @property
    def forward_bytes(self) -> int:
        """Of VMEM, temporaries of the compiler among them."""
        return SPARE_BYTES + self._bytes(2, 2, 0, 4)

    @property
    def backward_bytes(self) -> int:
        """The same: keys, values and their gradients; sums of these, keys turned, the bias."""
        return SPARE_BYTES + self._bytes(4, 4, 5, 6)


def best(size: int, tiles: tuple[int, ...]) -> int:
    """The tile of which it takes the least, with what each costs beside its rows."""
    return min(tiles, key=lambda n: up(size, n) * (1 + OVERHEAD / n))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def flash(
    q: Float[Array, "b h t k"],
    k: Float[Array, "b h s k"],
    v: Float[Array, "b h s k"],
    bias: Float[Array, "b s"],
    tiles: Tiles,
    interpret: Interpret = False,
) -> Float[Array, "b h t k"]:
    """`ops.attend` of whole tiles."""
    return forward(q, k, v, bias, tiles, interpret)[0]


def forward(q, k, v, bias, tiles: Tiles, interpret: Interpret):
    """What was found, and the log2 of each query's sum, `[B, H, 1, T]`."""
    return launch(
        partial(attend_kernel, tiles), "attend", tiles, (q, k, v, (bias * LOG2_E)[:, None]),
        "qkkb", "qt", [pltpu.VMEM((1, 1), jnp.float32)], tiles.forward_bytes, interpret,
    )  # fmt: skip


def _forward(q, k, v, bias, tiles: Tiles, interpret: Interpret):
    out, total = forward(q, k, v, bias, tiles, interpret)
    out, total = checkpoint_name(out, ATTENDED), checkpoint_name(total, ATTENDED)
    return out, (q, k, v, bias, out, total)


def _backward(tiles: Tiles, interpret: Interpret, kept, d_out):
    q, k, v, bias, out, total = kept
    keys = (tiles.all_keys, tiles.head_dim)
    scratch = [pltpu.VMEM(keys[::-1], k.dtype), *[pltpu.VMEM(keys, jnp.float32)] * 2]
    gradients = launch(
        partial(gradients_kernel, tiles), "attend_gradients", tiles,
        (q, k, v, (bias * LOG2_E)[:, :, None], d_out, out, total), "qkkcqqt", "qkk", scratch,
        tiles.backward_bytes, interpret,
    )  # fmt: skip
    return (*gradients, jnp.zeros_like(bias))


flash.defvjp(_forward, _backward)


def launch(
    kernel: Callable,
    name: str,
    tiles: Tiles,
    arguments: tuple[jax.Array, ...],
    takes: str,
    gives: str,
    scratch: list[Any],
    vmem_bytes: int,
    interpret: Interpret,
) -> list[jax.Array]:
    """One `pallas_call`; a letter says what each array is of: `q`ueries, `k`eys, sums in a row for
    each query (`t`), the bias as a row (`b`) or as a column (`c`)."""
    batch, heads, t, k_dim = arguments[0].shape
    dtype, block, s = arguments[0].dtype, tiles.queries, tiles.all_keys
    specs = {
        "q": pl.BlockSpec((None, None, block, k_dim), lambda b, h, i: (b, h, i, 0)),
        "k": pl.BlockSpec((None, None, s, k_dim), lambda b, h, i: (b, h, 0, 0)),
        "t": pl.BlockSpec((None, None, 1, block), lambda b, h, i: (b, h, 0, i)),
        "b": pl.BlockSpec((None, 1, s), lambda b, h, i: (b, 0, 0)),
        "c": pl.BlockSpec((None, s, 1), lambda b, h, i: (b, 0, 0)),
    }
    shapes = {
        "q": jax.ShapeDtypeStruct((batch, heads, t, k_dim), dtype),
        "k": jax.ShapeDtypeStruct((batch, heads, s, k_dim), dtype),
        "t": jax.ShapeDtypeStruct((batch, heads, 1, t), jnp.float32),
    }
    return pl.pallas_call(
        kernel,
        grid=(batch, heads, t // block),
        in_specs=[specs[letter] for letter in takes],
        out_specs=[specs[letter] for letter in gives],
        out_shape=[shapes[letter] for letter in gives],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=vmem_bytes,
            dimension_semantics=("parallel", "parallel", "arbitrary"),  # what is kept is of a head
        ),
        name=name,
        interpret=interpret,
    )(*arguments)


def attend_kernel(tiles: Tiles, q, k, v, bias, out, total, longest) -> None:
    """A block of queries over all keys."""
    dtype = q.dtype
    pl.when(pl.program_id(2) == 0)(lambda: measure(k, bias, longest))
    x = scaled(q[...])
    less = shift(x, longest[...])

    def chunk(keys: Rows, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        found, sums = state
        p = jnp.exp2(dot(x, k[keys], transposed=True) + (bias[:, keys] - less))
        for first in range(0, tiles.keys, LANES):
            sums += p[:, first : first + LANES]
        return found + dot(p.astype(dtype), v[keys]), sums

    zero = jnp.zeros((tiles.queries, tiles.head_dim), jnp.float32)
    sums = jnp.zeros((tiles.queries, LANES), jnp.float32)
    found, sums = chunks(tiles, chunk, (zero, sums), TOGETHER)
    sums = jnp.sum(sums, axis=1, keepdims=True)
    out[...] = (found / sums).astype(dtype)
    total[...] = less + jnp.log2(as_row(sums))


def gradients_kernel(
    tiles: Tiles, q, k, v, bias, d_out, out, total, d_q, d_k, d_v, turned, k_sum, v_sum
) -> None:
    """All gradients of a block of queries: keys along the rows, so that only `dq` needs one of two
    factors turned, for which the keys are, once."""
    dtype, last = q.dtype, tiles.all_queries // tiles.queries - 1

    @pl.when(pl.program_id(2) == 0)
    def begin():
        turned[...] = k[...].T
        k_sum[...] = jnp.zeros(k_sum.shape, jnp.float32)
        v_sum[...] = jnp.zeros(v_sum.shape, jnp.float32)

    x, given = scaled(q[...]), d_out[...]
    both = out[...].astype(jnp.float32) * given.astype(jnp.float32)
    own = jnp.sum(both.T, axis=0, keepdims=True)

    def chunk(keys: Rows, d_x: jax.Array) -> jax.Array:
        p = jnp.exp2(dot(k[keys], x, transposed=True) + bias[keys] - total[...])
        v_sum[keys] += dot(p.astype(dtype), given)
        d_s = (p * (dot(v[keys], given, transposed=True) - own)).astype(dtype)
        k_sum[keys] += dot(d_s, x)
        return d_x + dot(turned[:, keys], d_s)

    zero = jnp.zeros((tiles.head_dim, tiles.queries), jnp.float32)
    d_x = chunks(tiles, chunk, zero, TOGETHER_BACK)
    d_q[...] = (d_x.T * tiles.head_dim**-0.5).astype(dtype)

    @pl.when(pl.program_id(2) == last)
    def end():
        d_k[...] = (k_sum[...] * (1 / LOG2_E)).astype(dtype)
        d_v[...] = v_sum[...].astype(dtype)


def chunks(tiles: Tiles, body: Callable[[Any, Any], Any], state: Any, most: int) -> Any:
    """`body(keys, state)` for one chunk after the other, as many in each turn of a loop as divide
    them, up to `most`: units overlap in straight-line code alone."""
    times = tiles.all_keys // tiles.keys
    together = max(n for n in range(1, most + 1) if times % n == 0)

    def turn(i, state):
        for j in range(together):
            first = pl.multiple_of((i * together + j) * tiles.keys, tiles.keys)
            state = body(pl.ds(first, tiles.keys), state)
        return state

    return jax.lax.fori_loop(0, times // together, turn, state)


def scaled(q: jax.Array) -> jax.Array:
    """Queries whose products are logits to the base 2."""
    return (q.astype(jnp.float32) * (LOG2_E * q.shape[-1] ** -0.5)).astype(q.dtype)


def measure(k, bias, longest) -> None:
    """The length of the longest key of those seen, `[1, 1]`."""
    squares = k[...] * k[...]
    lengths = dot(jnp.ones((8, k.shape[1]), k.dtype), squares, transposed=True)[:1]
    seen = jnp.where(bias[...] < COLD, 0.0, lengths)
    longest[...] = jnp.sqrt(jnp.max(seen, axis=1, keepdims=True))


def shift(x: jax.Array, longest: jax.Array) -> jax.Array:
    """What to take from a block's logits such that no power of 2 overflows, `[1, 1]`: |q . k| is at
    most |q| |k|. It is 0 unless these are large; see `Machine.limit`, and there for the limits."""
    squares = x.astype(jnp.float32) * x.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.sum(squares, axis=1, keepdims=True))
    bound = jnp.max(lengths, axis=0, keepdims=True) * longest
    return jnp.maximum(bound - SAFE_EXPONENT, 0.0)


def as_row(column: jax.Array) -> jax.Array:
    """`[Q, 1]` as `[1, Q]`."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]
