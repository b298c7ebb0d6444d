"""Runs the megakernel with one fault after another in its program, and prints what was noticed."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental.pallas import tpu as pltpu  # noqa: E402

from pallas_kernels.tpu.launch import launch  # noqa: E402
from pallas_kernels.tpu.schedule import Await, Loop, Mlp, Refill, program, steps  # noqa: E402
from tests.pallas_kernels import races  # noqa: E402
from tests.pallas_kernels.examples import arguments, plan_of  # noqa: E402


def without(nodes, fault):
    """The program with its traffic broken."""
    found = []
    for node in nodes:
        if isinstance(node, Loop):
            found.append(replace(node, body=without(node.body, fault)))
        elif fault == "missing_wait" and node == Await("mlp"):
            continue
        elif fault == "single_buffer" and isinstance(node, Mlp):
            found += [Refill("mlp"), node]  # into the slot that is still in use
        elif fault == "single_buffer" and node == Refill("mlp"):
            continue
        else:
            found.append(node)
    return tuple(found)


FAULTS = ("none", "single_buffer", "missing_wait", "wrong_slot", "beyond")


def noticed(fault: str) -> dict:
    """Of the program with that fault."""
    pltpu.reset_tpu_interpret_mode_state()
    args = arguments(mlp=384, layers=2)
    plan = plan_of(args)
    if fault == "beyond":
        plan = replace(plan, chunk=192, shape=replace(plan.shape, mlp=576))
    nodes = without(program(plan), fault)
    if fault == "wrong_slot":  # each MLP uses the tile after the one it waited for
        nodes = tuple(
            replace(s, tile=(s.tile + 1) % plan.chunks) if isinstance(s.instruction, Mlp) else s
            for s in steps(nodes)
        )
    error, nan = None, False
    simulated = pltpu.InterpretParams(detect_races=True)
    try:
        out = jax.jit(lambda *args: launch(plan, nodes, *args, interpret=simulated))(*args)
        nan = bool(np.isnan(np.asarray(out["x_out"])).any())
    except Exception as failure:
        error = failure
    return races.noticed(error) | {"nan": nan}


if __name__ == "__main__":
    for each in FAULTS:
        print(json.dumps({each: noticed(each)}), flush=True)
