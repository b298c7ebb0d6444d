"""`nki`, `nisa`, `nl` and `nccl`: the real packages where they are installed, else the simulator.

The public package index holds an empty placeholder by the name `nki`. It imports, but has no
`nki.isa`; `PLACEHOLDER` says that one is installed, and it is never used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def installed() -> tuple[bool, bool]:
    """Whether the real `nki` can be imported, and whether a placeholder is in its place."""
    if importlib.util.find_spec("nki") is None:
        return False, False
    try:
        real = importlib.util.find_spec("nki.isa") is not None
    except ModuleNotFoundError:  # `nki` is a single module
        real = False
    return real, not real


REAL, PLACEHOLDER = installed()

nki: Any
nccl: Any
nisa: Any
nl: Any
if REAL:
    nki, nccl, nisa, nl = (
        importlib.import_module(name)
        for name in ("nki", "nki.collectives", "nki.isa", "nki.language")
    )
else:
    from nki_kernels import sim as nki
    from nki_kernels.sim import collectives as nccl
    from nki_kernels.sim import isa as nisa
    from nki_kernels.sim import language as nl

__all__ = ["PLACEHOLDER", "REAL", "nccl", "nisa", "nki", "nl", "require_real"]


def require_real() -> None:
    """Raises NotImplementedError, with the remedy, where the real `nki` is not installed."""
    if REAL:
        return
    found = (
        "the installed `nki` is an empty placeholder from the public index; uninstall it, and"
        if PLACEHOLDER
        else "`nki` is not installed;"
    )
    raise NotImplementedError(
        f"{found} install the extra `neuron` from AWS's package index (docs/trainium.md)"
    )
