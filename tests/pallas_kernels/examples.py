"""Small denoise stacks that the megakernel takes."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lsd_jax import ring
from pallas_kernels.tpu.denoise_stack import shape_of
from pallas_kernels.tpu.plan import Plan, filling
from tests.ops.test_denoise_stack import example


def arguments(dtype="float32", **changes):
    """Those of `ops.denoise_stack`, with heads of 128 features, cold slots and invalid pins.

    Cast by NumPy: JAX would compile a cast for each shape.
    """
    sizes = dict(b=1, rows=4, columns=8, layers=2, heads=2, k=128, mlp=256, p=16, slots=3)
    x, weights, kv, modulation, rope = example(**(sizes | changes))
    bias = jax.jit(ring.bias)(kv)

    def cast(tree):
        return jax.tree.map(
            lambda a: jnp.asarray(np.asarray(a).astype(dtype)) if a.dtype == jnp.float32 else a,
            tree,
        )

    return cast(x), cast(weights), cast(kv), bias, cast(modulation), rope


def plan_of(args, group=1, chunk=128, rows=32, queries=16, turned=False, ahead=2) -> Plan:
    """Several tiles and blocks of everything."""
    x, weights, kv, _, modulation, _ = args
    shape = shape_of(x, weights, kv, modulation)
    return Plan(shape, group, chunk, rows, queries, turned, ahead, filled=filling(shape))


@cache
def noticed(script: str) -> dict[str, dict]:
    """What a script beside this file prints of a kernel with each of its faults, a line each, in a
    process of its own: a kernel that waits for what nobody sends would never end, and neither it
    nor those behind it are in what is returned."""
    command = [sys.executable, Path(__file__).with_name(script)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=280)
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
    else:
        assert done.returncode == 0, done.stderr.decode()
        printed = done.stdout
    lines = (json.loads(line) for line in printed.splitlines() if line.startswith(b"{"))
    return {fault: seen for line in lines for fault, seen in line.items()}
