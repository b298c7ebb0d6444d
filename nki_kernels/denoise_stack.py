"""The whole denoiser as one NKI kernel: all layers, one launch, activations never leave SBUF.

Dimensions: as in `lsd_jax.types`; lane = 128 = partitions; a head is one or two parts of 128
    features, K in all; W = H * K of one rank; D1 = D / 128; J pieces of up to 128 keys of the
    buffer; blocks of weights: `plan.Shapes`.

Memory: the residual stream stays in SBUF as float32 with features on partitions; weights pass
    through a ring of blocks, and the buffer's keys and values through a ring of pieces, both
    fetched ahead of their use. PSUM: three banks of scores, four of attention results (projections
    rotate through these seven), one of transposes.

Pseudocode::

    for each session, for each layer:
        for each token tile:                            # all keys before any attention
            h = rms_norm(x) * (1 + scale) + shift
            k = rotate(rms_norm(h @ Wk) * k_scale); v = h @ Wv     # stored as well, see `store`
        for each token tile:
            h = the same; q = rotate(rms_norm(h @ Wq) * q_scale)
            for each chunk of keys (the frame's own from SBUF, then the buffer + age):
                for each head, piece: p = exp(k.T @ q / sqrt(K) + bias); o += p.T @ [v | 1]
            x += gate * ((o / its last column) @ Wout)
            h = rms_norm(x) * (1 + scale) + shift
            x += gate * (gelu(h @ Wup) @ Wdown)

The column of ones gives the softmax's sum for free, as values stand with tokens on partitions.
exp goes without a running maximum: QK-norm bounds the logits, and where the bound is large every
bias holds what keeps exp within float32, see `pack.logit_shift`. Nothing but exp and gelu needs a
ScalarE table (rsqrt runs on GpSimd, reciprocals on VectorE), so a token tile switches it twice.
"""

from __future__ import annotations

from nki_kernels._compat import nccl, nisa, nki, nl
from nki_kernels.attention import attention, fetch_chunk, gather_key_ages
from nki_kernels.plan import LANE, TOKENS, Shapes
from nki_kernels.projections import drain, project_keys, project_queries, project_values
from nki_kernels.tiles import (
    contract,
    inverse_rms,
    make_temporaries,
    next_block,
    next_of,
    tiles,
    weight_order,
)


def make_kernel(shapes: Shapes):
    """The kernel for these shapes: `(x, weights, k, v, ...) -> (x, k_new, v_new)`, see `body`."""
    s = constants(shapes)

    @nki.jit
    def denoise_stack(
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
    ):
        return body(
            s, x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales, modulation,
            rope, rotation,
        )  # fmt: skip

    return denoise_stack


def constants(shapes: Shapes) -> dict:
    """The plan as plain numbers, tuples and string keys: all that NKI's tracer understands."""
    pieces, blocks = shapes.buffering
    numbered = [(j, p.count, p.slot) for j, p in enumerate(shapes.buffer_pieces)]
    chunks, at = [], 0
    for chunk in shapes.buffer_chunks:
        chunks.append(tuple(numbered[at : at + len(chunk)]))
        at += len(chunk)
    first = 0
    own = []  # the frame's own pieces, numbered through its token tiles
    for start, count in shapes.token_tiles:
        lanes = shapes.lanes(start, count)
        own += [(first + i, at, n) for i, (at, n) in enumerate(lanes)]
        first += len(lanes)
    reads = [(kind, shapes.depth[kind]) for kind in ("k", "v", "q", "out", "up", "down")]
    return {
        "layers": shapes.layers, "sessions": shapes.sessions, "tokens": shapes.tokens,
        "across": shapes.dim // LANE, "dim": shapes.dim, "heads": shapes.heads,
        "per_kv": shapes.per_kv, "asked": shapes.asked, "parts": shapes.parts,
        "head": shapes.head, "scales": shapes.scales, "width": shapes.width,
        "inner": shapes.mlp // LANE, "slots": shapes.slots, "ages": shapes.ages,
        "ranks": shapes.ranks, "cores": shapes.cores,
        "eight": bool(shapes.weight_dtype), "ring": shapes.ring, "places": shapes.places,
        "pieces": pieces, "blocks": blocks,
        "block": shapes.block, "columns": min(TOKENS, shapes.tokens),
        "tiles": tuple(shapes.token_tiles),
        "lanes": tuple(tuple(shapes.lanes(0, n)) for _, n in shapes.token_tiles),
        "own": tuple(own), "own_chunks": tuple(tuple(c) for c in shapes.chunks(own)),
        "buffer": tuple(numbered), "chunks": tuple(chunks),
        "loads": tuple(tuple(shapes.loads(chunk)) for chunk in shapes.buffer_chunks),
        "depth": dict(reads), "first": shapes.first_block, "per_block": shapes.per_block,
        "split": {k: tuple(shapes.tiles_of_block(k)) for k, _ in reads},
    }  # fmt: skip


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
):
    """All layers over all sessions.

    Dimensions: L layers, B sessions, T tokens of a frame, N keys of the buffer, S frame slots,
        A ages, J pieces of up to 128 keys, D1 = features / 128, W = all features of the
        heads of one core; cores: 2 where two act as one (LNC), else 1; C is the compute dtype.

    Args (all @ HBM):
        s: `constants` of the shapes.
        x: [B, 128, D1, T] float32, residual stream, features on partitions.
        weights: [cores, L, blocks, 128, block] C or float8_e4m3, packed by `pack.pack_weights`.
        k_buffer, v_buffer: [L, B, N, cores * W] C, the KV buffer.
        bias: [B, 128, J] float32, added to the logits of each key of each piece.
        onehot: [B, A, S, 128] C, 1 where a slot has that age, repeated 128 times.
        age_k, age_v: [L, A, cores * W] C.
        scales: [L, 128, 7 or 9] float32, learned scales of queries and keys, times those of their
            matrices; what is added to all logits of the layer; scales of the matrices of q, k,
            v and up, 1 where they have none; of heads of two parts the second's learned scales.
        modulation: [L, B or 1, 128, 6, D1] float32: shift, 1 + scale, gate, twice; gates times
            the scales of the matrices in front of them.
        rope: [2, 128, T] C, cosines and sines, each half of a head alike, or one part.
        rotation: [128, 128] C, stationary of `(low, high) -> (-high, low)` in one part.

    Returns:
        x after the last layer, as it came; k_new, v_new: [L, B, T, cores * W] C.

    Pseudocode::

        for each session, layer:
            k = rotate(rms_norm(h @ Wk)), v = h @ Wv      # h = modulated norm of x; both stored
            q = rotate(rms_norm(h @ Wq))
            x += gate * softmax(q @ [k, buffer + age] + bias) @ [v, buffer + age] @ Wout
            x += gate * gelu(modulated norm of x @ Wup) @ Wdown
    """
    out = nl.ndarray(x.shape, dtype=nl.float32, buffer=nl.shared_hbm, name="out")
    shape = (s["layers"], s["sessions"], s["tokens"], s["cores"] * s["width"])
    k_new = nl.ndarray(shape, dtype=rope.dtype, buffer=nl.shared_hbm, name="k_new")
    v_new = nl.ndarray(shape, dtype=rope.dtype, buffer=nl.shared_hbm, name="v_new")
    c = tiles(s, rope.dtype, weights.dtype)
    c["k_to"], c["v_to"] = k_new, v_new
    all_layers(
        s, c, x, weights, k_buffer, v_buffer, bias, onehot, age_k, age_v, scales, modulation,
        rope, rotation, out,
    )  # fmt: skip
    return out, k_new, v_new


def all_layers(
    s,
    c,
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
    out,
):
    """Writes `out`, and new keys and values to `c["k_to"]` and `c["v_to"]`; the rest is `body`'s.

    Where they go into the ring, nobody wants more of the last layer, and `out` is what enters it.
    """
    core = nl.program_id(0)
    own = nl.ds(core * s["width"], s["width"])
    c["weights"], c["order"], c["pending"] = weights, weight_order(s), []
    nisa.dma_copy(dst=c["cos"], src=rope[0])
    nisa.dma_copy(dst=c["sin"], src=rope[1])
    nisa.dma_copy(dst=c["rotation"], src=rotation)
    nisa.memset(dst=c["ones"], value=1.0)
    nisa.memset(dst=c["values"][:, :, :, s["head"] : s["head"] + 1], value=1.0)
    for b in range(s["sessions"]):
        nisa.dma_copy(dst=c["x"], src=x[b])
        if len(s["buffer"]) > 0:
            nisa.dma_copy(dst=c["bias"], src=bias[b])
        if s["slots"] > 0:
            nisa.dma_copy(dst=c["onehot"], src=onehot[b])
        for layer in range(s["layers"]):
            m = b if modulation.shape[1] > 1 else 0
            nisa.dma_copy(dst=c["modulation"], src=modulation[layer, m])
            nisa.dma_copy(dst=c["scales"], src=scales[layer])
            if len(s["buffer"]) > 0:
                nisa.tensor_scalar(
                    dst=c["shifted_bias"], data=c["bias"], op0=nl.add,
                    operand0=c["scales"][:, 2:3],
                )  # fmt: skip
            if s["slots"] > 0:
                nisa.dma_copy(dst=c["age_k"], src=age_k[layer, :, own])
                nisa.dma_copy(dst=c["age_v"], src=age_v[layer, :, own])
                gather_key_ages(s, c)
            last = s["ring"] > 0 and layer == s["layers"] - 1
            if last and core == 0:
                nisa.dma_copy(dst=out[b], src=c["x"])
            c["k_buffer"] = k_buffer[layer, b, :, own]
            c["v_buffer"] = v_buffer[layer, b, :, own]
            for t in range(len(s["tiles"])):
                normalise(s, c, t, 0)
                project_keys(s, c, t, layer, b)
                project_values(s, c, t, layer, b)
            for t in range(0 if last else len(s["tiles"])):
                if len(s["tiles"]) > 1:
                    normalise(s, c, t, 0)
                fetch_chunk(s, c, 0)
                project_queries(s, c, t)
                drain(s, c)
                attention(s, c, t)
                project_out(s, c, t)
                normalise(s, c, t, 3)
                feed_forward(s, c, t)
        drain(s, c)
        if s["ring"] == 0 and core == 0:  # both cores of a pair hold the same
            nisa.dma_copy(dst=out[b], src=c["x"])


def normalise(s, c, t, first):
    """h = rms_norm(x) * (1 + scale) + shift of token tile t; `first`: 0 attention, 3 MLP."""
    start, columns = s["tiles"][t]
    make_temporaries(s, c)
    c["h"] = nl.ndarray((LANE, s["across"], s["columns"]), dtype=c["weight_dtype"], name="h")
    total = next_of(c, "bank")[:, 0:columns]
    for d in range(s["across"]):
        square = next_of(c, "narrow")[:, 0:columns]
        nisa.activation(dst=square, op=nl.square, data=c["x"][:, d, start : start + columns])
        nisa.nc_matmul(dst=total, stationary=c["ones"], moving=square, accumulate=d > 0)
    inverse = inverse_rms(c, total, s["dim"], columns)
    for d in range(s["across"]):
        scaled = next_of(c, "wide")[:, 0:columns]
        nisa.tensor_tensor(
            dst=scaled, data1=c["x"][:, d, start : start + columns], data2=inverse, op=nl.multiply
        )
        nisa.tensor_scalar(
            dst=c["h"][:, d, 0:columns], data=scaled,
            op0=nl.multiply, operand0=c["modulation"][:, first + 1, d : d + 1],
            op1=nl.add, operand1=c["modulation"][:, first, d : d + 1], engine=nisa.engine.scalar,
        )  # fmt: skip


def add_to_residual(s, c, t, d, partial, gate):
    """x += gate * partial, one 128 of features; on several ranks `reduce_partials` comes first."""
    start, columns = s["tiles"][t]
    x = c["x"][:, d, start : start + columns]
    nisa.scalar_tensor_tensor(
        dst=x, data=partial, op0=nl.multiply, operand0=c["modulation"][:, gate, d : d + 1],
        op1=nl.add, operand1=x,
    )  # fmt: skip


def project(s, c, t, kind, source, gate):
    """x += gate * (source @ W), features on partitions."""
    columns = s["tiles"][t][1]
    if s["ranks"] > 1:
        c["shares"] = nl.ndarray((LANE, s["across"], columns), dtype=c["dtype"], name="shares")
    for first, count in s["split"][kind]:
        w = next_block(s, c, kind, count)
        for i in range(count):
            bank = next_of(c, "bank")[:, 0:columns]
            contract(s, bank, w[:, i], source[:, :, 0:columns], s["depth"][kind])
            if s["ranks"] > 1:
                nisa.tensor_copy(dst=c["shares"][:, first + i], src=bank)
            else:
                add_to_residual(s, c, t, first + i, bank, gate)
    if s["ranks"] > 1:
        reduce_partials(s, c, t, c["shares"], gate)


def reduce_partials(s, c, t, mine, gate):
    """x += gate * the sum of the ranks' shares.

    Two cores that act as one exchange them by sendrecv; others by an all-reduce in HBM.
    """
    columns = s["tiles"][t][1]
    if s["cores"] == 2:
        other = 1 - nl.program_id(0)
        theirs = nl.ndarray((LANE, s["across"], columns), dtype=c["dtype"], name="theirs")
        nisa.sendrecv(src=mine, dst=theirs, send_to_rank=other, recv_from_rank=other, pipe_id=0)
        for d in range(s["across"]):  # in float32: the sum of two shares is not rounded once more
            both = nl.ndarray((LANE, columns), dtype=nl.float32, name="both")
            nisa.tensor_tensor(dst=both, data1=mine[:, d], data2=theirs[:, d], op=nl.add)
            add_to_residual(s, c, t, d, both, gate)
    else:
        shape = (LANE, s["across"], columns)
        share = nl.ndarray(shape, dtype=c["dtype"], buffer=nl.hbm, name="share")
        total = nl.ndarray(shape, dtype=c["dtype"], buffer=nl.hbm, name="total")
        nisa.dma_copy(dst=share, src=mine)
        group = nccl.ReplicaGroup([list(range(s["ranks"]))])
        nccl.all_reduce(srcs=[share], dsts=[total], replica_group=group, op=nl.add)
        nisa.dma_copy(dst=mine, src=total)
        for d in range(s["across"]):
            add_to_residual(s, c, t, d, mine[:, d], gate)


def project_out(s, c, t):
    """x += gate * (attended @ Wout)."""
    project(s, c, t, "out", c["attended"], 2)


def feed_forward(s, c, t):
    """x += gate * (gelu(h @ Wup) @ Wdown)."""
    columns = s["tiles"][t][1]
    hidden = nl.ndarray((LANE, s["inner"], columns), dtype=c["weight_dtype"], name="hidden")
    for first, count in s["split"]["up"]:
        w = next_block(s, c, "up", count)
        for i in range(count):
            bank = next_of(c, "bank")[:, 0:columns]
            contract(s, bank, w[:, i], c["h"][:, :, 0:columns], s["across"])
            nisa.activation(
                dst=hidden[:, first + i], op=nl.gelu_apprx_tanh, data=bank,
                scale=c["scales"][:, 6:7],
            )  # fmt: skip
    project(s, c, t, "down", hidden, 5)
