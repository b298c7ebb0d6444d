"""The megakernel's queries, keys and values: projected, normed, rotated, and on their way to HBM.

A head is one or two parts of 128 features, each an output tile of its own. The halves that a
rotation mixes are one part, exchanged by a product, or two, which need none.
"""

from __future__ import annotations

from nki_kernels._compat import nisa, nl
from nki_kernels.plan import LANE, SECOND
from nki_kernels.tiles import (
    contract,
    inverse_rms,
    make_temporaries,
    next_block,
    next_of,
    transpose_bank,
)


def project_heads(s, c, t, kind, scale, dst, at):
    """`dst[:, part of a head, at : at + columns]` = rotate(rms_norm(h @ W) * scale), head by head.

    The next head's matmuls stand before this head's norm, so TensorE need not wait for it.
    """
    columns = s["tiles"][t][1]
    make_temporaries(s, c)
    parts, finished = [], 0
    for first, count in s["split"][kind]:
        w = next_block(s, c, kind, count)
        for i in range(count):
            raw = next_of(c, "bank")[:, 0:columns]
            contract(s, raw, w[:, i], c["h"][:, :, 0:columns], s["across"])
            square, scaled = next_of(c, "narrow")[:, 0:columns], next_of(c, "narrow")[:, 0:columns]
            of_matrix = c["scales"][:, scale + 3 : scale + 4]
            learned = scale + SECOND * ((first + i) % s["parts"])
            nisa.activation(dst=square, op=nl.square, data=raw, scale=of_matrix)
            nisa.tensor_scalar(
                dst=scaled,
                data=raw,
                op0=nl.multiply,
                operand0=c["scales"][:, learned : learned + 1],
            )
            parts.append((square, scaled))
            if len(parts) == finished + 2 * s["parts"]:
                finish_head(s, c, t, parts, finished, dst, at)
                finished += s["parts"]
    finish_head(s, c, t, parts, finished, dst, at)


def finish_head(s, c, t, parts, first, dst, at):
    """The norm and rotation of the head whose parts, (squares, scaled values), begin at `first`."""
    start, columns = s["tiles"][t]
    total = next_of(c, "bank")[:, 0:columns]
    for i in range(s["parts"]):
        nisa.nc_matmul(
            dst=total, stationary=c["ones"], moving=parts[first + i][0], accumulate=i > 0
        )
    if s["parts"] == 1:
        turned = next_of(c, "bank")[:, 0:columns]
        nisa.nc_matmul(
            dst=turned, stationary=c["rotation"], moving=parts[first][1], accumulate=False
        )
        turns = [(parts[first][1], turned, nl.add)]
    else:  # its halves are tiles of their own
        low, high = parts[first][1], parts[first + 1][1]
        turns = [(low, high, nl.subtract), (high, low, nl.add)]
    inverse = inverse_rms(c, total, s["head"], columns)
    cos, sin = c["cos"][:, start : start + columns], c["sin"][:, start : start + columns]
    for i in range(s["parts"]):
        scaled, turned, op = turns[i]
        a, b = next_of(c, "narrow")[:, 0:columns], next_of(c, "narrow")[:, 0:columns]
        nisa.tensor_tensor(dst=a, data1=scaled, data2=cos, op=nl.multiply)
        nisa.tensor_tensor(dst=b, data1=turned, data2=sin, op=nl.multiply)
        nisa.tensor_tensor(dst=a, data1=a, data2=b, op=op)
        nisa.tensor_tensor(
            dst=dst[:, first + i, at : at + columns], data1=a, data2=inverse, op=nl.multiply
        )


def project_queries(s, c, t):
    """Queries of token tile t; what is attended to takes their place, if it has their dtype."""
    shape = (LANE, s["asked"] * s["parts"], s["columns"])
    c["q"] = nl.ndarray(shape, dtype=c["dtype"], name="q")
    c["attended"] = c["q"]
    if s["eight"]:
        c["attended"] = nl.ndarray(shape, dtype=c["weight_dtype"], name="attended")
    project_heads(s, c, t, "q", 0, c["q"], 0)


def project_keys(s, c, t, layer, b):
    """Keys of token tile t: kept in SBUF for attention, and stored with tokens in rows."""
    start, _ = s["tiles"][t]
    lanes = s["lanes"][t]
    rows = nl.ndarray((LANE, len(lanes), s["width"]), dtype=c["dtype"], name="rows")
    project_heads(s, c, t, "k", 1, c["keys"], start)
    per = c["half"] // LANE
    for i in range(len(lanes)):
        at, count = lanes[i]
        for first in range(0, s["heads"] * s["parts"], per):
            last = min(first + per, s["heads"] * s["parts"])
            bank = transpose_bank(c)
            for part in range(first, last):
                nisa.nc_transpose(
                    dst=bank[0:count, (part - first) * LANE : (part - first + 1) * LANE],
                    data=c["keys"][:, part, start + at : start + at + count],
                )
            nisa.tensor_copy(
                dst=rows[0:count, i, first * LANE : last * LANE],
                src=bank[0:count, 0 : (last - first) * LANE], engine=nisa.engine.scalar,
            )  # fmt: skip
    drain(s, c)
    c["pending"] += [(t, c["k_to"], layer, b, rows)]


def project_values(s, c, t, layer, b):
    """Values of token tile t, tokens on partitions: beside their ones in SBUF, and stored."""
    start, _ = s["tiles"][t]
    own = [piece for piece in s["own"] if start <= piece[1] < start + s["tiles"][t][1]]
    rows = nl.ndarray((LANE, len(own), s["width"]), dtype=c["dtype"], name="rows")
    for first, count in s["split"]["v"]:
        w = next_block(s, c, "v", count)
        for i in range(len(own)):
            at, n = own[i][1] - start, own[i][2]
            bank = next_of(c, "bank")[0:n, 0 : count * LANE]
            contract(s, bank, c["h"][:, :, at : at + n], w, s["across"])
            nisa.tensor_scalar(
                dst=rows[0:n, i, first * LANE : (first + count) * LANE], data=bank,
                op0=nl.multiply, operand0=c["scales"][0:n, 5:6], engine=nisa.engine.scalar,
            )  # fmt: skip
    for i in range(len(own)):
        number, _, n = own[i]
        nisa.tensor_copy(
            dst=c["values"][0:n, number, :, 0 : s["head"]],
            src=rows[0:n, i].reshape((n, s["heads"], s["head"])),
        )
    drain(s, c)
    c["pending"] += [(t, c["v_to"], layer, b, rows)]


def drain(s, c):
    """Sends the keys and values that are pending on their way to HBM.

    Nothing in the kernel reads them there, and their rows in SBUF are used once. They go when the
    next projection is done, and so are ready by then: what is fetched after them need not wait.
    """
    for t, to, layer, b, rows in c["pending"]:
        store(s, c, t, to, layer, b, rows)
    c["pending"] = []


def store(s, c, t, to, layer, b, rows):
    """Sends the keys or values of token tile t to `to [L, B, N, cores * W]`, from `starts` on where
    that is the ring.

    Full lanes go together: a place known at run time may be any to whoever orders DMAs, so that
    each of them waits for the one before.
    """
    start, columns = s["tiles"][t]
    width = s["cores"] * s["width"]
    plane = (layer * s["sessions"] + b) * (s["ring"] if s["ring"] > 0 else s["tokens"])
    full = columns // LANE
    parts = [(0, full, LANE)] if full > 0 else []
    if columns % LANE > 0:
        parts.append((full, 1, columns % LANE))
    for lane, lanes, count in parts:
        pattern = [[width, count], [LANE * width, lanes], [1, s["width"]]]
        first = (plane + start + lane * LANE) * width + nl.program_id(0) * s["width"]
        src = rows[0:count, lane : lane + lanes]
        if s["ring"] == 0:
            nisa.dma_copy(dst=to.ap(pattern=pattern, offset=first), src=src, name="store")
        else:
            for i in range(b * s["places"], (b + 1) * s["places"]):
                place = to.ap(
                    pattern=pattern, offset=first, scalar_offset=c["starts"][0:1, i : i + 1],
                    indirect_dim=2,
                )  # fmt: skip
                nisa.dma_copy(dst=place, src=src, name="store")
