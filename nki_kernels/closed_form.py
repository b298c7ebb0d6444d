"""A closed form of the megakernel's timeline on a Trainium2: for searches, which ask for thousands.

Fitted to the simulator's timelines of random stacks on 1 to 16 cores by
`python -m benchmarks.closed_form_trn2`; `tests/nki_kernels/test_closed_form.py` holds it to
timelines of others. The planner takes the timeline itself.
"""

from __future__ import annotations

import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape
from nki_kernels.plan import LANE, Shapes
from nki_kernels.sharing import share

PE_CLOCK = 2.4e9  # of the chip that it was fitted to,
HBM_BYTES_PER_NS = 318.0  # and its bandwidth
PLAIN_VECTOR = 1.25  # as much longer where the vector engine is no faster in bfloat16: on a trn1
FIRST_NS = 18_584.6  # that the first layer takes more than each of the others
LAYER_NS = {
    "tile": 1323.0,
    "tile in eight bits": 3876.0,
    "tile of a head": 1347.0,
    "chunk": 1302.0,
    "token": 44.32,
    "normed": 2.706,
    "projected": 1.529,
    "projected in eight bits": 0.9713,
    "hidden": 0.751,
    "hidden in eight bits": 0.4406,
    "attended": 1.004,
    "attended in a second part": 0.8472,
    "own": 1.429,
    "weights": 16.74,
    "waited for weights": 0.6019,
    "pieces": 199.1,
    "slot": 812.2,
    "written again": 1729.0,
    "meeting": 35690.0,
    "sent": 5.754,
}
"""Nanoseconds of each of `amounts` in a layer."""


def amounts(s: Shapes) -> dict[str, float]:
    """What one core has to do in a layer, by the names of `LAYER_NS`. Lengths are in lanes."""
    across, inner = s.dim // LANE, s.mlp / LANE
    own, tiles = -(-s.tokens // LANE), len(s.token_tiles)
    pieces = -(-s.ageless // LANE) + s.slots * own
    chunks = tiles * (len(s.buffer_chunks) + -(-own // s.buffering[0]))
    stores = 2 * sum((count >= LANE) + (count % LANE > 0) for _, count in s.token_tiles)
    heads = s.parts * (s.heads + s.asked) / 2  # in lanes, of the four projections, on average
    projected, hidden = s.tokens * across * heads, s.tokens * across * inner
    weights = across * (4 * heads + 2 * inner)
    eight = bool(s.weight_dtype)
    fetched = weights * tiles * LANE * LANE * s.weight_itemsize / HBM_BYTES_PER_NS
    multiplied = weights * s.tokens / (2 if eight else 1) / (PE_CLOCK * 1e-9)
    return {
        "tile": tiles,
        "tile in eight bits": tiles * eight,
        "tile of a head": tiles * heads,
        "chunk": chunks,
        "token": s.tokens,
        "normed": s.tokens * across,
        "projected": projected * (not eight),
        "projected in eight bits": projected * eight,
        "hidden": hidden * (not eight),
        "hidden in eight bits": hidden * eight,
        "attended": s.tokens * s.asked * pieces,
        "attended in a second part": s.tokens * s.asked * (s.parts - 1) * (pieces + own),
        "own": s.tokens * s.asked * own,
        "weights": weights * tiles * (not eight),
        "waited for weights": max(0.0, fetched - multiplied),
        "pieces": s.heads * s.parts * pieces,
        "slot": s.slots,
        "written again": stores * (s.places - 1),
        "meeting": tiles * (s.ranks > 1),
        "sent": s.tokens * across * (s.ranks - 1) / s.ranks,
    }


def stacks_seconds(shapes: list[StackShape], chip: Chip, ranks: int = 1) -> np.ndarray:
    """Seconds of stacks that so many cores share, infinity where the kernel refuses.

    The form is a Trainium2's; other chips are taken to differ by the clock of their tensor engine,
    and by whether their vector engine has a faster way with bfloat16.
    """
    return np.array([_seconds(shape, chip, ranks) for shape in shapes])


def _seconds(shape: StackShape, chip: Chip, ranks: int) -> float:
    try:
        mine = share(shape, ranks, sbuf_bytes=int(chip["sbuf_bytes_per_partition"]))
    except NotImplementedError:
        return np.inf
    layer = sum(LAYER_NS[name] * amount for name, amount in amounts(mine).items())
    layers: float = shape.layers
    if mine.ring:  # of the last layer keys and values alone
        matrices = 2 * (mine.heads + mine.asked) * mine.head + 2 * mine.mlp
        layers -= 1 - 2 * mine.width / matrices
    slower = PE_CLOCK / chip["pe_clock"]
    if chip["dve_copy_bf16"] >= chip["dve_copy_fp32"]:
        slower *= PLAIN_VECTOR
    return (FIRST_NS + layers * layer) * 1e-9 * slower
