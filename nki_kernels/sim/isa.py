"""`nki.isa` under simulation: the instructions of a NeuronCore, by their names."""

from enum import Enum

from nki_kernels.sim.elementwise import (
    activation,
    activation_reduce,
    bn_aggr,
    bn_stats,
    exponential,
    memset,
    reciprocal,
    reduce_cmd,
    scalar_tensor_tensor,
    select_reduce,
    tensor_copy,
    tensor_copy_predicated,
    tensor_reduce,
    tensor_scalar,
    tensor_scalar_reduce,
    tensor_tensor,
)
from nki_kernels.sim.emit import engine
from nki_kernels.sim.machine import current
from nki_kernels.sim.matmul import (
    matmul_perf_mode,
    nc_matmul,
    nc_matmul_mx,
    nc_transpose,
    quantize_mx,
)
from nki_kernels.sim.memory import (
    core_barrier,
    dge_mode,
    dma_copy,
    dma_engine,
    dma_transpose,
    oob_mode,
    sendrecv,
)
from nki_kernels.sim.patterns import (
    affine_select,
    iota,
    nc_stream_shuffle,
    range_select,
    register_alloc,
    register_load,
    register_move,
    register_store,
    tensor_partition_reduce,
    tensor_tensor_scan,
)


class nc_version(Enum):
    """Generations of the NeuronCore: of trn1, trn2 and trn3."""

    gen2 = 2
    gen3 = 3
    gen4 = 4


def get_nc_version() -> nc_version:
    """The generation that the kernel runs on."""
    return nc_version(current().generation)


__all__ = [
    "activation", "activation_reduce", "affine_select", "bn_aggr", "bn_stats", "core_barrier",
    "dge_mode", "dma_copy", "dma_engine", "dma_transpose", "engine", "exponential",
    "get_nc_version", "iota", "matmul_perf_mode", "memset", "nc_matmul", "nc_matmul_mx",
    "nc_stream_shuffle", "nc_transpose", "nc_version", "oob_mode", "quantize_mx", "range_select",
    "reciprocal", "reduce_cmd", "register_alloc", "register_load", "register_move",
    "register_store", "scalar_tensor_tensor", "select_reduce", "sendrecv", "tensor_copy",
    "tensor_copy_predicated",
    "tensor_partition_reduce", "tensor_reduce", "tensor_scalar", "tensor_scalar_reduce",
    "tensor_tensor", "tensor_tensor_scan",
]  # fmt: skip
