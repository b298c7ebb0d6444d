"""How long XLA takes for an operation, by what bounds it: a roofline with a chip's own numbers.

Products are padded to whole matrix units and reach the share of the peak that the chip's file says
(`xla_share`); every operation pays `operation_ns`, and reads and writes its arrays once. That is
what the stages without a kernel of ours are planned by. The figures are `modelled`, and coarse.
"""

from __future__ import annotations

from dataclasses import dataclass

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.work import Op


@dataclass(frozen=True)
class Rates:
    """Of one core, a second."""

    peak: float  # FLOPs of products, in bfloat16
    float32: float  # share of that which float32 products reach,
    exact: float  # and those of them that ask for all bits
    width: int  # sides of a matrix unit
    share: float
    vector: float  # elementwise FLOPs
    series: float  # exponentials and the like
    hbm: float  # bytes
    operation_s: float


def rates(chip: Chip) -> Rates:
    """The rates of a core of a TPU, a Trainium or a GPU. Raises ValueError for any other chip.

    A TPU multiplies float32 as bfloat16 unless it is asked for more (`jax.lax.Precision`): all bits
    are six products.
    """
    share, hbm = chip["xla_share"], chip["hbm_bandwidth"]
    if chip.family == "tpu":
        clock = chip["clock"]
        return Rates(
            peak=chip["flops_bf16"], float32=1.0, exact=1 / 6, width=int(chip["mxu_width"]),
            vector=clock * chip["vector_per_cycle"], series=clock * chip["series_per_cycle"],
            operation_s=chip["operation_ns"] * 1e-9, share=share, hbm=hbm,
        )  # fmt: skip
    if chip.family == "trainium":
        vector = 128 * chip["dve_clock"] / chip["dve_tt_bf16"]
        float32 = 1 / chip["pe_fp32_factor"]
        series = 128 * chip["act_clock"] / chip["act_element"]
        return Rates(
            peak=chip["pe_flops_bf16"], float32=float32, exact=float32, width=128,
            vector=vector, series=series, operation_s=chip["dma_start_ns"] * 1e-9, share=share,
            hbm=hbm,
        )  # fmt: skip
    if chip.family == "gpu":
        float32 = chip["flops_f32"] / chip["flops_bf16"]
        return Rates(
            peak=chip["flops_bf16"], float32=float32, exact=float32,
            width=int(chip["mma_width"]), vector=chip["flops_f32"] / 2, series=chip["series_rate"],
            operation_s=chip["operation_ns"] * 1e-9, share=share, hbm=hbm,
        )  # fmt: skip
    raise ValueError(f"chip {chip.name} is no TPU, no Trainium and no GPU: no roofline for it")


def operation_seconds(op: Op, rates: Rates) -> tuple[float, str]:
    """Of all executions of an operation, and what bounds them."""
    if op.kind in ("matmul", "convolution"):
        lanes, columns = (-(-side // rates.width) * rates.width for side in (op.k, op.n))
        precision = rates.exact if op.name.startswith("upsample") else rates.float32
        peak = rates.peak * rates.share * (precision if op.dtype == "float32" else 1)
        work = [(2.0 * op.batch * op.m * lanes * columns / peak, "MXU")]
    else:
        work = [(op.flops / rates.vector, "vector"), (op.transcendentals / rates.series, "vector")]
    work += [(op.bytes / rates.hbm, "HBM"), (rates.operation_s, "latency")]
    seconds, bound = max(work)
    return op.times * max(seconds, rates.operation_s), bound
