"""What a stream keeps on its device: parameters, state, and room for arithmetic, in bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsd_jax.config import Config
from lsd_jax.hw.stack import streamed_stack
from lsd_jax.hw.work import CHANNELS, SURROUNDINGS, frame_work

LEVELS, CONDITION = 96, 64  # features of `model.Modulation`


@dataclass(frozen=True)
class Held:
    """Bytes on all chips of a stream together."""

    weights: int
    state: int  # of all sessions
    working: int  # the largest operation's arrays, twice

    @property
    def beside_weights(self) -> int:
        """State and room for arithmetic: what as many sessions again would want."""
        return self.state + self.working

    @property
    def total(self) -> int:
        return self.weights + self.beside_weights


def held(config: Config, sessions: int = 1, by_kernel: bool = False) -> Held:
    """What streaming a config keeps for so many sessions. A kernel of ours computes the stacks
    without any array of them but the residual stream in memory.
    """
    model, size = config.model, np.dtype(config.stream.compute_dtype).itemsize
    modulation = (config.stream.passes + 1) * model.layers * 6 * model.dim
    width = model.key_heads * model.head_dim
    state = 2 * size * model.layers * sessions * model.keys * width
    stages = [s for s in frame_work(config, sessions) if s.stack is None or not by_kernel]
    largest = max(op.bytes for stage in stages for op in stage.ops)
    stack = streamed_stack(config)
    others = int(parameters(model) + modulation) - stack.layers * stack.matrix_weights
    return Held(size * others + stack.matrix_bytes, state, 2 * largest)


def parameters(m: Any) -> Any:
    """Parameters of the denoiser of a `ModelConfig`, or of what has its fields as arrays."""
    width = m.key_heads * m.head_dim
    ages = 2 * (m.window + 1) * width
    stack = m.dim * (2 * (m.heads * m.head_dim + width) + 2 * m.mlp) + 2 * m.head_dim + ages
    modulation = CONDITION * 6 * m.dim + 6 * m.dim
    project = 2 * m.dim * width
    planes = m.patch**2 * (2 * CHANNELS + len(m.controls))
    embed = m.dim * (planes + m.tokens)
    return (
        m.layers * (stack + modulation + project)
        + LEVELS * CONDITION
        + embed
        + readout_parameters(m)
        + text_parameters(m)
        + m.dim * (3 * m.patch**2 + m.tokens + m.dim)  # the reference picture's encoder
        + pool_parameters(m.reference_tokens, m.dim, m.dim)
    )


def readout_parameters(m: Any) -> Any:
    """Of `readout.Readout`."""
    hidden, cell, planes = m.detail_dim, m.detail_patch**2, 3 * CHANNELS + len(m.controls)
    gcd = math.gcd if isinstance(m.patch, int) else np.gcd  # numpy's integers have a largest
    square = gcd(SURROUNDINGS * m.detail_patch, m.patch)
    steer = m.dim * (CHANNELS * m.patch**2 + CHANNELS**2 + 4 * hidden)
    fine = hidden * (9 * cell * planes + 18 * hidden + cell * CHANNELS)
    return steer + fine + square**2 * planes * hidden


def text_parameters(m: Any) -> Any:
    """Of `conditioning.TextEncoder`."""
    d, source = m.text_dim, m.external_text_dim or 256
    inner = d * (source + m.prompt_bytes) + 5 * d**2 + 12 * m.text_layers * d**2
    return inner + pool_parameters(m.prompt_tokens, d, m.dim)


def pool_parameters(tokens: Any, source: Any, dim: Any) -> Any:
    """Of `conditioning.Pool`."""
    return dim * (tokens + 2 * source + dim)
