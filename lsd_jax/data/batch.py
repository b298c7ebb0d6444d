"""What a training step sees: clips, their edited truth and what asked for the edit."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Int, UInt8

from lsd_jax.types import Conditioning


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Clips of `f` frames; `target` is the truth inside the mask and the source outside of it.

    `shown`, where a stage has it, is what a stream of the model in training made of them. From
    frame `carried` on (which may lie past the clip's end) a clip's prompt has been taken back: all
    that the model hears is `prompts.CARRY_ON`, and it has to see in its history what was asked.
    The first `old` frames of a clip lie long before the others; without it, none do.
    """

    source: UInt8[Array, "b f height width 3"]
    target: UInt8[Array, "b f height width 3"]
    controls: UInt8[Array, "b f height width n"]
    condition: Conditioning
    shown: UInt8[Array, "b f height width 3"] | None = None
    carried: Int[Array, " b"] | None = None
    old: Int[Array, " b"] | None = None
