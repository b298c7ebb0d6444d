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

from nki_kernels._compat import nisa, nki, nl
from nki_kernels.denoise_stack import all_layers, constants
from nki_kernels.plan import Shapes
from nki_kernels.tiles import tiles


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

    Args (all @ HBM):
        s: `constants` of the shapes.
        x .. rotation: as `denoise_stack.body` takes them; k_buffer, v_buffer: the pinned ones.
        k_ring, v_ring: [L, B, N, cores * W] of the compute dtype, the KV buffer; written.
        starts: [1, B * places] int32, the key from which on a session's frame is written.

    Returns:
        what entered the last layer, as x came; k_ring, v_ring.
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
