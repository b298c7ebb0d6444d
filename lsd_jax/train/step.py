"""The state of a training run and the jitted function that takes it one step further."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from lsd_jax import sharding
from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.model import Denoiser, abstract_model, build, cast
from lsd_jax.ops import dispatch
from lsd_jax.ops.attend import attend
from lsd_jax.prune import two_four
from lsd_jax.train.optim import optimizer

Loss = Callable[[Denoiser, Denoiser, Batch, Array, Config], tuple[Array, dict[str, Array]]]
"""Of a model, its teacher, a batch, a key and the config: the loss and its metrics. The teacher is
the running mean of the weights; a stage may put another model in its place."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Float32 master weights as nested dicts, their running mean, and the optimiser's state."""

    params: dict
    ema: dict
    optimizer: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]  # steps in a row without a finite gradient


def create_state(config: Config, params: dict | None) -> TrainState:
    """Fresh weights (or the given ones) and optimiser."""
    if params is None:
        model = Denoiser(config.model, jax.random.key(config.train.seed))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    zero = jnp.zeros((), jnp.int32)
    opt = optimizer(config.train).init(params)
    return TrainState(params, jax.tree.map(jnp.copy, params), opt, zero, zero)


def init_state(config: Config, mesh: Mesh, params: dict | None = None) -> TrainState:
    """`create_state`, born sharded over `mesh`."""
    create = partial(create_state, config)
    return jax.jit(create, out_shardings=state_shardings(config, mesh))(params)


def state_shardings(config: Config, mesh: Mesh) -> Any:
    """Where each part of a `TrainState` lies, in its shape: the running mean and the moments
    beside their weights, scalars everywhere."""
    weights = sharding.parameter_shardings(abstract_model(config.model), mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    by_path = dict(jax.tree_util.tree_flatten_with_path(weights)[0])

    def place(path, leaf):
        # The path of a mean or a moment ends in the path of its weight.
        for start in range(len(path)):
            if path[start:] in by_path and leaf.ndim:
                return by_path[path[start:]]
        return replicated

    shapes = jax.eval_shape(partial(create_state, config), None)
    return jax.tree_util.tree_map_with_path(place, shapes)


def abstract_state(config: Config, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a `TrainState`, for restoring one."""
    shapes = jax.eval_shape(partial(create_state, config), None)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        state_shardings(config, mesh),
    )


def objective(
    config: Config, loss: Loss, params: dict, ema: dict, batch: Batch, key: Array
) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch and its metrics, in the compute dtype."""
    models = (build(config.model, p) for p in (params, ema))
    model, teacher = (cast(m, config.train.compute_dtype) for m in models)
    return loss(model, teacher, batch, key, config)


def make_step(
    config: Config, loss: Loss, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Compiles one step of `loss`: bf16 (or `compute_dtype`) arithmetic, float32 weights, ops by
    `train.backend` where it has gradients.

    A step whose loss or gradient is not finite changes nothing but `skipped`. Its first call raises
    ValueError where that backend is unknown or cannot serve this config.
    """
    settings = config.train
    update = optimizer(settings).update

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)

        def of(params):
            return objective(config, loss, params, state.ema, batch, key)

        with dispatch.using(settings.backend, gradients=True, mesh=mesh):
            try:
                grads, metrics = jax.grad(of, has_aux=True)(state.params)
            except NotImplementedError as refusal:
                raise ValueError(f"train.backend={settings.backend}: {refusal}") from refusal
        norm = optax.tree.norm(grads)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            changes, opt = update(grads, state.optimizer, state.params)
        if settings.keep_zeros:
            changes = two_four.keep_zeros(changes, state.params)
        params: Any = optax.apply_updates(state.params, changes)
        # Early on the mean would remember the random start, so it shortens its memory.
        decay = jnp.minimum(settings.ema, (state.step + 1) / (state.step + 10))
        ema: Any = optax.incremental_update(params, state.ema, 1 - decay)

        fine = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        zero = jnp.zeros((), jnp.int32)
        new = TrainState(params, ema, opt, state.step + 1, zero)
        old = TrainState(
            state.params, state.ema, state.optimizer, state.step + 1, state.skipped + 1
        )
        state = jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)
        return state, {**metrics, "grad_norm": norm, "skipped": state.skipped}

    places = state_shardings(config, mesh)
    batch_place = NamedSharding(mesh, sharding.BATCH)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(places, batch_place),
        out_shardings=(places, NamedSharding(mesh, PartitionSpec())),
    )


def explain_attention(config: Config, mesh: Mesh) -> dict[str, str]:
    """What each backend of `ops.attend` says to a training step's attention to remembered frames,
    see `Op.explain`. Raises ValueError where it has none of the name in `train.backend`."""
    model, train = config.model, config.train

    def of(rows: int, *last: int, dtype: str = train.compute_dtype) -> Any:
        return jax.ShapeDtypeStruct((train.batch * train.frames, rows, *last), jnp.dtype(dtype))

    heads = (model.key_heads, model.head_dim)
    keys = model.keys if train.frames > 1 else model.pinned
    attended = of(keys + model.tokens, *heads)
    queries, bias = of(model.tokens * model.per_kv, *heads), of(keys, dtype="float32")
    with dispatch.using(train.backend, gradients=True, mesh=mesh):
        answers = attend.explain(queries, attended, attended, bias)
    known = (dispatch.AUTO, *answers)
    if train.backend not in known:
        raise ValueError(f"unknown train.backend={train.backend}; known: {', '.join(known)}")
    return answers
