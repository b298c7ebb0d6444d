"""A NeuronCore in NumPy: the names of `nki`, the rules of the hardware, and a clock.

Read in this order: `tensor` (memory), `emit` (rules and trace), `elementwise`, `matmul`, `memory`
(instructions), `run` (kernels), `timeline` (time), `report` (what to show).
"""

from nki_kernels.sim import collectives, isa, language
from nki_kernels.sim.errors import NkiValidationError
from nki_kernels.sim.run import Kernel, Run, jit, run, simulate

__all__ = [
    "Kernel", "NkiValidationError", "Run", "collectives", "isa", "jit", "language", "run",
    "simulate",
]  # fmt: skip
