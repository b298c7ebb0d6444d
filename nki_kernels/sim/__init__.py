"""A NeuronCore in NumPy: the names of `nki`, the rules of the hardware, and a clock.

Read in this order: `tensor` (memory), `emit` (rules and trace), `elementwise`, `matmul`, `memory`
(instructions), `run` (kernels), `timeline` (time), `report` (what to show).

Names of the real package are here with the arguments of nki 0.6, or not at all. Left out:

* `nl`: operations that allocate their own tile (`load`, `store`, `nl.add(x, y)`, `softmax`, ...),
  the dtypes of microscaling, derivatives of ScalarE's functions (`gelu_dx`, ...), `dynamic_range`;
* `nki`: a kernel's `with_schedule`;
* `nisa`: `activate2`, `dma_compute`, `tensor_scalar_cumulative`, `local_gather`, `nc_n_gather`,
  `max8` and its kin, `nonzero_with_count`, `topk`, `sequence_bounds`, `dropout`, random numbers;
* `nccl`: `all_to_all_v` and the implicit permutations of a ring;
* of tensors: `vector_select` and `indirect`, gathers by rows.

`NotSimulatedError` says where a name is here and what it is asked for is not: microscaled products
(`nc_matmul_mx`, `quantize_mx`), `vector_offset`, fixed addresses, `oob_mode.skip`.
"""

from nki_kernels.sim import collectives, isa, language
from nki_kernels.sim.errors import NkiValidationError
from nki_kernels.sim.run import Kernel, Run, jit, run, simulate

__all__ = [
    "Kernel", "NkiValidationError", "Run", "collectives", "isa", "jit", "language", "run",
    "simulate",
]  # fmt: skip
