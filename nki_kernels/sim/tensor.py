"""Tensors of a simulated NeuronCore: views of a storage in HBM, SBUF or PSUM.

Dimension 0 of an on-chip tensor is the partition. Every storage remembers, element by element, who
wrote it last, so that reading what nothing wrote is an error; its floats start as NaN besides.
Without numerics a storage has no memory, and all but the values is still checked.
"""

from __future__ import annotations

import itertools
from enum import Enum
from math import prod
from typing import Any, NamedTuple

import numpy as np

from nki_kernels.sim.errors import (
    AccessPatternError,
    NotSimulatedError,
    OutOfBoundsError,
    PartitionCountError,
    PoisonReadError,
)

UNWRITTEN, BY_ENGINE, BY_MATMUL = 0, 1, 2  # who wrote an element last
PARTITIONS = 128
_ids = itertools.count()


class Buffer(Enum):
    """Where a tensor lies. `shared_hbm` is what a kernel may return."""

    sbuf = "sbuf"
    psum = "psum"
    hbm = "hbm"
    shared_hbm = "shared_hbm"

    def __init__(self, value: str):
        self.on_chip = value in ("sbuf", "psum")


class Storage:
    """Memory that tensors are views of."""

    def __init__(self, shape, dtype, buffer: Buffer, name: str, data: np.ndarray | None = None,
                 numerics: bool = True):  # fmt: skip
        self.id = next(_ids)
        self.shape, self.dtype, self.buffer, self.name = tuple(shape), dtype, buffer, name
        if buffer.on_chip and (len(self.shape) < 2 or not 1 <= self.shape[0] <= PARTITIONS):
            raise PartitionCountError(
                f"{name or 'tensor'} {self.shape}: an on-chip tensor is (partitions <= 128, ...)"
            )
        self.on_chip = buffer.on_chip
        self.free = prod(self.shape[1:]) if buffer.on_chip else prod(self.shape)
        self.bytes_per_partition = self.free * dtype.itemsize  # on chip; of HBM, all
        self.data = self.written = None
        if not numerics:
            return
        size = prod(self.shape)
        if data is not None:  # a copy: kernels write their inputs in place
            self.data = np.array(data, dtype, order="C").reshape(-1).view(np.uint8)
            self.written = np.full(size, BY_ENGINE, np.uint8)
        else:  # NaN in every float, and -1 in integers
            self.data = np.full(size * dtype.itemsize, 0xFF, np.uint8)
            self.written = np.full(size, UNWRITTEN, np.uint8)


class Region(NamedTuple):
    """A box of a storage, partitions [p0, p1) by bytes [lo, hi) of each; HBM is one partition."""

    storage: int
    p0: int
    p1: int
    lo: int
    hi: int

    def overlaps(self, other: Region) -> bool:
        ours, p0, p1, lo, hi = self
        theirs, q0, q1, low, high = other
        return ours == theirs and p0 < q1 and q0 < p1 and lo < high and low < hi

    def covers(self, other: Region) -> bool:
        ours, p0, p1, lo, hi = self
        theirs, q0, q1, low, high = other
        return ours == theirs and p0 <= q0 and q1 <= p1 and lo <= low and high <= hi


class Tensor:
    """A strided view: element (i, j, ...) is `storage[offset + i*strides[0] + j*strides[1] ...]`.

    Offsets and strides count elements of `dtype`.
    """

    __slots__ = ("storage", "offset", "shape", "strides", "dtype", "dynamic", "bounds")

    def __init__(
        self, storage: Storage, offset: int, shape, strides, dtype, dynamic=None, bounds=None
    ):
        self.storage, self.offset, self.dtype = storage, offset, dtype
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.dynamic: Tensor | None = dynamic  # the tile that holds a start known at run time
        self.bounds: tuple[int, int] | None = bounds  # elements between which that start may be

    @classmethod
    def whole(cls, storage: Storage) -> Tensor:
        return cls(storage, 0, storage.shape, contiguous_strides(storage.shape), storage.dtype)

    @property
    def buffer(self) -> Buffer:
        return self.storage.buffer

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def on_chip(self) -> bool:
        return self.storage.on_chip

    @property
    def partitions(self) -> int:
        return self.shape[0]

    @property
    def per_partition(self) -> int:
        """Elements that each partition holds of this view."""
        return prod(self.shape[1:])

    @property
    def start_partition(self) -> int:
        return self.offset // self._free

    @property
    def _free(self) -> int:
        """Elements of the whole storage's partition, in this view's dtype."""
        return self.storage.bytes_per_partition // self.dtype.itemsize

    @property
    def run_bytes(self) -> int:
        """Bytes of the longest contiguous pieces that make up the view, within a partition."""
        dims = list(zip(self.shape, self.strides, strict=True))[1 if self.on_chip else 0 :]
        run = 1
        for size, stride in reversed(dims):
            if size > 1 and stride != run:
                break
            run *= size
        return run * self.dtype.itemsize

    def region(self) -> Region:
        """The smallest box that holds the view."""
        storage, item, shape, strides = self.storage, self.dtype.itemsize, self.shape, self.strides
        size = storage.bytes_per_partition
        if self.dynamic is not None and self.bounds is not None and not storage.on_chip:
            return Region(storage.id, 0, 1, self.bounds[0] * item, self.bounds[1] * item)
        if self.dynamic is not None:  # anywhere
            return Region(storage.id, 0, storage.shape[0] if storage.on_chip else 1, 0, size)
        low, high = self.offset, self.offset + 1
        for axis in range(storage.on_chip, len(shape)):
            high += (shape[axis] - 1) * strides[axis]
        if not storage.on_chip:
            return Region(storage.id, 0, 1, low * item, high * item)
        free = size // item
        first, start = divmod(low, free)
        last = first + (shape[0] - 1) * strides[0] // free
        return Region(storage.id, first, last + 1, start * item, (high - low + start) * item)

    # Values: only with numerics.

    def _view(self, memory: np.ndarray) -> np.ndarray:
        item = self.dtype.itemsize
        strides = tuple(s * item for s in self.strides)
        return np.ndarray(self.shape, self.dtype, memory, self.offset * item, strides)

    def _marks(self) -> np.ndarray:
        """Who wrote each element, on the storage's own elements."""
        ours, theirs = self.dtype.itemsize, self.storage.dtype.itemsize
        assert self.storage.written is not None
        if ours == theirs:
            return np.ndarray(self.shape, np.uint8, self.storage.written, self.offset, self.strides)
        region = self.region()  # a view in another dtype: the box around it
        rows = self.storage.written.reshape(-1, self.storage.free)
        return rows[region.p0 : region.p1, region.lo // theirs : -(-region.hi // theirs)]

    def read(self, op: str) -> np.ndarray:
        """The values. Raises PoisonReadError where something was never written."""
        if not self._marks().all():
            raise PoisonReadError(f"{op} reads {self!r}, part of which nothing has written")
        assert self.storage.data is not None
        return self._view(self.storage.data)

    def read32(self, op: str) -> np.ndarray:
        """The values in float32, as the engines compute."""
        return self.read(op).astype(np.float32)

    def write(self, values: np.ndarray, by: int = BY_ENGINE) -> None:
        """Stores values of the same number of elements, cast as the engines do on write."""
        assert self.storage.data is not None
        self._view(self.storage.data)[...] = cast(values.reshape(self.shape), self.dtype)
        self._marks()[...] = by

    def all_by_matmul(self) -> bool:
        """Whether the tensor engine wrote every element last."""
        return bool((self._marks() == BY_MATMUL).all())

    # Views.

    def __getitem__(self, index) -> Tensor:
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            rest = (slice(None),) * (self.ndim - len(index) + 1)
            index = (*index[:at], *rest, *index[at + 1 :])
        if len(index) > self.ndim:
            raise OutOfBoundsError(f"{self!r}: {len(index)} indices for {self.ndim} dimensions")
        index = (*index, *(slice(None),) * (self.ndim - len(index)))
        offset, shape, strides = self.offset, [], []
        for axis, (i, size, stride) in enumerate(zip(index, self.shape, self.strides, strict=True)):
            if isinstance(i, slice):
                begin, end, step = i.start or 0, size if i.stop is None else i.stop, i.step or 1
                if begin < 0 or end > size or end <= begin or step < 1:
                    raise OutOfBoundsError(f"{self!r}: {begin}:{end}:{step} on axis {axis}")
                shape.append(-(-(end - begin) // step))
                strides.append(stride * step)
            else:
                begin = int(i)
                if not 0 <= begin < size:
                    raise OutOfBoundsError(f"{self!r}: index {begin} on axis {axis}")
                if axis == 0 and self.on_chip:  # the partition dimension stays
                    shape.append(1)
                    strides.append(stride)
            offset += begin * stride
        return Tensor(self.storage, offset, shape, strides, self.dtype, self.dynamic, self.bounds)

    def permute(self, dims: tuple[int, ...]) -> Tensor:
        """Axes in another order; the partition of an on-chip tensor stays first."""
        if sorted(dims) != list(range(self.ndim)) or (self.on_chip and dims[0] != 0):
            raise AccessPatternError(f"{self!r}: cannot permute to {dims}")
        return self._with([self.shape[d] for d in dims], [self.strides[d] for d in dims])

    def broadcast(self, dim: int, size: int) -> Tensor:
        """Repeats an axis of size 1 without copying."""
        if self.shape[dim] != 1 or (self.on_chip and dim == 0):
            raise AccessPatternError(f"{self!r}: axis {dim} cannot be broadcast")
        shape, strides = list(self.shape), list(self.strides)
        shape[dim], strides[dim] = size, 0
        return self._with(shape, strides)

    def expand_dim(self, dim: int) -> Tensor:
        """A new axis of size 1 before `dim`."""
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(dim, 1)
        strides.insert(dim, 0)
        return self._with(shape, strides)

    def squeeze_dim(self, dim: int) -> Tensor:
        """Without an axis of size 1."""
        if self.shape[dim] != 1 or (self.on_chip and dim == 0):
            raise AccessPatternError(f"{self!r}: axis {dim} cannot be squeezed")
        shape, strides = list(self.shape), list(self.strides)
        del shape[dim], strides[dim]
        return self._with(shape, strides)

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        """Another shape of the same contiguous elements; partitions stay."""
        keep = 1 if self.on_chip else 0
        inner = contiguous_strides(self.shape[keep:])
        moved = [s for n, s in zip(self.shape[keep:], self.strides[keep:], strict=True) if n > 1]
        wanted = [s for n, s in zip(self.shape[keep:], inner, strict=True) if n > 1]
        partitions_change = self.on_chip and shape[0] != self.shape[0]
        if prod(shape) != self.size or partitions_change or moved != wanted:
            raise AccessPatternError(f"{self!r}: cannot reshape to {shape}")
        return self._with(shape, (*self.strides[:keep], *contiguous_strides(shape[keep:])))

    def reshape_dim(self, dim: int, shape: tuple[int, ...]) -> Tensor:
        """Splits an axis; one size may be -1. The partition of an on-chip tensor stays."""
        if not 0 <= dim < self.ndim or (self.on_chip and dim == 0 and len(shape) != 1):
            raise AccessPatternError(f"{self!r}: axis {dim} cannot be split")
        known = prod(n for n in shape if n != -1)
        sizes = [self.shape[dim] // max(known, 1) if n == -1 else n for n in shape]
        if list(shape).count(-1) > 1 or prod(sizes) != self.shape[dim]:
            raise AccessPatternError(f"{self!r}: axis {dim} does not split into {tuple(shape)}")
        strides = [s * self.strides[dim] for s in contiguous_strides(sizes)]
        return self._with(
            (*self.shape[:dim], *sizes, *self.shape[dim + 1 :]),
            (*self.strides[:dim], *strides, *self.strides[dim + 1 :]),
        )

    def flatten_dims(self, start_dim: int, end_dim: int) -> Tensor:
        """Merges the axes from `start_dim` to `end_dim`, the last included, that lie side by side
        in memory. The partition of an on-chip tensor stays."""
        if not self.on_chip <= start_dim <= end_dim < self.ndim:
            raise AccessPatternError(f"{self!r}: axes {start_dim} to {end_dim} cannot be merged")
        merged = range(start_dim, end_dim + 1)
        wide = [i for i in merged if self.shape[i] > 1]
        for i, j in itertools.pairwise(wide):
            if self.strides[i] != self.shape[j] * self.strides[j]:
                raise AccessPatternError(f"{self!r}: axes {i} and {j} are apart in memory")
        stride = self.strides[wide[-1]] if wide else self.strides[end_dim]
        size = prod(self.shape[i] for i in merged)
        return self._with(
            (*self.shape[:start_dim], size, *self.shape[end_dim + 1 :]),
            (*self.strides[:start_dim], stride, *self.strides[end_dim + 1 :]),
        )

    def rearrange(
        self, src_pattern: tuple, dst_pattern: tuple, fixed_sizes: dict[str, int] | None = None
    ) -> Tensor:
        """Splits, permutes and merges axes by their names; a tuple of names is one axis of several:
        `t.rearrange(("p", ("h", "w")), ("p", "w", "h"), {"h": 4})`."""
        fixed = fixed_sizes or {}
        groups = [(g,) if isinstance(g, str) else tuple(g) for g in src_pattern]
        wanted = [(g,) if isinstance(g, str) else tuple(g) for g in dst_pattern]
        names, order = ([n for g in gs for n in g] for gs in (groups, wanted))
        if (
            len(groups) != self.ndim
            or len({*names}) != len(names)
            or sorted(names) != sorted(order)
        ):
            raise AccessPatternError(f"{self!r}: {src_pattern} does not become {dst_pattern}")
        split = self
        for axis, group in reversed(list(enumerate(groups))):
            alone = len(group) == 1 and group[0] not in fixed
            if not alone:
                split = split.reshape_dim(axis, tuple(fixed.get(n, -1) for n in group))
        out = split.permute(tuple(names.index(n) for n in order))
        for axis, group in enumerate(wanted):
            if len(group) > 1:
                out = out.flatten_dims(axis, axis + len(group) - 1)
        return out

    def slice(self, dim: int, start: int, end: int, step: int = 1) -> Tensor:
        """`start:end:step` of one axis."""
        return self[(slice(None),) * dim + (slice(start, end, step),)]

    def select(self, dim: int, index: int) -> Tensor:
        """One element of an axis, and without the axis, unless that is the partition of an on-chip
        tensor."""
        if isinstance(index, Tensor):
            raise NotSimulatedError("select by a tensor is not simulated; use .ap(scalar_offset=)")
        return self[(slice(None),) * dim + (index,)]

    def view(self, dtype) -> Tensor:
        """The same bytes as another dtype; the last axis grows or shrinks."""
        dtype = np.dtype(dtype)
        old, new = self.dtype.itemsize, dtype.itemsize
        last = self.shape[-1] * old
        if self.strides[-1] != 1 or last % new or (self.offset * old) % new:
            raise AccessPatternError(f"{self!r}: cannot be viewed as {dtype}")
        strides = [s * old // new for s in self.strides[:-1]]
        shape = (*self.shape[:-1], last // new)
        return Tensor(self.storage, self.offset * old // new, shape, (*strides, 1), dtype)

    def ap(
        self,
        pattern: list,
        offset: int | None = None,
        scalar_offset: Tensor | None = None,
        vector_offset: Any = None,
        indirect_dim: int = 0,
        dtype=None,
    ) -> Tensor:
        """An explicit access pattern: `[step, number]` pairs in elements, outermost first, from
        `offset` elements after the view's first.

        `scalar_offset`, a (1, 1) int32 tile, adds `its value * prod(shape[indirect_dim + 1:])`. It
        moves the pattern along that axis and not beyond its end, so of a tensor in HBM no more than
        the elements that share the other indices can be meant.
        """
        if vector_offset is not None:
            raise NotSimulatedError("vector_offset (a gather by rows) is not simulated")
        if dtype is not None and np.dtype(dtype) != self.dtype:
            raise NotSimulatedError(".ap(dtype=...) is not simulated; use .view(dtype) first")
        steps, numbers = zip(*pattern, strict=True)
        start = self.offset + (offset or 0)
        if self.on_chip and (steps[0] != self._free or len(pattern) > 5):
            raise AccessPatternError(
                f"{self!r}: on chip the first step is the partition's {self._free} elements, and "
                f"at most 4 more pairs follow; got {pattern}"
            )
        dynamic = bounds = None
        if scalar_offset is not None:
            if scalar_offset.size != 1 or scalar_offset.dtype.kind not in "iu":
                raise AccessPatternError("scalar_offset must be a (1, 1) int32 or uint32 tile")
            row = prod(self.shape[indirect_dim + 1 :])
            axis = row * self.shape[indirect_dim]
            if self.strides == contiguous_strides(self.shape):
                base = self.offset + (start - self.offset) // axis * axis
                bounds = (base, base + axis)
            if scalar_offset.storage.data is not None:
                start += int(scalar_offset.read("scalar_offset").item()) * row
            dynamic = scalar_offset
        last = start + sum((n - 1) * s for s, n in pattern)
        held = prod(self.storage.shape) * self.storage.dtype.itemsize // self.dtype.itemsize
        if start < 0 or last >= held or min(numbers) < 1 or min(steps) < 0:
            raise OutOfBoundsError(f"{self!r}: pattern {pattern} at {start} leaves the tensor")
        if bounds is not None and not bounds[0] <= start <= last < bounds[1]:
            raise OutOfBoundsError(f"{self!r}: pattern {pattern} at {start} leaves its axis")
        return Tensor(self.storage, start, numbers, steps, self.dtype, dynamic, bounds)

    def _with(self, shape, strides) -> Tensor:
        return Tensor(
            self.storage, self.offset, shape, strides, self.dtype, self.dynamic, self.bounds
        )

    def __repr__(self) -> str:
        name = f" {self.storage.name}" if self.storage.name else ""
        return f"<{self.buffer.value}{name} {self.dtype}{list(self.shape)}>"


def contiguous_strides(shape) -> tuple[int, ...]:
    """Strides, in elements, of an array without gaps."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))[: len(shape)] if shape else ()


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """As the engines write: floats round to nearest even, integers round half even and saturate."""
    if values.dtype == dtype:
        return values
    if dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        return np.clip(np.rint(values.astype(np.float64)), info.min, info.max).astype(dtype)
    return values.astype(dtype)
