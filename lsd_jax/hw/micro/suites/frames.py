"""Whole frames of small streams: by the specification, to fit prices, or as `lsd stream` runs them
here, to check what these say."""

from __future__ import annotations

from typing import Any

from lsd_jax import stream
from lsd_jax.config import Config, ModelConfig, StreamConfig
from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.work import frame_work
from lsd_jax.ops import dispatch

_LETTERS = {
    "s": "size", "p": "patch", "d": "dim", "l": "layers", "h": "heads", "m": "mlp", "w": "window",
    "i": "passes", "e": "detail_dim",
}  # fmt: skip
FITTED = (
    (64, 8, 192, 2, 2, 768, 3, 1, 32),
    (64, 8, 384, 6, 3, 768, 4, 1, 32),
    (128, 16, 128, 4, 1, 512, 3, 1, 64),
    (128, 8, 192, 4, 3, 768, 2, 1, 64),
    (192, 24, 256, 3, 2, 1024, 3, 1, 64),
    (256, 16, 128, 2, 1, 512, 3, 1, 64),
    (96, 8, 128, 2, 2, 256, 2, 2, 32),
    (128, 16, 512, 2, 4, 1024, 2, 1, 64),
    (64, 16, 256, 6, 2, 1024, 6, 1, 32),
    (256, 32, 256, 6, 2, 1024, 3, 1, 64),
)
"""Of a CPU's model, in the order of the letters."""


def frames(quick: bool) -> list[Case]:
    """Frames of several sizes; none of them is among those that predictions are checked on."""
    return [frame_case(*sizes) for sizes in (FITTED[:2] if quick else FITTED)]


def frame_case(*sizes: int, backend: str = dispatch.REFERENCE) -> Case:
    """One session's frame, with its sizes in the order of the letters."""
    shapes = dict(zip(_LETTERS, sizes, strict=True))
    return case_of(config_of(shapes), shapes, backend)


def case_of(config: Config, shapes: dict[str, int], backend: str) -> Case:
    """One session's frame of a config in float32, called by its `shapes`, by a backend."""
    work = [op for stage in frame_work(config) for op in stage.ops]

    def step(*arguments):
        with dispatch.using(backend):
            return stream.frame_step(*arguments)

    with dispatch.using(backend):
        model = stream.abstract_adapted(config)
    return Case(
        "frame", "frame", shapes, "f32", sum(op.times * op.flops for op in work),
        sum(op.times * op.bytes for op in work), step, (model, *stream.abstract_inputs(config)),
        "step",
    )  # fmt: skip


def config_of(shapes: dict[str, int]) -> Config:
    """The config of a frame's case by its sizes."""
    fields: dict[str, Any] = {_LETTERS[letter]: value for letter, value in shapes.items()}
    size, passes = fields.pop("size"), fields.pop("passes")
    return Config(
        "frame", ModelConfig(height=size, width=size, **fields), StreamConfig(passes=passes)
    )
