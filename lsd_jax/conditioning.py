"""Prompt and reference picture to pinned keys and values, computed only when one changes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsd_jax.codec import PixelCodec
from lsd_jax.config import ModelConfig
from lsd_jax.data import prompts
from lsd_jax.layers import normal, patchify, rms_norm
from lsd_jax.ops.attend import attend
from lsd_jax.ring import INVALID
from lsd_jax.types import Conditioning

TEXT_HEADS = 4


def ask(
    texts: Sequence[str], references: Sequence[np.ndarray | None], config: ModelConfig
) -> tuple[Conditioning, Bool[np.ndarray, " b"]]:
    """What sessions ask for, a text and a reference picture `[H, W, 3]` (or None) each, and which
    are to forget the frames that they have shown: all that do not `prompts.CARRY_ON`.

    Raises ValueError, with what to do, for a text that the model cannot take.
    """
    anew = np.array([prompts.normalise(text) != prompts.CARRY_ON for text in texts])
    none = np.zeros((config.height, config.width, 3), np.uint8)
    asked = Conditioning(
        prompt=jnp.asarray(np.stack([prompts.encode(t, config.prompt_bytes) for t in texts])),
        reference=jnp.asarray(np.stack([none if r is None else r for r in references])),
        has_reference=jnp.asarray([r is not None for r in references]) & anew,
    )
    return asked, anew


def taken_back(condition: Conditioning) -> Conditioning:
    """What a model hears of a `condition` that has been taken back: to carry on."""
    prompt = prompts.encode(prompts.CARRY_ON, condition.prompt.shape[1])
    return Conditioning(
        prompt=jnp.broadcast_to(prompt, condition.prompt.shape),
        reference=condition.reference,
        has_reference=jnp.zeros_like(condition.has_reference),
    )


class Pool(nnx.Module):
    """Learned queries that read a sequence by one cross-attention: any length to `tokens`."""

    def __init__(self, tokens: int, source_dim: int, dim: int, key: Array):
        keys = jax.random.split(key, 4)
        self.queries = nnx.Param(normal(keys[0], (tokens, dim), 1), axes=(None, "embed"))
        self.k = nnx.Param(normal(keys[1], (source_dim, dim), source_dim), axes=(None, "embed"))
        self.v = nnx.Param(normal(keys[2], (source_dim, dim), source_dim), axes=(None, "embed"))
        self.out = nnx.Param(normal(keys[3], (dim, dim), dim), axes=(None, "embed"))

    def __call__(
        self, source: Float[Array, "b n e"], valid: Bool[Array, "b n"]
    ) -> Float[Array, "b tokens d"]:
        k, v = source @ self.k[...], source @ self.v[...]
        q = jnp.broadcast_to(self.queries[...], (source.shape[0], *self.queries.shape))
        pooled = multi_head(rms_norm(q), rms_norm(k), v, valid)
        return q + pooled @ self.out[...]


class TextEncoder(nnx.Module):
    """UTF-8 bytes, or embeddings from outside, to `prompt_tokens` tokens."""

    def __init__(self, config: ModelConfig, key: Array):
        keys = jax.random.split(key, 5)
        dim, layers = config.text_dim, config.text_layers
        source = config.external_text_dim or 256
        self.external = bool(config.external_text_dim)
        self.table = nnx.Param(normal(keys[0], (source, dim), 1), axes=(None, None))
        self.position = nnx.Param(
            normal(keys[1], (config.prompt_bytes, dim), 1, 0.3), axes=(None, None)
        )
        self.words = nnx.Param(normal(keys[2], (5, dim, dim), 5 * dim), axes=(None, None, None))
        shape = (layers, 12 * dim, dim)  # q, k, v, out: dim each; up and down: 4 dim each
        self.blocks = nnx.Param(normal(keys[3], shape, dim), axes=("text_layer", None, None))
        self.pool = Pool(config.prompt_tokens, dim, config.dim, keys[4])

    def __call__(self, prompt: Array) -> Float[Array, "b p d"]:
        if (prompt.dtype == jnp.uint8) == self.external:
            wanted = "embeddings from outside" if self.external else "bytes"
            raise ValueError(f"this model takes prompts as {wanted}, not {prompt.dtype}")
        if prompt.dtype == jnp.uint8:
            valid = prompt > 0
            x = self.table[...][prompt.astype(jnp.int32)]
        else:
            valid = jnp.any(prompt != 0, axis=-1)
            x = prompt @ self.table[...]
        valid = valid.at[:, 0].set(True)  # the empty prompt still has one position to read
        x = x + self.position[...]
        neighbours = jnp.pad(jnp.where(valid[..., None], x, 0), ((0, 0), (2, 2), (0, 0)))
        length = x.shape[1]
        words = sum(
            neighbours[:, i : i + length] @ kernel for i, kernel in enumerate(self.words[...])
        )
        x, _ = jax.lax.scan(
            lambda x, w: (text_block(x, w, valid), None), x + words, self.blocks[...]
        )
        return self.pool(rms_norm(x), valid)


class ReferenceEncoder(nnx.Module):
    """A picture to `reference_tokens` tokens, by one wide patch embedding and a pool."""

    def __init__(self, config: ModelConfig, key: Array):
        keys = jax.random.split(key, 4)
        patch, dim = config.patch**2 * 3, config.dim
        self.embed = nnx.Param(normal(keys[0], (patch, dim), patch), axes=(None, "embed"))
        self.position = nnx.Param(
            normal(keys[1], (config.tokens, dim), 1, 0.3), axes=(None, "embed")
        )
        self.mix = nnx.Param(normal(keys[2], (dim, dim), dim), axes=(None, "embed"))
        self.pool = Pool(config.reference_tokens, dim, dim, keys[3])
        self.patch = config.patch

    def __call__(self, picture: Float[Array, "b h w 3"]) -> Float[Array, "b p d"]:
        patches = patchify(picture, self.patch)
        x = patches.reshape(picture.shape[0], -1, patches.shape[-1]) @ self.embed[...]
        x = x + self.position[...]
        x = x + jax.nn.gelu(rms_norm(x) @ self.mix[...])
        return self.pool(rms_norm(x), jnp.ones(x.shape[:2], bool))


class Conditioner(nnx.Module):
    """Both encoders and the projection of their tokens to every layer's keys and values."""

    def __init__(self, config: ModelConfig, key: Array):
        keys = jax.random.split(key, 3)
        self.text = TextEncoder(config, keys[0])
        self.reference = ReferenceEncoder(config, keys[1])
        shape = (config.layers, config.dim, 2, config.key_heads, config.head_dim)
        self.project = nnx.Param(
            normal(keys[2], shape, config.dim), axes=("layer", "embed", None, "heads", None)
        )

    def __call__(self, condition: Conditioning) -> tuple[Array, Array, Bool[Array, "b p"]]:
        """Pinned keys and values, each `[L, B, P, H, K]`, and which of the P are valid.

        Keys are normalised but not yet scaled by the blocks' `k_scale`.
        """
        prompt = self.text(condition.prompt)
        reference = self.reference(PixelCodec().encode(condition.reference).astype(prompt.dtype))
        tokens = rms_norm(jnp.concatenate([prompt, reference], axis=1))
        valid = jnp.concatenate(
            [
                jnp.ones(prompt.shape[:2], bool),
                jnp.broadcast_to(condition.has_reference[:, None], reference.shape[:2]),
            ],
            axis=1,
        )
        k, v = jnp.moveaxis(jnp.einsum("bpd,ldchk->lbpchk", tokens, self.project[...]), 3, 0)
        return rms_norm(k), v, valid


def multi_head(q: Array, k: Array, v: Array, valid: Bool[Array, "b n"]) -> Array:
    """Attention of `TEXT_HEADS` heads over the valid positions, all `[B, ., D]`."""
    q, k, v = (x.reshape(*x.shape[:2], TEXT_HEADS, -1) for x in (q, k, v))
    attended = attend.reference(q, k, v, jnp.where(valid, 0.0, INVALID).astype(jnp.float32))
    return attended.reshape(*attended.shape[:2], -1)


def text_block(x: Array, weights: Array, valid: Bool[Array, "b n"]) -> Array:
    """A pre-norm transformer block whose matrices lie row-wise in one `[12 D, D]` array."""
    dim = x.shape[-1]
    q, k, v, out = (weights[i * dim : (i + 1) * dim] for i in range(4))
    up, down = weights[4 * dim : 8 * dim], weights[8 * dim :]
    h = rms_norm(x)
    x = x + multi_head(rms_norm(h @ q), rms_norm(h @ k), h @ v, valid) @ out
    return x + jax.nn.gelu(rms_norm(x) @ up.T) @ down * 0.5
