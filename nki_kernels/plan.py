"""How the megakernel cuts its work: token tiles, key pieces, weight blocks. Shapes only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lsd_jax.hw.stack import StackShape

LANE = 128  # partitions, and the contraction of one matmul
TOKENS = 512  # columns of one matmul, one PSUM bank of float32
KINDS = ("k", "v", "q", "out", "up", "down")
SMALLEST_BLOCK = 4096  # bytes a partition, which keep DMA efficient
FP8 = "float8_e4m3"
SECOND = 7  # columns of the scales from a head's first part to its second


class TooLarge(NotImplementedError):
    """What the chip has no room for: fewer heads or tokens of the same sizes would fit."""


@dataclass(frozen=True)
class Piece:
    """Up to 128 keys of one frame slot (or of none: slot -1): `start`, `start + step`, ..."""

    start: int
    count: int
    slot: int
    step: int


@dataclass(frozen=True)
class Shapes:
    """Sizes of one call: letters as in `lsd_jax.types`; heads (of keys and values) and mlp are one
    rank's share."""

    layers: int
    sessions: int
    tokens: int
    dim: int
    heads: int
    mlp: int
    ageless: int  # keys in front of the frame slots: pinned, and memory
    slots: int
    ages: int
    itemsize: int = 2  # bytes of the compute dtype
    ranks: int = 1  # that share the heads and the MLP
    cores: int = 1  # 2: the ranks are two cores that act as one (LNC), and share their HBM
    sbuf_bytes: int = 208 * 1024  # a partition
    weight_dtype: str = ""  # of the matrices, and of what they are multiplied by: FP8, or empty
    ring: int = 0  # keys of the buffer that the frame's go into; 0: they are given back
    places: int = 1  # of the ring that they are written to
    per_kv: int = 1  # query heads to each head of keys and values
    parts: int = 1  # of 128 features, that a head is: 1 or 2

    @property
    def asked(self) -> int:
        """Query heads; those of one head of keys and values are neighbours."""
        return self.per_kv * self.heads

    @property
    def head(self) -> int:
        """Features of a head."""
        return self.parts * LANE

    @property
    def width(self) -> int:
        """Features of a rank's keys, and of its values."""
        return self.heads * self.head

    @property
    def scales(self) -> int:
        """Columns of a layer's scales: those of the kernel's docstring, and of second parts two."""
        return SECOND + 2 * (self.parts - 1)

    @property
    def weight_itemsize(self) -> int:
        """Bytes of a weight, and of an activation that is multiplied by one."""
        return 1 if self.weight_dtype else self.itemsize

    def check(self, head_dim: int) -> None:
        """Raises NotImplementedError, naming the nearest size that works, or TooLarge."""
        if head_dim not in (LANE, 2 * LANE):
            raise NotImplementedError(
                f"head_dim={head_dim}: the NKI kernel takes heads of {LANE}, as wide as the tensor "
                f"engine, and of {2 * LANE}; set model.head_width to one of them"
            )
        for name in ("dim", "mlp"):
            size = getattr(self, name)
            if size % LANE:
                nearest = max(LANE, round(size / LANE) * LANE)
                raise NotImplementedError(
                    f"{name}={size} is no multiple of {LANE}; the nearest that works is {nearest}"
                )
        if self.ages > LANE:
            raise NotImplementedError(f"window={self.ages - 1}: at most {LANE - 1} works")
        if (pairs := self.heads * self.slots) > (most := TOKENS // self.parts):
            raise TooLarge(f"{pairs} head-slot pairs; at most {most} work")
        if self.heads < 1:
            raise NotImplementedError("a rank needs at least one head; use fewer ranks")

    @property
    def stack(self) -> StackShape:
        """One rank's share of the seam."""
        return StackShape(
            self.sessions, self.tokens, self.dim, self.layers, self.heads, self.head, self.mlp,
            self.ageless, self.slots, self.ages, 1, "bfloat16" if self.itemsize == 2 else "float32",
            self.weight_dtype, per_kv=self.per_kv,
        )  # fmt: skip

    @cached_property
    def depth(self) -> dict[str, int]:
        """Contraction of each kind of matrix, in lanes."""
        across = self.dim // LANE
        return {
            "k": across, "v": across, "q": across, "out": self.asked * self.parts, "up": across,
            "down": self.mlp // LANE,
        }  # fmt: skip

    @cached_property
    def outputs(self) -> dict[str, int]:
        """Output tiles (of 128) of each kind of matrix."""
        return {
            "k": self.heads * self.parts, "v": self.heads * self.parts,
            "q": self.asked * self.parts, "out": self.dim // LANE,
            "up": self.mlp // LANE, "down": self.dim // LANE,
        }  # fmt: skip

    @cached_property
    def block(self) -> int:
        """Elements a partition of one block of weights: several output tiles `[128, depth, 128]`,
        as many as fit."""
        return max(SMALLEST_BLOCK // self.weight_itemsize, LANE * max(self.depth.values()))

    @cached_property
    def per_block(self) -> dict[str, int]:
        """Output tiles in one block. The values' are one matmul's columns, so at most four."""
        fits = {k: self.block // (LANE * self.depth[k]) for k in KINDS}
        fits["v"] = min(fits["v"], TOKENS // LANE)
        return {k: min(fits[k], self.outputs[k]) for k in KINDS}

    @cached_property
    def first_block(self) -> dict[str, int]:
        """Where each kind's blocks start; `end` is their number."""
        first, at = {}, 0
        for kind in KINDS:
            first[kind] = at
            at += -(-self.outputs[kind] // self.per_block[kind])
        return first | {"end": at}

    def tiles_of_block(self, kind: str) -> list[tuple[int, int]]:
        """(first output tile, number of them) of each block of a kind."""
        step, total = self.per_block[kind], self.outputs[kind]
        return [(at, min(step, total - at)) for at in range(0, total, step)]

    @cached_property
    def token_tiles(self) -> list[tuple[int, int]]:
        """(start, count) of token tiles of at most 512 and as equal as possible, in lanes."""
        tiles = -(-self.tokens // TOKENS)
        size = -(-self.tokens // tiles)
        size = min(TOKENS, -(-size // LANE) * LANE) if tiles > 1 else size
        return _cut(0, self.tokens, size)

    def lanes(self, start: int, count: int) -> list[tuple[int, int]]:
        """(start, count) of runs of at most 128 tokens."""
        return _cut(start, count, LANE)

    @cached_property
    def keys(self) -> int:
        """Keys in the buffer."""
        return self.ageless + self.slots * self.tokens

    @cached_property
    def segments(self) -> list[tuple[int, int, int]]:
        """(start, keys, slot) of the parts of the buffer that no piece may span."""
        ageless = [(0, self.ageless, -1)] if self.ageless else []
        starts = [self.ageless + slot * self.tokens for slot in range(self.slots)]
        return ageless + [(start, self.tokens, slot) for slot, start in enumerate(starts)]

    @cached_property
    def buffer_chunks(self) -> list[list[Piece]]:
        """The buffer, cut into pieces, as many to a chunk as are attended to at once.

        Keys are a set, so full pieces of one segment and chunk share its keys out in turn, and a
        partition's keys of all of them are neighbours in HBM: one long row for DMA. (Two cores that
        act as one hold columns of the same rows, and take them piece by piece.)
        """
        size, chunks = self.buffering[0], [[]]
        for start, keys, slot in self.segments:
            end = start + keys
            while start < end:
                if len(chunks[-1]) == size:
                    chunks.append([])
                together = min(size - len(chunks[-1]), (end - start) // LANE)
                together = min(together, 1) if self.cores > 1 else together
                if together:
                    chunks[-1] += [Piece(start + i, LANE, slot, together) for i in range(together)]
                    start += together * LANE
                else:
                    chunks[-1].append(Piece(start, end - start, slot, 1))
                    start = end
        return [chunk for chunk in chunks if chunk]

    @cached_property
    def buffer_pieces(self) -> list[Piece]:
        """All pieces, in the order of their chunks."""
        return [piece for chunk in self.buffer_chunks for piece in chunk]

    def loads(self, chunk: list[Piece]) -> list[tuple[int, int, int, int]]:
        """(first piece, pieces, first key, keys of each) of the transfers that bring a chunk."""
        found, i = [], 0
        while i < len(chunk):
            piece = chunk[i]
            found.append((i, piece.step, piece.start, piece.count))
            i += piece.step
        return found

    def chunks(self, pieces: list) -> list[list]:
        """Neighbouring pieces of the frame's own keys, as many as are attended to at once."""
        size = self.buffering[0]
        return [pieces[i : i + size] for i in range(0, len(pieces), size)]

    @cached_property
    def buffering(self) -> tuple[int, int]:
        """Key pieces of a chunk and weight blocks in flight: the most that SBUF has room for.

        Raises TooLarge where not even the least fits.
        """
        for pieces in (4, 2, 1):
            for blocks in (4, 3, 2):
                if self.sbuf_needed(pieces, blocks) <= self.sbuf_bytes:
                    return pieces, blocks
        raise TooLarge(
            f"{self.tokens} tokens of dim={self.dim}, {self.heads} heads and mlp={self.mlp} a rank "
            f"need {self.sbuf_needed(1, 2) // 1024} KiB of SBUF a partition, and there are "
            f"{self.sbuf_bytes // 1024}"
        )

    def sbuf_needed(self, pieces: int, blocks: int) -> int:
        """Bytes of a partition at the fullest moment, an upper bound; see `denoise_stack.tiles`."""
        size, eight, across = self.itemsize, self.weight_itemsize, self.dim // LANE
        columns = min(TOKENS, self.tokens)
        width, asked = self.width, self.asked * self.head
        lanes = sum(len(self.lanes(*tile)) for tile in self.token_tiles)
        with_ones = width + self.heads
        always = (
            4 * across * self.tokens  # residual
            + size * width // LANE * self.tokens  # keys
            + size * lanes * with_ones  # values
            + eight * blocks * self.block
            + size * 2 * pieces * width  # pieces of the buffer as they come
            + size * 2 * self.tokens  # cosines, sines
            + size * (2 + pieces + 1) * width  # age tables, and rows of them
            + 4
            * (6 * across + width // LANE * self.slots + 2 * (self.keys // LANE + self.slots + 1))
            + size * (self.slots + 6) * LANE
            + 1024  # scales and the like
        )
        h = eight * across * columns  # normalised input
        temporaries = (8 * self.parts * size + 8 * 4) * columns
        rows = 4 * size * width  # keys or values with tokens in rows
        queries = size * asked // LANE * columns
        attention = (
            2 * size * pieces * (width + with_ones)
            + 4 * 4 * (asked + 2 * self.asked)  # results and their sums
            + 4 * size * columns  # weights of one piece
        )
        hidden = eight * (self.mlp // LANE) * columns
        shares = size * across * columns * (self.ranks > 1)  # of what the ranks add up
        # and the other core's, and 128 features of both
        shares += (size * across + 2 * 4) * columns * (self.cores > 1)
        if self.weight_dtype:  # queries in eight bits after attention
            queries += eight * asked // LANE * columns
        phases = (
            temporaries + h + 2 * rows, temporaries + h + queries + rows, queries + attention,
            queries + shares, temporaries + h, h + hidden, hidden + shares,
        )  # fmt: skip
        return always + max(phases)


def _cut(start: int, count: int, size: int) -> list[tuple[int, int]]:
    return [(start + at, min(size, count - at)) for at in range(0, count, size)]
