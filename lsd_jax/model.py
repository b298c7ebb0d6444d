"""The denoiser: parameters, and the pure functions from planes to tokens to a clean frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsd_jax.codec import PixelCodec
from lsd_jax.conditioning import Conditioner
from lsd_jax.config import ModelConfig
from lsd_jax.layers import fourier, normal, rope_table
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.ops.embed import embed
from lsd_jax.ops.remember import pinned_alone, remember
from lsd_jax.readout import Readout
from lsd_jax.ring import bias, retention
from lsd_jax.types import Conditioning, KVBuffer, StackWeights

LEVEL_FEATURES = 32
CONDITION_DIM = 64


class Stack(nnx.Module):
    """The blocks, stacked over layers on axis 0."""

    def __init__(self, config: ModelConfig, key: Array):
        keys = jax.random.split(key, 6)
        layers, dim, heads, head_dim = config.layers, config.dim, config.key_heads, config.head_dim
        parts, found = config.per_kv + 2, config.per_kv * head_dim
        residual = (2 * layers) ** -0.5  # keeps the residual stream's variance flat in depth

        def param(key, shape, fan_in, axes, gain=1.0):
            return nnx.Param(normal(key, (layers, *shape), fan_in, gain), axes=("layer", *axes))

        self.qkv = param(
            keys[0], (dim, parts, heads, head_dim), dim, ("embed", None, "heads", None)
        )
        self.out = param(keys[1], (heads, found, dim), dim, ("heads", None, "embed"), residual)
        self.up = param(keys[2], (dim, config.mlp), dim, ("embed", "mlp"))
        self.down = param(keys[3], (config.mlp, dim), config.mlp, ("mlp", "embed"), residual)
        self.q_scale = nnx.Param(jnp.ones((layers, head_dim)), axes=("layer", None))
        self.k_scale = nnx.Param(jnp.ones((layers, head_dim)), axes=("layer", None))
        ages = (config.window + 1, heads, head_dim)
        self.age_k = param(keys[4], ages, 1, (None, "heads", None), 0.3)
        self.age_v = param(keys[5], ages, 1, (None, "heads", None), 0.1)

    def weights(self) -> StackWeights:
        """The arrays that `ops.denoise_stack` takes."""
        names = (field.name for field in fields(StackWeights))
        return StackWeights(**{n: getattr(self, n)[...] for n in names if hasattr(self, n)})


class PreparedStack(nnx.Module):
    """The blocks in another form: as one backend of `ops.denoise_stack` takes them and no other
    does, or in eight bits."""

    def __init__(self, weights: Any):
        self.prepared = nnx.data(weights)

    def weights(self) -> Any:
        """What is taken for weights; the learned scales are among them."""
        return self.prepared


class Modulation(nnx.Module):
    """Noise level, history level and step size to shift, scale and gate of every layer (adaLN)."""

    def __init__(self, config: ModelConfig, key: Array):
        keys = jax.random.split(key, 2)
        features = 3 * LEVEL_FEATURES
        self.enter = nnx.Param(
            normal(keys[0], (features, CONDITION_DIM), features), axes=(None, None)
        )
        shape = (config.layers, CONDITION_DIM, 6, config.dim)
        self.leave = nnx.Param(
            normal(keys[1], shape, CONDITION_DIM, 0.1), axes=("layer", None, None, "embed")
        )
        gates_open = jnp.zeros((config.layers, 6, config.dim)).at[:, jnp.array([2, 5])].set(1.0)
        self.base = nnx.Param(gates_open, axes=("layer", None, "embed"))

    def __call__(
        self,
        t: Float[Array, " b"],
        history_level: Float[Array, " b"],
        step: Float[Array, " b"],
    ) -> Float[Array, "l b 6 d"]:
        levels = [fourier(level, LEVEL_FEATURES) for level in (t, history_level, step)]
        features = jnp.concatenate(levels, axis=-1).astype(self.enter.dtype)
        hidden = jax.nn.silu(features @ self.enter[...])
        return jnp.einsum("bc,lcmd->lbmd", hidden, self.leave[...]) + self.base[...][:, None]


class Denoiser(nnx.Module):
    """Parameters only; state, time and randomness are arguments of the functions below."""

    def __init__(self, config: ModelConfig, key: Array):
        keys = jax.random.split(key, 6)
        channels = PixelCodec.channels
        planes = config.patch**2 * (2 * channels + len(config.controls))
        self.config = config
        self.embed = nnx.Param(normal(keys[0], (planes, config.dim), planes), axes=(None, "embed"))
        self.position = nnx.Param(
            normal(keys[1], (config.tokens, config.dim), 1, 0.1), axes=(None, "embed")
        )
        self.stack: Stack | PreparedStack = Stack(config, keys[2])
        self.modulation = Modulation(config, keys[3])
        self.readout = Readout(config, channels, keys[4])
        self.conditioner = Conditioner(config, keys[5])

    def tokens(self, source: Array, latent: Array, controls: Array) -> Float[Array, "b t d"]:
        """Input planes, a noisy (or finished) latent and control planes, as tokens."""
        return embed(source, latent, controls, self.embed[...], self.position[...])

    def denoise(
        self,
        source: Float[Array, "b height width c"],
        noisy: Float[Array, "b height width c"],
        controls: Float[Array, "b height width n"],
        kv: KVBuffer,
        modulation: Float[Array, "l #b 6 d"],
    ) -> Float[Array, "b height width c"]:
        """One pass: the clean latent predicted for the current frame."""
        x = self.tokens(source, noisy, controls)
        x, _, _ = self._run(x, kv, modulation)
        return self.readout(x, source, noisy, controls)

    def remember(
        self,
        source: Float[Array, "b height width c"],
        latent: Float[Array, "b height width c"],
        controls: Float[Array, "b height width n"],
        kv: KVBuffer,
        modulation: Float[Array, "l #b 6 d"],
    ) -> tuple[Float[Array, "l b t h k"], Float[Array, "l b t h k"]]:
        """Keys and values of a finished frame.

        They depend on that frame and the pinned tokens alone, so what is in the ring never needs
        recomputing, and training computes the history of all frames of a clip at once.
        """
        x = self.tokens(source, latent, controls)
        _, k, v = self._run(x, pinned_alone(kv), modulation)
        return k, v

    def commit(
        self,
        source: Float[Array, "b height width c"],
        latent: Float[Array, "b height width c"],
        controls: Float[Array, "b height width n"],
        kv: KVBuffer,
        modulation: Float[Array, "l #b 6 d"],
    ) -> tuple[KVBuffer, Bool[Array, " b"]]:
        """The buffer with a finished frame remembered, and whether what a session remembers of it
        is finite."""
        return remember(
            self.tokens(source, latent, controls),
            self.stack.weights(),
            kv,
            bias(pinned_alone(kv)),
            modulation,
            rope_table(*self.config.grid, self.config.head_dim),
            retention(self.config),
        )

    def pin(self, condition: Conditioning) -> tuple[Array, Array, Bool[Array, "b p"]]:
        """Pinned keys and values `[L, B, P, H, K]` of prompt and reference, and their validity."""
        k, v, valid = self.conditioner(condition)
        return k * self.stack.weights().k_scale[:, None, None, None], v, valid

    def prepared(self, prepare: Callable[[StackWeights], Any]) -> Denoiser:
        """The same denoiser with the weights of its blocks as `prepare` makes them."""
        return self.with_blocks(jax.jit(prepare)(self.stack.weights()))

    def with_blocks(self, weights: Any) -> Denoiser:
        """The same denoiser with these weights of its blocks, in whatever form."""
        other = nnx.clone(self)
        other.stack = PreparedStack(weights)
        return other

    def _run(self, x: Array, kv: KVBuffer, modulation: Array) -> tuple[Array, Array, Array]:
        rope = rope_table(*self.config.grid, self.config.head_dim)
        return denoise_stack(x, self.stack.weights(), kv, bias(kv), modulation, rope)


def cast(model: Denoiser, dtype) -> Denoiser:
    """The same model with every parameter in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype), model)


def abstract_model(config: ModelConfig) -> Denoiser:
    """The model's structure with shapes in place of arrays: costs no memory at any size."""
    return nnx.eval_shape(lambda: Denoiser(config, jax.random.key(0)))


def abstract_params(config: ModelConfig) -> dict:
    """Shapes and dtypes of the parameters, as nested dicts."""
    return nnx.to_pure_dict(nnx.state(abstract_model(config), nnx.Param))


def build(config: ModelConfig, params: dict) -> Denoiser:
    """The model that holds `params`."""
    graph, state = nnx.split(abstract_model(config))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
