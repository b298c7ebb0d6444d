"""Which weights are matrices, and along which axes: for Muon, sparsity and quantisation."""

from __future__ import annotations

from typing import NamedTuple


class Matrix(NamedTuple):
    """The axes along which a product sums, and those of its result; every other axis counts
    matrices."""

    summed: tuple[int, ...]
    result: tuple[int, ...]


ROWS, STACKED = Matrix((0,), (1,)), Matrix((1,), (2,))
CONVOLUTION = Matrix((0, 1, 2), (3,))  # from all that it sees to its features

# The text encoder's blocks are six matrices end to end, taken as one. Left out, since they are
# small or no matrices: position and age tables, scales, the modulation's weights, the last layer.
MATRICES: dict[tuple[str, ...], Matrix] = {
    ("embed",): ROWS,
    ("stack", "qkv"): Matrix((1,), (3, 4)),
    ("stack", "out"): Matrix((1, 2), (3,)),
    ("stack", "up"): STACKED,
    ("stack", "down"): STACKED,
    ("readout", "coarse"): ROWS,
    ("readout", "film"): ROWS,
    ("readout", "gather"): ROWS,
    ("readout", "around"): CONVOLUTION,
    ("readout", "enter"): CONVOLUTION,
    ("readout", "mix"): CONVOLUTION,
    ("conditioner", "text", "words"): STACKED,
    ("conditioner", "text", "blocks"): STACKED,
    ("conditioner", "reference", "embed"): ROWS,
    ("conditioner", "reference", "mix"): ROWS,
    ("conditioner", "project"): Matrix((1,), (3, 4)),
} | {
    ("conditioner", encoder, "pool", weight): ROWS
    for encoder in ("text", "reference")
    for weight in ("k", "v", "out")
}
"""By the path of the weight in the nested dicts of parameters."""
