"""How much each head, MLP channel and layer matters: what the loss would do without it, to first
order (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.model import build
from lsd_jax.train.history import history_loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scores:
    """Mean over batches of the squared first-order change of the loss."""

    layers: Float[Array, " l"]
    heads: Float[Array, "l h"]  # of keys and values, with the query heads that share them
    mlp: Float[Array, "l m"]


def importance(config: Config, params: dict, batches: Iterable[Batch]) -> Scores:
    """Scores by the loss of the history stage, so by what a stream of the model meets.

    A part's contribution is scaled by m = 1; the change for m = 0 is, to first order, the
    derivative by m: the sum over its output weights of weight times gradient.
    """
    total, count = None, 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007
        found = _squares(params, batch, jax.random.key(count), config)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise ValueError("no batch to score on")
    return jax.tree.map(lambda x: x / count, total)


@partial(jax.jit, static_argnames="config")
def _squares(params: dict, batch: Batch, key: Array, config: Config) -> Scores:
    def loss(stack: dict):
        model = build(config.model, params | {"stack": stack})
        return history_loss(model, model, batch, key, config)[0]

    stack = params["stack"]
    slopes = jax.grad(loss)(stack)
    heads = jnp.sum(stack["out"] * slopes["out"], axis=(2, 3))
    mlp = jnp.sum(stack["down"] * slopes["down"], axis=2)
    layers = jnp.sum(heads, axis=1) + jnp.sum(mlp, axis=1)
    return Scores(*(jnp.square(x) for x in (layers, heads, mlp)))
