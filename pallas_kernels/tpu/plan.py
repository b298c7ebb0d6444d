"""How a denoise stack is cut into tiles for a chip: its shape, the choice, and what that keeps in
VMEM.

Dimensions are those of `lsd_jax.types`; beside them R rows of the residual stream: B * T, and those
that fill each session's up to whole tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd, prod

import numpy as np

from lsd_jax.hw.stack import StackShape as Shape

LANES, SUBLANES = 128, 8  # of a vector register
TURNED_QUERIES, TURNED_KEYS = 512, 512  # of a block, and of a piece at most: of fewer, products
# wait for weights, and weights for products


@dataclass(frozen=True)
class Buffer:
    """An array in VMEM."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Size with the two minor axes padded to whole tiles of (8 sublanes x 4 bytes) x 128."""
        itemsize = np.dtype(self.dtype).itemsize
        *major, rows, lanes = self.shape
        return prod(major) * up(rows, 32 // itemsize) * up(lanes, LANES) * itemsize


@dataclass(frozen=True)
class Plan:
    """The tiles of a kernel.

    Weights and remembered keys stream through two rings: one holds groups of `group` heads of keys
    and values, with the query heads that share them (their columns of the projections, their rows
    of the output projection, their keys and values), the other `chunk` features of the MLP. `ahead`
    tiles of each are in VMEM at once.

    Each of several `chips` has all rows of the residual stream, and adds up the chips' shares in
    `owned` of them. So has each of several `cores` of one chip, and adds them up in all rows.

    Tokens that are no whole tiles are filled up in VMEM with rows that no token sees; nothing in
    HBM knows of them.
    """

    shape: Shape  # of this chip's or core's share, where there are several
    group: int  # heads of a tile, of keys and values
    chunk: int  # MLP features of a tile
    rows: int  # of the residual stream, in one matrix product
    queries: int  # of one session, against all keys
    turned: bool = False  # whether logits have queries along the lanes, see `softmax.py`
    ahead: int = 2  # tiles that a ring holds: one in use, the others on their way
    chips: int = 1  # that share each layer's heads and MLP features
    filled: int = 0  # rows beside the tokens of a session, see `filling`
    cores: int = 1  # of the one chip, that share likewise

    @property
    def groups(self) -> int:
        """Tiles of heads in a layer."""
        return self.shape.heads // self.group

    @property
    def chunks(self) -> int:
        """Tiles of the MLP in a layer."""
        return self.shape.mlp // self.chunk

    @property
    def session_rows(self) -> int:
        """Rows of a session: its tokens, and what fills them up."""
        return self.shape.tokens + self.filled

    @property
    def all_rows(self) -> int:
        """Rows of the residual stream."""
        return self.shape.sessions * self.session_rows

    @property
    def blocks(self) -> int:
        """Of rows."""
        return self.all_rows // self.rows

    @property
    def sharers(self) -> int:
        """Chips, or cores of one, that share each layer."""
        return self.chips * self.cores

    @property
    def owned(self) -> int:
        """Rows in which one chip adds up what all chips add to the residual stream."""
        return self.all_rows // self.chips

    @property
    def piece(self) -> int:
        """Rows that are offered at once to the chip that adds them up."""
        return min(self.rows, self.owned)

    @property
    def several(self) -> bool:
        """Whether a share is the sum of several tiles."""
        return (self.groups > 1) | (self.chunks > 1)

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """The keys that attention takes at once, in its order, whole slots or equal parts of them:
        a slot's number, the first of the part, and how many they are. Slot -2 is a session's own
        frame, -1 are the keys without an age."""
        s, own = self.shape, self.session_rows
        most = TURNED_KEYS if self.turned else s.keys + own
        sizes = [(-2, own), (-1, s.ageless), *((slot, s.tokens) for slot in range(s.slots))]
        return [(slot, *part) for slot, size in sizes for part in parts(size, most)]

    def tiles(self, ring: str) -> int:
        """Tiles of a ring in a layer."""
        return self.groups if ring == "heads" else self.chunks

    @property
    def whole_layers(self) -> int:
        """All layers of a pass; all but the last where only keys and values are wanted, for a
        frame's places in the buffer."""
        return self.shape.layers - (self.shape.places > 0)

    def all_tiles(self, ring: str) -> int:
        """Tiles of a ring in a pass."""
        return self.tiles(ring) * (self.shape.layers if ring == "heads" else self.whole_layers)

    def due(self, ring: str, layer: int, tile: int) -> tuple[int, int] | None:
        """The tile that takes this one's place in its ring, or None where the pass ends first."""
        due = layer * self.tiles(ring) + tile + self.ahead
        return divmod(due, self.tiles(ring)) if due < self.all_tiles(ring) else None

    def window(self, start: int, size: int) -> tuple[int, int]:
        """The whole tiles in which keys of the buffer lie: where they begin, and how many keys they
        hold, fewer only where the buffer ends."""
        tile = sublanes(self.shape)
        first = start // tile * tile
        return first, min(up(start + size, tile), self.shape.keys) - first

    @cached_property
    def buffers(self) -> dict[str, Buffer]:
        """What the kernel keeps in VMEM, by name; the leading axis of a ring is its slot."""
        s, k, ring, rows = self.shape, self.shape.head_dim, self.ahead, self.all_rows
        group, asked = self.group, self.group * self.shape.per_kv
        ages = Buffer((s.layers, s.ages, s.heads * self.cores, k), "float32")
        weights = s.weight_dtype or s.dtype
        kept = {
            "x": Buffer((rows, s.dim), "float32"),
            "cos": Buffer((larger(self.rows, self.session_rows), k), "float32"),
            "sin": Buffer((larger(self.rows, self.session_rows), k), "float32"),
            "q_scale": Buffer((s.layers, k), "float32"),
            "k_scale": Buffer((s.layers, k), "float32"),
            "age_k": ages,
            "age_v": ages,
            "h": Buffer((self.blocks, self.rows, s.dim), weights),  # each in tiles of its own
            "q": Buffer((asked, rows, k), s.dtype),
            "k_new": Buffer((s.heads, rows, k), s.dtype),
            "v_new": Buffer((s.heads, rows, k), s.dtype),
            "attended": Buffer((rows, asked * k), s.dtype),
            "qkv": Buffer((ring, s.per_kv + 2, group, s.dim, k), weights),
            "out": Buffer((ring, group, s.per_kv * k, s.dim), weights),
            "k": Buffer((ring, s.sessions, group, s.keys, k), s.dtype),
            "v": Buffer((ring, s.sessions, group, s.keys, k), s.dtype),
            "up": Buffer((self.ahead, s.dim, self.chunk), weights),
            "down": Buffer((self.ahead, self.chunk, s.dim), weights),
        }
        if np.any(self.turned):
            kept["bias"] = Buffer((s.sessions, s.keys * self.turned, LANES), "float32")
        if s.weight_dtype:
            kept["h_scale"] = Buffer((rows, 1), "float32")
        if self.sharers > 1:
            summed = larger(8, rows * self.several)  # a single tile's share is offered at once
            kept |= {
                "share": Buffer((summed, s.dim), "float32"),
                "offered": Buffer((rows, s.dim), s.dtype),
            }
        if self.chips > 1:
            kept |= {
                "inbox": Buffer((self.chips, self.owned, s.dim), s.dtype),
                "total": Buffer((rows, s.dim), s.dtype),
            }
        elif self.cores > 1:
            kept["inbox"] = Buffer((rows, s.dim), s.dtype)
        return kept

    @cached_property
    def arguments(self) -> dict[str, Buffer]:
        """The small operands and the results that lie in VMEM whole."""
        s = self.shape
        heads = s.heads * self.cores  # whole on each core
        ages = Buffer((s.layers, s.ages, heads, s.head_dim), s.dtype)
        table = Buffer((s.tokens, s.head_dim // 2), "float32")
        scales = {
            "qkv_scale_in": Buffer((s.layers, s.per_kv + 2, heads, s.head_dim), "float32"),
            "out_scale_in": Buffer((s.layers, s.dim), "float32"),
            "up_scale_in": Buffer((s.layers, s.mlp * self.cores), "float32"),
            "down_scale_in": Buffer((s.layers, s.dim), "float32"),
        }
        x = Buffer((s.sessions, s.tokens, s.dim), s.dtype)
        given = scales if s.weight_dtype else {}
        if self.sharers == 1:  # else it comes and goes by way of `offered`
            given |= {"x_in": x, "x_out": x}
        return given | {
            "bias_in": Buffer((s.sessions, 1, s.keys), "float32"),
            "modulation_in": Buffer((s.layers, s.modulations, 6, s.dim), s.dtype),
            "cos_in": table,
            "sin_in": table,
            "q_scale_in": Buffer((s.layers, s.head_dim), s.dtype),
            "k_scale_in": Buffer((s.layers, s.head_dim), s.dtype),
            "age_k_in": ages,
            "age_v_in": ages,
        }

    @property
    def vmem_bytes(self) -> int:
        """What the kernel asks of VMEM by name; the compiler adds its temporaries."""
        return sum(b.bytes for b in (*self.buffers.values(), *self.arguments.values()))

    def describe(self) -> str:
        """The choice in a line."""
        sharers = f"{self.cores} cores" if self.cores > 1 else f"{self.chips} chips"
        shared = f"{sharers}, each " if self.sharers > 1 else ""
        across = " along the lanes" if self.turned else ""
        tokens, rows = self.shape.tokens, self.session_rows
        filled = f"{tokens:,} tokens filled up to {rows:,} rows, " if self.filled else ""
        return (
            f"{shared}{self.groups} x {self.group} heads, "
            f"{self.chunks} x {self.chunk} MLP features, {self.ahead} tiles ahead, "
            f"{filled}blocks of {self.rows} rows and {self.queries} queries{across}, "
            f"{self.vmem_bytes / 1e6:.1f} MB of VMEM"
        )


def sublanes(shape: Shape) -> int:
    """Rows of a tile of activations."""
    return 32 // shape.itemsize


def filling(shape: Shape, chips: int = 1) -> int:
    """Rows beside the tokens of a session, so that all rows are whole tiles for each of so many
    chips: the fewest."""
    return -shape.tokens % (sublanes(shape) * chips // gcd(chips, shape.sessions))


def parts(size: int, most: int, tile: int = 1) -> list[tuple[int, int]]:
    """The first of each of the fewest equal parts of `size`, of whole tiles and none of more than
    `most`, and how many are in it."""
    each = next((n for n in range(min(size, most), 0, -1) if size % n == n % tile == 0), size)
    return [(first, each) for first in range(0, size, each or 1)]


def larger(a, b):
    """Of two numbers, or of each two of arrays."""
    return np.maximum(a, b) if np.ndim(a) or np.ndim(b) else max(a, b)


def up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
