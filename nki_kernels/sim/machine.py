"""The core that a kernel is running on: its chip, its trace, its rank. One per thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from lsd_jax.hw.chips import Chip
from nki_kernels.sim.errors import CapacityError, GenerationError, LaunchError
from nki_kernels.sim.tensor import Storage, Tensor
from nki_kernels.sim.trace import Lifetime, Trace

_thread = threading.local()


@dataclass
class Machine:
    """State of one simulated core."""

    chip: Chip
    numerics: bool = True
    rank: int = 0  # of the collective group
    ranks: int = 1
    core: int = 0  # of the cores that run as one (LNC)
    cores: int = 1
    meeting: Meeting | None = None
    ordered: bool = False  # inside of nl.no_reorder()
    trace: Trace = field(default_factory=Trace)

    @property
    def generation(self) -> int:
        return int(self.chip["generation"])

    def new(self, shape, dtype, buffer, name: str, data=None) -> Tensor:
        """A tensor of its own storage."""
        storage = Storage(shape, dtype, buffer, name, data, self.numerics)
        if buffer.on_chip:
            self.trace.lifetimes[storage.id] = Lifetime(
                name, buffer.value, storage.bytes_per_partition
            )
        return Tensor.whole(storage)

    def require_generation(self, least: int, op: str) -> None:
        if self.generation < least:
            raise GenerationError(
                f"{op} needs generation {least}; {self.chip.name} is generation {self.generation}"
            )

    def check_capacity(self) -> None:
        """Raises CapacityError where more is alive at once than SBUF or PSUM holds."""
        for buffer in ("sbuf", "psum"):
            peak, largest = self.trace.peak_bytes_per_partition(buffer)
            limit = int(self.chip[f"{buffer}_bytes_per_partition"])
            if peak > limit:
                raise CapacityError(
                    f"{buffer.upper()}: {peak} bytes a partition are alive at once, of {limit} on "
                    f"{self.chip.name}; the largest: {', '.join(largest)}"
                )


class Meeting:
    """Where the threads of all ranks meet, each bringing arrays and taking everybody's."""

    def __init__(self, parties: int, timeout_s: float = 60.0):
        self._barrier = threading.Barrier(parties, timeout=timeout_s)
        self._brought: dict[int, object] = {}

    def exchange(self, who: int, what) -> dict:
        """Everybody's contribution, once all have come. Raises LaunchError if somebody does not."""
        try:
            self._brought[who] = what
            self._barrier.wait()
            everything = dict(self._brought)
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise LaunchError(
                f"rank {who} waits for ranks that never come: all must take the same steps"
            ) from None
        return everything

    def abort(self) -> None:
        """Wakes everybody with an error, since one has failed."""
        self._barrier.abort()


def current() -> Machine:
    """The machine of this thread. Raises LaunchError outside of a kernel."""
    machine = getattr(_thread, "machine", None)
    if machine is None:
        raise LaunchError("nki instructions run inside a kernel: call it, or nki.simulate(kernel)")
    return machine


def enter(machine: Machine | None) -> Machine | None:
    """Makes `machine` this thread's, and gives the one before."""
    before = getattr(_thread, "machine", None)
    _thread.machine = machine
    return before
