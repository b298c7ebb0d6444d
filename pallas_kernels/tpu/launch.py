"""One launch of the megakernel: where each operand lies, and what comes out."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from lsd_jax.types import KVBuffer, Rope, StackWeights
from pallas_kernels.tpu import cores
from pallas_kernels.tpu.kernel import Machine
from pallas_kernels.tpu.loops import Interpret, in_hbm
from pallas_kernels.tpu.plan import Plan
from pallas_kernels.tpu.schedule import Program


def launch(
    plan: Plan,
    program: Program,
    x: Float[Array, "b t d"],
    weights: StackWeights,
    kv: KVBuffer,
    bias: Float[Array, "b n"],
    modulation: Float[Array, "l #b 6 d"],
    rope: Rope,
    vmem_limit_bytes: int | None = None,
    interpret: Interpret = False,
    dump: tuple[str, ...] = (),
) -> dict[str, jax.Array]:
    """Runs `program` on these arguments.

    Weights, keys and values are handed over with heads before rows. To XLA that is another view,
    free where it may choose how they lie in HBM, else a copy.

    Returns:
        `x_out [B, T, D]`, `k_out` and `v_out [L, H, B, T, K]`, and a copy of each of the VMEM
        buffers named in `dump`, of several cores with one in front for each.
    """
    alone, s = plan.sharers == 1, plan.shape
    small = {
        "x_in": x,
        "bias_in": bias[:, None],
        "modulation_in": modulation,
        "cos_in": rope.cos,
        "sin_in": rope.sin,
        "q_scale_in": weights.q_scale,
        "k_scale_in": weights.k_scale,
        "age_k_in": weights.age_k,
        "age_v_in": weights.age_v,
    }
    if (scales := weights.matrix_scales) is not None:
        small |= {f"{name}_scale_in": scale for name, scale in vars(scales).items()}
    streamed = {
        "qkv_hbm": jnp.transpose(weights.qkv, (0, 2, 3, 1, 4)),
        "out_hbm": weights.out,
        "k_hbm": jnp.swapaxes(kv.k, 2, 3),
        "v_hbm": jnp.swapaxes(kv.v, 2, 3),
        "up_hbm": weights.up,
        "down_hbm": weights.down,
    }
    if not alone:  # it comes and goes by way of `offered`
        streamed["x_in"] = small.pop("x_in")
    streamed = in_hbm(streamed, interpret)
    age = kv.age if s.slots else jnp.zeros((1, 1), jnp.int32)
    new = (s.layers, s.heads * plan.cores, s.sessions, s.tokens, s.head_dim)
    out = {"x_out": jax.ShapeDtypeStruct(x.shape, x.dtype)}
    out_hbm = {name: jax.ShapeDtypeStruct(new, x.dtype) for name in ("k_out", "v_out")}
    dumps = {name: jax.ShapeDtypeStruct(*_description(plan, name)) for name in dump}
    scratch = {name: pltpu.VMEM(*_description(plan, name)) for name in plan.buffers}
    scratch |= {
        "heads_arrived": pltpu.SemaphoreType.DMA((plan.ahead, 4)),
        "mlp_arrived": pltpu.SemaphoreType.DMA((plan.ahead, 2)),
        "left": pltpu.SemaphoreType.DMA((2,)),
    }
    if plan.chips > 1:
        scratch["sent"] = pltpu.SemaphoreType.DMA((2, plan.chips))
        scratch["received"] = pltpu.SemaphoreType.DMA((2, plan.chips))
    dumped = [f"dump_{name}" for name in dump]
    options = {
        "compiler_params": pltpu.CompilerParams(
            vmem_limit_bytes=vmem_limit_bytes, collective_id=0 if plan.chips > 1 else None
        ),
        "interpret": interpret,
        "name": "denoise_stack",
    }
    if plan.cores > 1:

        def run(at: SimpleNamespace) -> None:
            Machine(plan, at).run(program)

        return cores.launched(
            plan, run, age, small, streamed, out | out_hbm, scratch, dump, **options
        )
    names = ("age", *small, *streamed, *out, *out_hbm, *dumped, *scratch)
    sram, vmem, hbm = (
        pl.BlockSpec(memory_space=space) for space in (pltpu.SMEM, pltpu.VMEM, pltpu.HBM)
    )

    def body(*references):
        at = SimpleNamespace(**dict(zip(names, references, strict=True)))
        Machine(plan, at).run(program)
        for name in dump:
            getattr(at, f"dump_{name}")[...] = getattr(at, name)[...]

    found = pl.pallas_call(
        body,
        out_shape=(*out.values(), *out_hbm.values(), *dumps.values()),
        in_specs=[sram, *(vmem for _ in small), *(hbm for _ in streamed)],
        out_specs=(vmem if alone else hbm, hbm, hbm, *(vmem for _ in dump)),
        scratch_shapes=list(scratch.values()),
        **options,
    )(age, *small.values(), *streamed.values())
    return dict(zip((*out, *out_hbm, *dump), found, strict=True))


def _description(plan: Plan, name: str) -> tuple[tuple[int, ...], jnp.dtype]:
    buffer = plan.buffers[name]
    return buffer.shape, jnp.dtype(buffer.dtype)
