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

PE_CLOCK = 2.4e9  # of the chip that it was fitted to
FIRST_NS = 17_340.0  # that the first layer takes more than each of the others
LAYER_NS = {
    "tile": 3234.0,
    "tile of a head": 1725.0,
    "chunk": 747.9,
    "token": 35.94,
    "normed": 4.149,
    "projected": 0.3269,
    "hidden": 0.4969,
    "attended": 1.117,
    "own": 2.103,
    "weights": 64.59,
    "pieces": 228.7,
    "slot": 1016.0,
    "written again": 1699.0,
    "meeting": 36300.0,
    "sent": 5.094,
}
"""Nanoseconds of each of `amounts` in a layer."""


def amounts(s: Shapes) -> dict[str, float]:
    """What one core has to do in a layer, by the names of `LAYER_NS`. Lengths are in lanes."""
    across, inner = s.dim // LANE, s.mlp / LANE
    own, tiles = -(-s.tokens // LANE), len(s.token_tiles)
    pieces = -(-s.ageless // LANE) + s.slots * own
    chunks = tiles * (len(s.buffer_chunks) + -(-own // s.buffering[0]))
    stores = 2 * sum((count >= LANE) + (count % LANE > 0) for _, count in s.token_tiles)
    return {
        "tile": tiles,
        "tile of a head": tiles * s.heads,
        "chunk": chunks,
        "token": s.tokens,
        "normed": s.tokens * across,
        "projected": s.tokens * across * s.heads,
        "hidden": s.tokens * across * inner,
        "attended": s.tokens * s.heads * pieces,
        "own": s.tokens * s.heads * own,
        "weights": across * (4 * s.heads + 2 * inner) * tiles,
        "pieces": s.heads * pieces,
        "slot": s.slots,
        "written again": stores * (s.places - 1),
        "meeting": tiles * (s.ranks > 1),
        "sent": s.tokens * across * (s.ranks - 1) / s.ranks,
    }


def stacks_seconds(shapes: list[StackShape], chip: Chip, ranks: int = 1) -> np.ndarray:
    """Seconds of stacks that so many cores share, infinity where the kernel refuses.

    The form is a Trainium2's; other chips are taken to differ by the clock of their tensor engine.
    """
    return np.array([_seconds(shape, chip, ranks) for shape in shapes])


def _seconds(shape: StackShape, chip: Chip, ranks: int) -> float:
    if shape.weight_dtype:
        return np.inf  # it is of bfloat16 alone
    try:
        mine = share(shape, ranks, sbuf_bytes=int(chip["sbuf_bytes_per_partition"]))
    except NotImplementedError:
        return np.inf
    layer = sum(LAYER_NS[name] * amount for name, amount in amounts(mine).items())
    layers: float = shape.layers
    if mine.ring:  # of the last layer keys and values alone
        layers -= 1 - 2 * mine.heads * LANE / (4 * mine.heads * LANE + 2 * mine.mlp)
    return (FIRST_NS + layers * layer) * 1e-9 * PE_CLOCK / chip["pe_clock"]
