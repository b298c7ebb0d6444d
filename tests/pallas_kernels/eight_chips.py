"""Runs the megakernel on eight virtual chips, then not waiting, and prints what was noticed."""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Each chip's thread blocks while it waits for another's; with as many devices none is left over.
DEVICES = "--xla_force_host_platform_device_count=16"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"  # the last one counts
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental.pallas import tpu as pltpu  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from lsd_jax.hw.stack import share  # noqa: E402
from lsd_jax.ops.denoise_stack import denoise_stack  # noqa: E402
from pallas_kernels.tpu import exchange  # noqa: E402
from pallas_kernels.tpu.denoise_stack import by_kernel, shape_of  # noqa: E402
from pallas_kernels.tpu.plan import Plan  # noqa: E402
from tests.pallas_kernels import races  # noqa: E402
from tests.pallas_kernels.examples import arguments  # noqa: E402


def noticed(chips: int, fault: str) -> dict:
    """Of "none", and then of "unheard", which lasts."""
    pltpu.reset_tpu_interpret_mode_state()
    if fault == "unheard":  # no chip waits for what others send
        exchange.received = lambda machine, what, other: None
    args = arguments(b=2, heads=chips, mlp=128 * chips, layers=1)
    x, weights, kv, _, modulation, _ = args
    part = share(shape_of(x, weights, kv, modulation), chips)
    plan = Plan(part, group=1, chunk=128, rows=16, queries=16, chips=chips)
    simulated = pltpu.InterpretParams(detect_races=True)
    error, near = None, False
    try:
        with jax.set_mesh(Mesh(np.array(jax.devices()[:chips]), ("tensor",))):
            ours = jax.jit(lambda *args: by_kernel(plan, *args, interpret=simulated))(*args)
            ours = np.asarray(ours[0])
        theirs = np.asarray(jax.jit(denoise_stack)(*args)[0])
        near = bool(np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max())
    except Exception as failure:
        error = failure
    return races.noticed(error) | {"near": near}


if __name__ == "__main__":
    for count, each in ((8, "none"), (2, "unheard")):
        print(json.dumps({each: noticed(count, each)}), flush=True)
