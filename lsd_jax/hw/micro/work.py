"""The cases of the log as the operations that a frame's work is made of, for the fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lsd_jax.hw import work
from lsd_jax.hw.micro.case import Measurement
from lsd_jax.hw.work import Op

F32 = "float32"


def _loop(
    steps: int, transcendentals: int = 0, moved: int | float = 2
) -> Callable[..., Iterable[Op]]:
    """An elementwise case: operations an element, and numbers that it reads and writes."""

    def ops(n: int = 0, t: int = 0, d: int = 0) -> Iterable[Op]:
        return [work.elementwise("", n or t * d, steps, F32, transcendentals, moved - 1)]

    return ops


def _pixels(
    elements: int, steps: int, transcendentals: int, reads: int | float, writes: int | float = 1
):
    """An elementwise case of a square picture."""

    def ops(s: int) -> Iterable[Op]:
        count = elements * s * s
        return [work.elementwise("", count, steps, F32, transcendentals, reads, writes)]

    return ops


def _attention(t: int, s: int, h: int, d: int) -> Iterable[Op]:
    seen = t * (s + 1)
    yield work.matmul("logits", t, d, seen, F32, batch=h)
    yield work.elementwise("softmax", h * t * seen, 6, F32, 1, 2, 2)
    yield work.matmul("values", t, seen, d, F32, batch=h)


def _frame(**shapes: int) -> Iterable[Op]:
    from lsd_jax.hw.micro.suites.frames import config_of

    return [op for stage in work.frame_work(config_of(shapes)) for op in stage.ops]


WORK: dict[str, Callable[..., Iterable[Op]]] = {
    "matmul": lambda m, k, n: [work.matmul("", m, k, n, F32)],
    "conv3x3": lambda s, i, o: [work.convolution("", s * s, i, o, F32)],
    "copy": lambda bytes: [work.copy("", bytes // 4, F32)],
    "layer": lambda n: [work.copy("weights of a layer", n, F32)],
    "transpose": lambda n: [work.copy("keys and values", n * n, F32)],
    "patchify": lambda s, p: [work.copy("patches", 10 * s * s, F32)],
    "unpatchify": lambda s, p: [work.copy("patches", 3 * s * s, F32)],
    "add": _loop(1),
    "multiply_add": _loop(2),
    "exp": _loop(0, 1),
    "tanh": _loop(0, 1),
    "gelu": _loop(8, 1),
    "norm": _loop(3),
    "modulate": _loop(5),
    "rope": _loop(3),
    "residual": _loop(2, 0, 3),
    "softmax": _loop(6, 1, 4),
    "steer": _pixels(64, 12, 1, 4),
    "encode": _pixels(3, 3, 0, 0.25),
    "decode": _pixels(3, 6, 0, 1, 0.25),
    "noise": lambda s: [work.elementwise("noise", 3 * s * s, 110, F32, 2, 0)],
    "recolour": lambda s: [work.matmul("", 4, 3, 3, F32, batch=s * s)],
    "upsample": lambda g, f, c: work.upsample_ops((g, g), (f, f), c, F32),
    "attention": _attention,
    "frame": _frame,
    "launch": lambda args: [],
}
"""By operation, what it does at given sizes."""


def work_of(m: Measurement) -> tuple[Op, ...] | None:
    """The operations of a measured case; None where a frame has no such ones, or not in float32.
    Raises ValueError for sizes that its operation does not have."""
    if m.op not in WORK or m.dtype != "f32" or m.suite == "harness":
        return None
    try:
        return tuple(WORK[m.op](**m.shapes))
    except (TypeError, KeyError, ValueError) as error:  # whatever a file may say
        raise ValueError(f"{m.name}: {m.op} has no such sizes; measure it again") from error
