"""Running kernels: `jit`, `simulate`, and `run`, which gives values and traces."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lsd_jax.hw import chips
from nki_kernels.sim.errors import (
    ArgumentError,
    LaunchError,
    NotSimulatedError,
    OutputBufferError,
)
from nki_kernels.sim.machine import Machine, Meeting, enter
from nki_kernels.sim.tensor import Buffer, Tensor
from nki_kernels.sim.trace import Trace


@dataclass(frozen=True)
class Kernel:
    """A function under `@nki.jit`; `kernel[2]` runs it on two cores that act as one."""

    function: Any
    cores: int = 1

    def __getitem__(self, cores: int) -> Kernel:
        if cores not in (1, 2):
            raise LaunchError(f"kernel[{cores}]: one or two cores run as one")
        return replace(self, cores=cores)

    def __call__(self, *args):
        return run(self, args).outputs[0]

    @property
    def __name__(self) -> str:
        return self.function.__name__

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__


@dataclass(frozen=True)
class Run:
    """What a kernel gave on each rank (None without numerics), and what it did on each core."""

    outputs: list
    traces: list[Trace]


def jit(function=None, **options):
    """Marks the outermost function of a kernel. Former options, such as `mode`, are refused."""
    if options or not callable(function):
        raise ArgumentError("@nki.jit takes no options: write it bare")
    return Kernel(function)


def simulate(kernel: Kernel):
    """The kernel as a function of NumPy arrays."""
    return lambda *args: run(kernel, args).outputs[0]


def run(
    kernel: Kernel,
    args: Sequence,
    chip: chips.Chip | str = "trn2",
    numerics: bool = True,
    ranks: int = 1,
) -> Run:
    """Runs a kernel on simulated cores.

    Args:
        kernel: from `jit`; `kernel[2]` runs on two cores.
        args: NumPy arrays and Python constants. On several ranks with numerics, one such tuple
            for each rank. Without numerics anything with `shape` and `dtype` will do.
        chip: name or numbers.
        numerics: whether to compute values. Without, shapes and rules are checked still, except
            for those that depend on values or on who wrote them; and of several ranks only the
            first is run, as all do the same.
        ranks: of the group that collectives span.

    Raises NkiValidationError for whatever the hardware cannot do.
    """
    chip = chips.load(chip) if isinstance(chip, str) else chip
    if ranks > 1 and kernel.cores > 1:
        raise NotSimulatedError(
            "several ranks of two cores each are not simulated; use ranks alone"
        )
    cores = kernel.cores if ranks == 1 else ranks
    if not numerics or cores == 1:
        per_core = [args[0] if ranks > 1 and numerics else args]
    else:
        per_core = list(args) if ranks > 1 else [args] * cores
        if len(per_core) != cores:
            raise LaunchError(f"{ranks} ranks want {ranks} tuples of arguments, got {len(args)}")
    meeting = Meeting(len(per_core)) if len(per_core) > 1 else None
    machines = []
    for i in range(len(per_core)):
        machine = Machine(chip, numerics, meeting=meeting, trace=Trace(rank=i))
        machine.ranks, machine.cores = ranks, kernel.cores
        machine.rank, machine.core = (i, 0) if ranks > 1 else (0, i)
        machines.append(machine)
    shared = _SharedMemory() if kernel.cores > 1 and meeting else None
    results = _in_threads(kernel, machines, per_core, shared)
    for machine in machines:
        machine.check_capacity()
    outputs = results[:1] if ranks == 1 else results
    return Run(outputs, [machine.trace for machine in machines])


class _SharedMemory:
    """HBM that two cores see alike: inputs by position, shared_hbm by order of allocation."""

    def __init__(self):
        self._tensors: dict = {}
        self._lock = threading.Lock()

    def get(self, key, make) -> Tensor:
        with self._lock:
            if key not in self._tensors:
                self._tensors[key] = make()
            return self._tensors[key]


def _in_threads(kernel: Kernel, machines: list[Machine], per_core: list, shared) -> list:
    if len(machines) == 1:
        return [_on_core(kernel, machines[0], per_core[0], None)]
    results: list = [None] * len(machines)
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            results[i] = _on_core(kernel, machines[i], per_core[i], shared)
        except BaseException as error:  # handed to the caller below
            errors.append(error)
            meeting = machines[i].meeting
            if meeting is not None:
                meeting.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:  # the first is the cause; the others only waited for it
        raise errors[0]
    return results


def _on_core(kernel: Kernel, machine: Machine, args, shared: _SharedMemory | None):
    if shared is not None:
        new, count = machine.new, iter(range(1 << 30))

        def shared_new(shape, dtype, buffer, name, data=None):
            if buffer is not Buffer.shared_hbm:
                return new(shape, dtype, buffer, name, data)
            return shared.get(next(count), lambda: new(shape, dtype, buffer, name, data))

        machine.new = shared_new
    names = _names(kernel, len(args))
    before = enter(machine)
    try:
        tensors = [_argument(machine, n, a) for n, a in zip(names, args, strict=True)]
        returned = kernel.function(*tensors)
        return _results(kernel, machine, returned)
    finally:
        enter(before)


def _names(kernel: Kernel, count: int) -> list[str]:
    parameters = list(inspect.signature(kernel.function).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return [f"argument_{i}" for i in range(count)]
    if len(parameters) != count:
        raise LaunchError(f"{kernel.__name__} takes {len(parameters)} arguments, got {count}")
    return [p.name for p in parameters]


def _argument(machine: Machine, name: str, value):
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return value
    data = np.asarray(value) if machine.numerics else None
    return machine.new(value.shape, np.dtype(value.dtype), Buffer.shared_hbm, name, data)


def _results(kernel: Kernel, machine: Machine, returned):
    several = isinstance(returned, (tuple, list))
    outputs = list(returned) if several else [returned]
    for output in outputs:
        if not isinstance(output, Tensor) or output.buffer is not Buffer.shared_hbm:
            raise OutputBufferError(f"{kernel.__name__} returns {output!r}; want shared_hbm")
    if not machine.numerics:
        return None
    if machine.cores > 1 and machine.meeting is not None:
        machine.meeting.exchange(machine.core, None)  # the other core may still be writing
    values = [output.read("the kernel's end").copy() for output in outputs]
    return tuple(values) if several else values[0]
