"""A closed form of the megakernel's timeline on a Trainium2: for searches, which ask for thousands.

Fitted to the simulator's timelines of 350 random stacks; `tests/nki_kernels/test_closed_form.py`
holds it to timelines of others. The planner takes the timeline itself.
"""

from __future__ import annotations

import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.stack import StackShape
from nki_kernels.plan import LANE, TOKENS, share

PE_CLOCK = 2.4e9  # of the chip that it was fitted to
FIRST_NS = 10_000.0  # that the first layer takes more than each of the others
LAYER_NS = {
    "one": 14100.0,
    "token": 31.1,
    "projected": 0.793,
    "hidden": 0.264,
    "attended": 1.32,
    "own": 4.27,
    "weights": 72.0,
    "pieces": 67.0,
    "heads": 179.0,
    "piece": 98.6,
    "slot": 1080.0,
}
"""Nanoseconds of each of `amounts` in a layer."""


def amounts(s: StackShape) -> dict[str, float]:
    """What one rank has to do in a layer, by the names of `LAYER_NS`. Lengths are in lanes."""
    across, inner = s.dim // LANE, s.mlp / LANE
    own, tiles = -(-s.tokens // LANE), -(-s.tokens // TOKENS)
    pieces = -(-s.ageless // LANE) + s.slots * own
    return {
        "one": 1,
        "token": s.tokens,
        "projected": s.tokens * across * s.heads,
        "hidden": s.tokens * across * inner,
        "attended": s.tokens * s.heads * pieces,
        "own": s.tokens * s.heads * own,
        "weights": across * (4 * s.heads + 2 * inner) * tiles,
        "pieces": s.heads * pieces,
        "heads": s.heads,
        "piece": pieces,
        "slot": s.slots,
    }


def stacks_seconds(shapes: list[StackShape], chip: Chip) -> np.ndarray:
    """Seconds of stacks on one core each, infinity where the kernel refuses.

    The form is a Trainium2's; other chips are taken to differ by the clock of their tensor engine.
    """
    return np.array([_seconds(shape, chip) for shape in shapes])


def _seconds(shape: StackShape, chip: Chip) -> float:
    if shape.weight_dtype:
        return np.inf  # it is of bfloat16 alone
    try:
        share(shape, sbuf_bytes=int(chip["sbuf_bytes_per_partition"]))
    except NotImplementedError:
        return np.inf
    found = amounts(shape)
    layer = sum(LAYER_NS[name] * amount for name, amount in found.items())
    return (FIRST_NS + shape.layers * layer) * 1e-9 * PE_CLOCK / chip["pe_clock"]
