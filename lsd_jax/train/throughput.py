"""How fast training goes: clips and FLOPs a second, and the share of the devices' peak."""

from __future__ import annotations

import time
from typing import Any

import jax
from jax.sharding import Mesh

from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.flops import count_flops
from lsd_jax.hw import chips, roofline
from lsd_jax.model import abstract_params
from lsd_jax.train.step import Loss, objective


class Throughput:
    """The clock of a training run that has done `step` steps."""

    def __init__(self, config: Config, loss: Loss, mesh: Mesh, step: int):
        self._config, self._loss, self._step = config, loss, step
        self._peak, self._flops = peak_flops(mesh), 0
        self._clock = time.monotonic()

    def lap(self, step: int, batch: Batch) -> dict[str, float]:
        """Means since the last lap, in which training came to `step` by such batches.

        Returns:
            `clips_per_s`; `tflops_per_s`, of `flops_of_step`; and where the peak of the devices is
            known `mfu`, what that is of their peak in bfloat16, whatever the arithmetic was in.
            Own streams that are made meanwhile take time and are no FLOPs of a step. Nothing where
            no step was done.
        """
        seconds, steps = time.monotonic() - self._clock, step - self._step
        self._step = step
        if not steps:
            self._clock = time.monotonic()
            return {}
        if not self._flops:
            self._flops = flops_of_step(self._config, self._loss, batch)
        flops = self._flops * steps / seconds
        found = {
            "clips_per_s": round(self._config.train.batch * steps / seconds, 2),
            "tflops_per_s": float(f"{flops / 1e12:.4g}"),
        }
        if self._peak:
            found["mfu"] = round(flops / self._peak, 4)
        self._clock = time.monotonic()
        return found


def flops_of_step(config: Config, loss: Loss, batch: Batch) -> int:
    """Floating-point operations of the products of a step's forward and backward pass, as MFU
    counts them (Chowdhery et al. 2022, appendix B): without the optimiser, and without what the
    backward pass works out again for want of memory.

    They are counted in a derivative along a direction, which takes as many products as a backward
    pass, and needs nothing again.
    """
    params: Any = abstract_params(config.model)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def along(params, direction, batch, key):
        def of(weights):
            return objective(config, loss, weights, params, batch, key)[0]

        return jax.jvp(of, (params,), (direction,))

    return count_flops(along, params, params, shapes, key)


def peak_flops(mesh: Mesh) -> float:
    """A second, in bfloat16, of all devices of a mesh; 0 where a device's peak is not known."""
    name = chips.DEVICES.get(mesh.devices.flat[0].device_kind)
    if name is None:
        return 0.0
    chip = chips.load(name)
    return mesh.size * chips.cores_of_device(chip) * roofline.rates(chip).peak
