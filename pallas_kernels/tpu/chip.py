"""Which TPU a computation is traced for."""

from __future__ import annotations

import jax

from lsd_jax.hw import chips

KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""JAX's `device_kind` to our name of the chip."""


def chip_here() -> chips.Chip:
    """The chip of the mesh in use, or of the default device.

    Raises NotImplementedError where that is no TPU that we have numbers of.
    """
    mesh = jax.sharding.get_abstract_mesh()
    target = getattr(mesh, "abstract_device", None)
    kind = target.device_kind if target is not None else jax.devices()[0].device_kind
    if kind not in KINDS:
        raise NotImplementedError(
            f"runs on {', '.join(sorted(set(KINDS.values())))}, and this is {kind!r}; "
            "backend pallas-interpret runs it anywhere, slowly"
        )
    return chips.load(KINDS[kind])
