"""Dimension letters and the values that travel through a stream.

Dimensions, used in every shape comment and jaxtyping annotation:

    B  independent sessions (streams)     F  frames of a clip
    T  tokens of one frame                D  width of the residual stream
    L  layers                             H  heads of keys and values
    K  features of a head                 G  query heads to each of these, most often 1
    M  features of the MLP
    P  pinned tokens (prompt, reference)  S  frame slots of the KV buffer (sinks, then window)
    R  memory slots of the KV buffer      A  rows of the age table, window + 1
    N  keys in the buffer, P + R * T / 4 + S * T
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8

EMPTY, SINK = -1, 0
"""Ages of a frame slot that holds nothing, and of one that never ages."""

Frame = UInt8[Array, "b height width 3"]
"""One RGB frame of each session, at the model's resolution."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """What steers a session: text bytes and an optional reference picture.

    `prompt` is zero-padded UTF-8, so an all-zero row is the empty prompt; a model built with
    `external_text_dim` takes that many features per token instead, from any text encoder, with
    all-zero rows as padding. Where `has_reference` is false the reference's pixels are ignored.
    """

    prompt: UInt8[Array, "b bytes"] | Float[Array, "b bytes e"]
    reference: UInt8[Array, "b height width 3"]
    has_reference: Bool[Array, " b"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rope:
    """Cosines and sines that place each token of a frame in space."""

    cos: Float[Array, "t half"]
    sin: Float[Array, "t half"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MatrixScales:
    """What the results of matrices in eight bits are to be multiplied by, float32: a number for
    each column, or one (axes of 1) for all of a matrix."""

    qkv: Float[Array, "l parts h k"] | Float[Array, "l parts 1 1"]
    out: Float[Array, "l d"] | Float[Array, "l 1"]
    up: Float[Array, "l m"] | Float[Array, "l 1"]
    down: Float[Array, "l d"] | Float[Array, "l 1"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StackWeights:
    """The weights of all blocks, stacked over layers: what a kernel streams from memory.

    The matrices `qkv`, `out`, `up` and `down` are of eight bits, int8 or float8_e4m3, where there
    are `matrix_scales`; `ops.unrolled` takes tuples of the layers' in their place. Keys and values
    may be shared by several query heads (Ainslie et al. 2023, "GQA"): the G + 2 parts of `qkv` are
    those of a head's G queries, its key and its value, and `out` takes what its queries found, one
    after the other.
    """

    qkv: Float[Array, "l d parts h k"] | Int[Array, "l d parts h k"]
    q_scale: Float[Array, "l k"]
    k_scale: Float[Array, "l k"]
    out: Float[Array, "l h gk d"] | Int[Array, "l h gk d"]
    up: Float[Array, "l d m"] | Int[Array, "l d m"]
    down: Float[Array, "l m d"] | Int[Array, "l m d"]
    age_k: Float[Array, "l a h k"]
    age_v: Float[Array, "l a h k"]
    matrix_scales: MatrixScales | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVBuffer:
    """Keys and values of the pinned tokens and of the frames remembered, of fixed shape.

    The key axis is laid out `pinned (P) | memory (R * T / 4) | sinks (sinks * T) | window
    (window * T)`. `age[b, s]` is how many frames ago slot `s` was written (1: the frame before
    this one), 0 for a sink, which does not age, and -1 for a slot that is still empty. Keys are a
    set, so slots need no order and no frame ever moves. A memory slot holds an older frame by a
    quarter of its keys; `memory[b, r]` is how many frames ago it got what it holds, or -1.
    """

    k: Float[Array, "l b n h k"]
    v: Float[Array, "l b n h k"]
    pinned: Bool[Array, "b p"]
    age: Int[Array, "b s"]
    memory: Int[Array, "b r"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StreamState:
    """All that a stream remembers between two frames; donated to the step, returned by it.

    `frame` only counts; nothing in the picture depends on it. Randomness comes from `key`,
    which each frame splits, so a stream can be saved, restored and replayed bit for bit.
    """

    kv: KVBuffer
    key: Array
    frame: Int[Array, " b"]

    def replace(self, **changes) -> StreamState:
        """This state with some fields exchanged."""
        return replace(self, **changes)
