"""Published measurements of trn2, each beside what the timeline makes of the same work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lsd_jax.hw.chips import Chip
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.run import jit, run
from nki_kernels.sim.timeline import Timeline, schedule

MEGAKERNEL = "github.com/KevGomes1403/nki-moe-megakernel"
AUTOTUNE = "github.com/awslabs/nki-autotune"
DMA_GUIDE = "AWS Neuron documentation, NKI DMA bandwidth guide"


@dataclass(frozen=True)
class Point:
    """A published time (or share) with what it may be off by, and ours."""

    name: str
    unit: str
    low: float
    high: float
    modelled: float
    source: str

    @property
    def holds(self) -> bool:
        return self.low <= self.modelled <= self.high


def points(chip: Chip) -> list[Point]:
    """All check points, modelled on `chip`; they were published for trn2."""
    found = [
        Point("matmul 2048^3 bf16", "us", 218, 245, matmul_us(chip), AUTOTUNE),
        Point("DMA of 2 KB", "us", 1.5, 2.1, copy_ns(chip, 1, 2048) / 1e3, DMA_GUIDE),
        Point("tensor_reduce 15520 fp32", "ns", 15820, 16798, reduce_ns(chip), MEGAKERNEL),
        Point(
            "tensor_tensor [128, 1024] fp32, fast end of the band", "ns", 615, 690,
            add_ns(chip.at("fast")), MEGAKERNEL,
        ),
        Point("all-reduce of 8 KB over 4", "us", 10.6, 16.0, all_reduce_us(chip), MEGAKERNEL),
    ]  # fmt: skip
    curve = {32: 0.012, 64: 0.026, 128: 0.05, 256: 0.10, 512: 0.21, 1024: 0.42, 2048: 0.81,
             4096: 0.97, 8192: 0.98}  # fmt: skip
    for size, share in curve.items():
        ours = dma_share(chip, size)
        name = f"DMA share of peak at {size} B a partition"
        found.append(Point(name, "1", 0.9 * share, 1.1 * share, ours, DMA_GUIDE))
    return found


def _time(kernel, args, chip: Chip, ranks: int = 1) -> Timeline:
    done = run(jit(kernel), args, chip, numerics=False, ranks=ranks)
    return schedule(done.traces, chip, neighbours_idle=True)[0]


def _abstract(*shape, dtype: np.typing.DTypeLike = np.float32):
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


def matmul_us(chip: Chip, size: int = 2048) -> float:
    """A bf16 product of two square matrices from HBM to HBM, the left one given transposed."""

    def kernel(left, right):
        out = nl.ndarray((size, size), nl.bfloat16, nl.shared_hbm)
        depth = size // 128
        b = [nl.ndarray((128, size), nl.bfloat16) for _ in range(depth)]
        a = [nl.ndarray((128, size), nl.bfloat16) for _ in range(depth)]
        half = size // 2
        for k in range(depth):
            rows = slice(k * 128, k * 128 + 128)
            nisa.dma_copy(dst=a[k][:, 0:half], src=left[rows, 0:half])
            nisa.dma_copy(dst=b[k], src=right[rows])
        for k in range(depth):  # the first results do not need it yet
            rows = slice(k * 128, k * 128 + 128)
            nisa.dma_copy(dst=a[k][:, half:size], src=left[rows, half:size])
        banks = [nl.ndarray((128, 512), nl.float32, nl.psum) for _ in range(8)]
        for m in range(depth // 2):  # eight results at a time, so that work starts with the data
            rows = [nl.ndarray((128, size), nl.bfloat16) for _ in range(2)]
            for k in range(depth):
                for i in range(8):
                    row, n = m * 2 + i // 4, i % 4
                    nisa.nc_matmul(
                        dst=banks[i], stationary=a[k][:, row * 128 : row * 128 + 128],
                        moving=b[k][:, n * 512 : n * 512 + 512], accumulate=k > 0,
                    )  # fmt: skip
            for i in range(8):
                where = nisa.engine.vector if i % 2 else nisa.engine.scalar
                to = rows[i // 4][:, i % 4 * 512 : i % 4 * 512 + 512]
                nisa.tensor_copy(dst=to, src=banks[i], engine=where)
            for i in range(2):
                row = (m * 2 + i) * 128
                nisa.dma_copy(dst=out[row : row + 128], src=rows[i])
        return out

    square = _abstract(size, size, dtype=nl.bfloat16)
    return _time(kernel, (square, square), chip).total_ns / 1e3


def copy_ns(chip: Chip, partitions: int, row_bytes: int) -> float:
    """One DMA from HBM to SBUF, from its issue until another engine may read."""

    def kernel(x):
        tile = nl.ndarray((partitions, row_bytes), nl.uint8)
        nisa.dma_copy(dst=tile, src=x)
        return x

    return _time(kernel, (_abstract(partitions, row_bytes, dtype=np.uint8),), chip).total_ns


def dma_share(chip: Chip, row_bytes: int) -> float:
    """Share of the 16 DMA engines' bandwidth that rows of this size reach, start not counted."""

    def kernel(x):
        tile = nl.ndarray((128, row_bytes), nl.uint8)
        nisa.dma_copy(dst=tile, src=x)
        return x

    span = _time(kernel, (_abstract(128, row_bytes, dtype=np.uint8),), chip).spans[0]
    peak = chip["dma_engines"] * chip["dma_engine_bandwidth"]
    return 128 * row_bytes * 1e9 / (span.end - span.start) / peak


def _on_tiles(body, columns: int, chip: Chip) -> float:
    def kernel(x):
        a, b = (nl.ndarray((128, columns), nl.float32) for _ in range(2))
        body(a, b)
        return x

    return _time(kernel, (_abstract(1, 1),), chip).total_ns


def reduce_ns(chip: Chip) -> float:
    """VectorE sums 15,520 float32 in each partition."""

    def body(a, b):
        nisa.tensor_reduce(dst=b[:, 0:1], op=nl.add, data=a, axis=1)

    return _on_tiles(body, 15520, chip)


def add_ns(chip: Chip) -> float:
    """VectorE adds two float32 tiles [128, 1024]."""

    def body(a, b):
        nisa.tensor_tensor(dst=a, data1=a, data2=b, op=nl.add)

    return _on_tiles(body, 1024, chip)


def all_reduce_us(chip: Chip) -> float:
    """Four ranks add up 8 KB each."""

    def kernel(x):
        total = nl.ndarray((128, 16), nl.float32, nl.hbm)
        mine = nl.ndarray((128, 16), nl.float32, nl.hbm)
        nccl.all_reduce([mine], [total], nccl.ReplicaGroup([[0, 1, 2, 3]]), nl.add)
        return x

    return _time(kernel, (_abstract(1, 1),), chip, ranks=4).total_ns / 1e3
