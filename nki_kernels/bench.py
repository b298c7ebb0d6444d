"""Rows of `lsd bench stack` for Trainium: the megakernel on a modelled clock, by cores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.types import KVBuffer, Rope, StackWeights
from nki_kernels import pack
from nki_kernels.denoise_stack import make_kernel
from nki_kernels.plan import LANE, Shapes
from nki_kernels.sim import report
from nki_kernels.sim.run import run
from nki_kernels.sim.trace import Trace

LAYOUTS = (
    ("nki", 1, 1),
    ("nki-lnc2", 2, 2),
    ("nki", 2, 1),
    ("nki", 4, 1),
    ("nki", 8, 1),
    ("nki", 16, 1),
)
"""Rows: what they are called, how many cores share the work, how many of them act as one (LNC)."""


def rows(config: Any, chip: Chip) -> list[dict[str, Any]]:
    """One pass of all blocks over one frame, on 1 to 16 cores; a row says so where it does not fit.

    `config` is a `lsd_jax.config.Config`. Kind: modelled, by `sim.timeline` on the numbers of
    `chip`, in bfloat16. `us_low` and `us_high` are the edges of those numbers' uncertainty;
    `us_serial` is the time of the same instructions one after the other. `frame_us` adds up the
    passes and the one that commits, without what XLA does around them; `floor_us` is what
    `least_flops` at the tensor engine's peak, or `least_bytes` at HBM's bandwidth, take.
    """
    found = []
    for impl, ranks, together in LAYOUTS:
        if together > chip["physical_cores_per_logical"]:
            continue
        try:
            shapes = shapes_of(config.model, chip, ranks, together)
        except NotImplementedError as refusal:
            found.append(refused(impl, chip, ranks, str(refusal)))
            continue
        shown = report.figures([trace(shapes, chip)], chip)
        commit = report.figures([trace(alone(shapes, config.model.pinned), chip)], chip)
        launch_us = chip["launch_ns"] / 1e3
        frame_us = config.stream.passes * shown["us"] + commit["us"]
        found.append({
            "impl": impl, "chip": chip.name, "kind": "modelled", "cores": ranks,
            "floor_us": 1e6 * max(
                least_flops(shapes) / chip["pe_flops_bf16"],
                least_bytes(shapes) / chip["hbm_bandwidth"],
            ),
            "mxu_busy": shown["pe_busy"], "vmem_peak_bytes": None, "launches": 1, "libtpu": None,
            "over_serial": shown["us_serial"] / shown["us"],
            "frame_us": frame_us, "frame_us_with_launch": frame_us + launch_us, **shown,
        })  # fmt: skip
    return found


def least_flops(s: Shapes) -> int:
    """FLOPs of one core's share: projections and MLP, and two products with each key attended."""
    rows, width = s.sessions * s.tokens, s.heads * LANE
    dense = rows * s.dim * (4 * width + 2 * s.mlp)
    return 2 * s.layers * (dense + 2 * rows * (s.keys + s.tokens) * width)


def least_bytes(s: Shapes) -> int:
    """Bytes that have to cross one core's HBM interface, whatever the plan: its weights, keys and
    values read once, what is new written once, the residual stream both."""
    rows, width = s.sessions * s.tokens, s.heads * LANE
    weights = s.dim * (4 * width + 2 * s.mlp)
    keys = 2 * s.sessions * s.keys * width
    new = 2 * rows * width
    return s.itemsize * (s.layers * (weights + keys + new) + 2 * rows * s.dim)


def refused(impl: str, chip: Chip, ranks: int, why: str) -> dict[str, Any]:
    """A row that holds no figure but the reason."""
    empty = dict.fromkeys((
        "cycles", "us", "floor_us", "mxu_busy", "hbm_bytes", "vmem_peak_bytes", "launches",
        "libtpu",
    ))  # fmt: skip
    return {"impl": impl, "chip": chip.name, "kind": "modelled", "cores": ranks, **empty,
            "refused": why}  # fmt: skip


def shapes_of(model: Any, chip: Chip, ranks: int = 1, cores: int = 1) -> Shapes:
    """The sizes of one pass of a `lsd_jax.config.ModelConfig`, in bfloat16."""
    x, weights, kv = abstract_call(model)
    limit = int(chip["sbuf_bytes_per_partition"])
    return pack.shapes_of(x, weights, kv, ranks, cores, sbuf_bytes=limit)


def abstract_call(
    model: Any, compute_dtype: Any = jnp.bfloat16
) -> tuple[jax.ShapeDtypeStruct, StackWeights, KVBuffer]:
    """Shapes of the seam's residual stream, weights and buffer, for one session."""

    def of(*shape: int, dtype: Any = compute_dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    layers, dim, heads, k = model.layers, model.dim, model.heads, model.head_dim
    ages = (layers, model.window + 1, heads, k)
    weights = StackWeights(
        qkv=of(layers, dim, 3, heads, k), q_scale=of(layers, k), k_scale=of(layers, k),
        out=of(layers, heads, k, dim), up=of(layers, dim, model.mlp),
        down=of(layers, model.mlp, dim), age_k=of(*ages), age_v=of(*ages),
    )  # fmt: skip
    buffer = of(layers, 1, model.keys, heads, k)
    kv = KVBuffer(
        k=buffer, v=buffer, pinned=of(1, model.pinned, dtype=bool),
        age=of(1, model.slots, dtype=jnp.int32), memory=of(1, model.memory, dtype=jnp.int32),
    )  # fmt: skip
    return of(1, model.tokens, dim), weights, kv


def alone(shapes: Shapes, pinned: int) -> Shapes:
    """The pass that commits a frame: it sees the pinned tokens and the frame alone."""
    return Shapes(**{**vars_of(shapes), "ageless": pinned, "slots": 0})


def vars_of(shapes: Shapes) -> dict[str, Any]:
    """The fields of the shapes, without what was worked out from them."""
    return {name: getattr(shapes, name) for name in Shapes.__dataclass_fields__}


def trace(shapes: Shapes, chip: Chip) -> Trace:
    """The instructions of one core, without numerics."""
    kernel = make_kernel(shapes)[shapes.cores]
    ranks = 1 if shapes.cores > 1 else shapes.ranks
    done = run(kernel, arguments(shapes), chip, numerics=False, ranks=ranks)
    return done.traces[0]


def arguments(shapes: Shapes) -> list[jax.ShapeDtypeStruct]:
    """Abstract arguments of the kernel on one rank; `denoise_stack.body` names them."""
    dim, heads, k = shapes.dim, shapes.heads * shapes.cores, 128
    layers, sessions, tokens = shapes.layers, shapes.sessions, shapes.tokens
    compute = jnp.bfloat16 if shapes.itemsize == 2 else jnp.float32

    def call(x, weights, kv, bias, modulation, cos, sin):
        rope = Rope(cos, sin)
        first, *rest = pack.pack_call(x, weights, kv, bias, modulation, rope, shapes)
        return first, *rest

    def of(*shape: int, dtype: Any = compute) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    ages = (layers, shapes.ages, heads, k)
    weights = StackWeights(
        qkv=of(layers, dim, 3, heads, k), q_scale=of(layers, k), k_scale=of(layers, k),
        out=of(layers, heads, k, dim), up=of(layers, dim, shapes.mlp),
        down=of(layers, shapes.mlp, dim), age_k=of(*ages), age_v=of(*ages),
    )  # fmt: skip
    buffer = of(layers, sessions, shapes.keys, heads, k)
    kv = KVBuffer(
        buffer, buffer, of(sessions, 0, dtype=bool), of(sessions, shapes.slots, dtype=jnp.int32),
        of(sessions, 0, dtype=jnp.int32),
    )  # fmt: skip
    table = of(tokens, k // 2, dtype=np.float32)
    packed = of(shapes.cores, layers, shapes.first_block["end"], k, shapes.block)
    first, *rest = jax.eval_shape(
        call, of(sessions, tokens, dim), weights, kv, of(sessions, shapes.keys, dtype=np.float32),
        of(layers, 1, 6, dim), table, table,
    )  # fmt: skip
    return [first, packed, *rest]
