"""Runs the megakernel on two simulated cores, rightly and wrongly, and prints what was noticed."""

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

os.environ["JAX_PLATFORMS"] = "cpu"
# Each core's thread blocks while it waits for the other's, so one device has too few of them.
DEVICES = "--xla_force_host_platform_device_count=4"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"  # the last one counts
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import pallas as pl  # noqa: E402
from jax.experimental.pallas import tpu as pltpu  # noqa: E402

from lsd_jax.hw.stack import share  # noqa: E402
from lsd_jax.ops.denoise_stack import denoise_stack  # noqa: E402
from pallas_kernels.tpu import cores, kernel, schedule  # noqa: E402
from pallas_kernels.tpu.denoise_stack import by_kernel, shape_of  # noqa: E402
from pallas_kernels.tpu.plan import Plan  # noqa: E402
from tests.pallas_kernels import races  # noqa: E402
from tests.pallas_kernels.examples import arguments  # noqa: E402


def main() -> None:
    tell("none")
    # A core goes on without the other's share, and hears of it at the end.
    late = patch.dict(kernel.EMIT, {schedule.Store: store_late})
    with patch.object(cores, "told", lambda machine: None), late:
        tell("unheard")
    # A share is written where the other core may still read the last one.
    with patch.object(cores, "PARTS", SamePlace(cores.PARTS)):
        tell("one place")
    # Both cores compute the first one's heads and features.
    with patch.object(kernel.Machine, "core", 0):
        tell("whole")


def tell(fault: str) -> None:
    print(json.dumps({fault: noticed()}), flush=True)


def noticed() -> dict:
    """Of the kernel as it is now."""
    pltpu.reset_tpu_interpret_mode_state()
    args = arguments(heads=2, mlp=256, layers=1)
    x, weights, kv, _, modulation, _ = args
    part = share(shape_of(x, weights, kv, modulation), 2)
    plan = Plan(part, group=1, chunk=128, rows=16, queries=16, cores=2)
    simulated = pltpu.InterpretParams(detect_races=True)
    error, near = None, False
    try:
        ours = jax.jit(lambda *args: by_kernel(plan, *args, interpret=simulated))(*args)
        ours = np.asarray(ours[0])
        theirs = np.asarray(jax.jit(denoise_stack)(*args)[0])
        near = bool(np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max())
    except Exception as failure:
        error = failure
    return races.noticed(error) | {"near": near}


class SamePlace(tuple):
    """Parts that all have the first one's place."""

    def index(self, *_):
        return 0


def store_late(machine, node, layer, tile):
    for _ in range(2 * machine.plan.shape.layers):
        pl.semaphore_wait(machine.at.told, 1)
    kernel.Machine.store(machine, node, layer, tile)


if __name__ == "__main__":
    main()
