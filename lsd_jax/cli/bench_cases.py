"""The whole frame as a case to compile, and its rows: kernel packages know nothing of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lsd_jax.hw.chips import Chip


def frame_rows(config: Any, chip: Chip) -> list[dict]:
    """Rows of `lsd bench frame` for a `lsd_jax.config.Config`. Raises ValueError where nothing
    compiles."""
    from pallas_kernels import bench

    return bench.frame_rows(config, chip, f"{__name__}:{frame.__name__}")


def pixel_rows(config: Any, chip: Chip) -> list[dict]:
    """Rows of `lsd bench pixels`. Raises ValueError where nothing compiles."""
    from pallas_kernels import bench

    return bench.pixel_rows(config, chip, f"{__name__}:{pixels.__name__}")


def pixels(op: str, implementation: str, config: dict) -> tuple[Callable, tuple, tuple]:
    """`embed` or `readout` of one frame of the config that `asdict` made a dict, by one
    implementation, as `frame` gives a frame."""
    import jax
    import jax.numpy as jnp

    from lsd_jax import config as configs
    from lsd_jax.model import abstract_model
    from lsd_jax.ops import dispatch

    chosen = configs.from_dict(config)
    model, dtype = chosen.model, jnp.dtype(chosen.stream.compute_dtype)

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    denoiser = jax.tree.map(lambda x: of(*x.shape), abstract_model(model))
    picture = (1, model.height, model.width)
    planes = of(*picture, 3), of(*picture, 3), of(*picture, len(model.controls))

    def run(denoiser, tokens, *planes):
        with dispatch.using(implementation) as ran:
            given = (tokens, *planes) if op == "readout" else planes
            out = (denoiser.readout if op == "readout" else denoiser.tokens)(*given)
        if ran[op] != implementation:
            raise NotImplementedError(f"{implementation} leaves {op} of this config to {ran[op]}")
        return out

    return run, (denoiser, of(1, model.tokens, model.dim), *planes), ()


def attend_rows(config: Any, chip: Chip) -> list[dict]:
    """Rows of `lsd bench attend`. Raises ValueError where nothing compiles."""
    from pallas_kernels import bench_attention

    case = f"{__name__}:{projection.__name__}"
    return bench_attention.attention_rows(config, chip, case)


def projection(modulated: bool, config: dict) -> tuple[Callable, tuple, tuple]:
    """What makes a layer's queries, keys and values, by XLA, behind norm and modulation or alone;
    as `frame` gives a frame."""
    import jax
    import jax.numpy as jnp

    from lsd_jax import config as configs
    from lsd_jax.layers import modulate

    chosen = configs.from_dict(config)
    model, dtype = chosen.model, jnp.dtype(chosen.stream.compute_dtype)

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def run(x, row, weight):
        x = modulate(x, row, row) if modulated else x
        return jnp.einsum("btd,dchk->btchk", x, weight)

    weight = of(model.dim, model.per_kv + 2, model.key_heads, model.head_dim)
    return run, (of(1, model.tokens, model.dim), of(1, model.dim), weight), ()


def frame(implementation: str, config: dict) -> tuple[Callable, tuple, tuple]:
    """`stream.frame_step` for one session of the config that `asdict` made a dict, its state
    donated, as a stream compiles it.

    Gives the function, its abstract arguments and the numbers of those donated.
    """
    from lsd_jax import config as configs
    from lsd_jax import stream
    from lsd_jax.ops import dispatch

    chosen = configs.from_dict(config)

    def step(*arguments):
        with dispatch.using(implementation):
            return stream.frame_step(*arguments)

    return step, (stream.abstract_prepared(chosen), *stream.abstract_inputs(chosen)), (1,)
