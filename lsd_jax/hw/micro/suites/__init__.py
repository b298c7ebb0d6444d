"""All cases, by suite."""

from __future__ import annotations

from collections.abc import Callable

import jax

from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites import blocks, frames, machine, matrices, moves, vectors

SUITES: dict[str, Callable[[bool], list[Case]]] = {
    "matmul": matrices.matmul,
    "convolution": matrices.convolution,
    "elementwise": vectors.elementwise,
    "memory": vectors.memory,
    "on_chip": moves.on_chip,
    "load": moves.load,
    "layout": vectors.layout,
    "attention": blocks.attention,
    "blocks": blocks.blocks,
    "frame": frames.frames,
    "launch": machine.launch,
    "transfer": machine.transfer,
    "collective": machine.collective,
    "remote": moves.remote,
    "compile": machine.compilation,
}
"""By name, `suite(quick)` gives its cases; quick ones are a part of all."""

ON_TPU = ("on_chip", "load", "remote")
"""Those whose kernels run on a TPU alone."""


def here() -> tuple[str, ...]:
    """The suites that can be measured on what JAX finds."""
    tpu = jax.default_backend() == "tpu"
    return tuple(name for name in SUITES if tpu or name not in ON_TPU)


def chosen(names: str | None, quick: bool, among: tuple[str, ...] | None = None) -> list[Case]:
    """The cases of the suites in a comma-separated list, or of all.

    Raises ValueError, naming those known, for another name.
    """
    known = among or tuple(SUITES)
    wanted = known if names is None else tuple(filter(None, names.split(",")))
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        said = ", ".join(unknown) or "nothing"
        raise ValueError(f"--suite {said}: known here: {', '.join(known)}")
    return [case for name in wanted for case in SUITES[name](quick)]


def find(name: str) -> Case:
    """The case of that name."""
    for suite in SUITES.values():
        for case in suite(False):
            if case.name == name:
                return case
    raise ValueError(f"no case {name!r}")
