"""The pass over a finished frame: the megakernel, which here writes what the ring keeps itself.

Dimensions: those of `denoise_stack`; N keys of the whole buffer; places: 1, or 2 where there are
sinks.

Memory: the ring is an input that the kernel writes and gives back, so that it stays where it is in
HBM. What the pass reads of the buffer, its pinned keys, is an input of its own: so nothing that is
read can be what is written, whatever a compiler knows of a place that `starts` says at run time.

Pseudocode::

    as `denoise_stack`, over the pinned keys and the frame itself; in the place of k_new, v_new:
        for each session, layer, token tile, place:
            k_ring[layer, session, starts[session, place] : + T] = k      # a DMA that nobody awaits
            v_ring[layer, session, starts[session, place] : + T] = v
    of the last layer the keys and values alone
"""

from __future__ import annotations

from functools import lru_cache

from nki_kernels import denoise_stack
from nki_kernels._compat import nisa, nki, nl
from nki_kernels.denoise_stack import all_layers, constants
from nki_kernels.plan import Shapes
from nki_kernels.tiles import tiles


@lru_cache
def kernel_of(shapes: Shapes):
    """The kernel for these shapes: one that writes the ring itself, if they have one."""
    return (make_kernel if shapes.ring else denoise_stack.make_kernel)(shapes)


def make_kernel(shapes: Shapes):
    """The kernel for these shapes, whose `ring` is N: `(x, ..., starts) -> (x, k_ring, v_ring)`."""
    s = constants(shapes)

    @nki.jit
    def remember(
        x,
        weights,
        k_buffer,
        v_buffer,
        bias,
        onehot,
        age_k,
        age_v,
        scales,
        modulation,
        rope,
        rotation,
        k_ring,
        v_ring,
        starts,
    ):
        return body(
            s, x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales, modulation,
            rope, rotation, k_ring, v_ring, starts,
        )  # fmt: skip

    return remember


def body(
    s,
    x,
    weights,
    k_buffer,
    v_buffer,
    bias,
    onehot,
    age_k,
    age_v,
    scales,
    modulation,
    rope,
    rotation,
    k_ring,
    v_ring,
    starts,
):
    """The layers over a finished frame, and its keys and values in the ring.

    Dimensions: L layers, B sessions, T tokens of a frame, P pinned keys, N keys of the whole
        buffer, A ages, J pieces of up to 128 pinned keys, D1 = features / 128, W = all features of
        the heads of one core; places: 1, or 2 where there are sinks; cores: 2 where two act as
        one (LNC), else 1; C is the compute dtype.

    Args (all @ HBM):
        s: `constants` of the shapes.
        x: [B, 128, D1, T] float32, residual stream, features on partitions.
        weights: [cores, L, blocks, 128, block] C or float8_e4m3, packed by `pack.pack_weights`.
        k_buffer, v_buffer: [L, B, P, cores * W] C, the pinned keys and values alone; read.
        bias: [B, 128, J] float32, added to the logits of each key of each piece.
        onehot: [B, A, 1, 128] C, not read, for a pinned key has no age.
        age_k, age_v: [L, A, cores * W] C, not read either.
        scales: [L, 128, 7 or 9] float32, learned scales of queries and keys, times those of their
            matrices; what is added to all logits of the layer; scales of the matrices of q, k,
            v and up, 1 where they have none; of heads of two parts the second's learned scales.
        modulation: [L, B or 1, 128, 6, D1] float32: shift, 1 + scale, gate, twice; gates times
            the scales of the matrices in front of them.
        rope: [2, 128, T] C, cosines and sines, each half of a head alike, or one part.
        rotation: [128, 128] C, stationary of `(low, high) -> (-high, low)` in one part.
        k_ring, v_ring: [L, B, N, cores * W] C, the KV buffer; written and given back.
        starts: [1, B * places] int32, the key from which on a session's frame is written.

    Returns:
        what entered the last layer, as x came; k_ring, v_ring.

    Pseudocode::

        for each session, layer:
            k, v = of the frame, as in `denoise_stack.body`
            for each place: k_ring[layer, session, starts[session, place] : + T] = k; v likewise
            unless it is the last layer: x += attention to pinned keys and the frame; x += MLP
    """
    out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm, name="out")
    c = tiles(s, rope.dtype, weights.dtype)
    c["k_to"], c["v_to"] = k_ring, v_ring
    c["starts"] = nl.ndarray((1, s["sessions"] * s["places"]), dtype=nl.int32, name="starts")
    nisa.dma_copy(dst=c["starts"], src=starts)
    all_layers(
        s, c, x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales, modulation,
        rope, rotation, out,
    )  # fmt: skip
    return out, k_ring, v_ring
