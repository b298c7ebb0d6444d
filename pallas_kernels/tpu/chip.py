"""Which TPU a computation is traced for."""

from __future__ import annotations

from lsd_jax.hw import chips
from lsd_jax.ops.partition import device_kind


def chip_here() -> chips.Chip:
    """The chip of the mesh in use, or of the default device.

    Raises NotImplementedError where that is no TPU that we have numbers of.
    """
    kind = device_kind()
    tpus = {of: name for of, name in chips.DEVICES.items() if of.startswith("TPU")}
    if kind not in tpus:
        raise NotImplementedError(
            f"runs on {', '.join(sorted(set(tpus.values())))}, and this is {kind!r}; "
            "backend pallas-interpret runs it anywhere, slowly"
        )
    return chips.load(tpus[kind])
