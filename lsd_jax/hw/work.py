"""The work of one streamed frame: stages, and each one's operations with their sizes.

What a frame has to compute is a function of its config alone. The list here follows
`stream.frame_step` as it is written, in the units in which compilers fuse it: products and
convolutions stand alone, all elementwise arithmetic between two of them is one operation. Tests
hold its multiply-adds to those of the traced step exactly, and its total to what XLA counts in
the compiled one. Letters are those of `lsd_jax.types`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import Literal

import numpy as np

from lsd_jax.config import Config, ModelConfig, StreamConfig
from lsd_jax.hw.stack import StackShape, streamed_stack

Kind = Literal["matmul", "convolution", "elementwise", "copy", "host", "collective"]
CHANNELS = 3  # of a latent, `codec.PixelCodec`
SURROUNDINGS = 4  # `readout.SURROUNDINGS`


@dataclass(frozen=True)
class Op:
    """One operation. Sizes are of one execution, of which there are `times`.

    A product is `batch` times `[m, k] @ [k, n]`; a convolution is the product that it amounts to,
    m its pixels and k its 3x3 neighbourhoods. `elements` are those that an elementwise operation
    writes, or computes before it reduces them. A multiply-add is two FLOPs; what needs a series
    (exp, tanh, log, square roots) counts in `transcendentals` and not in `flops`.
    """

    name: str
    kind: Kind
    dtype: str
    flops: int
    read_bytes: int
    write_bytes: int
    transcendentals: int = 0
    elements: int = 0
    m: int = 0
    k: int = 0
    n: int = 0
    batch: int = 1
    times: int = 1

    @property
    def bytes(self) -> int:
        """Read and written by one execution."""
        return self.read_bytes + self.write_bytes


@dataclass(frozen=True)
class Stage:
    """A part of the frame. `stack` is set where the operations are `ops.denoise_stack`, which a
    kernel may compute in its own way."""

    name: str
    ops: tuple[Op, ...]
    stack: StackShape | None = None

    @property
    def flops(self) -> int:
        return sum(op.times * op.flops for op in self.ops)

    @property
    def transcendentals(self) -> int:
        return sum(op.times * op.transcendentals for op in self.ops)


REMEMBERING = ("remember: embed", "remember: stack", "commit")
"""The stages behind the picture, which a server shows before them (`stream.remember`)."""


def by_xla_alone(stream: StreamConfig) -> bool:
    """Whether plain XLA is asked for, rather than the best that a chip has. Raises ValueError for
    any other backend: the time of a chosen kernel is not planned."""
    if stream.backend not in ("auto", "xla"):
        raise ValueError(
            f"stream.backend={stream.backend} is not planned; give auto, the best that the chip "
            "has, or xla"
        )
    return stream.backend == "xla"


def frame_work(config: Config, sessions: int = 1) -> tuple[Stage, ...]:
    """The stages of one `stream.frame_step` for so many sessions, in order, with the copies from
    and to the host around it."""
    model, dtype = config.model, config.stream.compute_dtype
    pixels = sessions * model.height * model.width
    controls = len(model.controls)

    def passing(name: str, commit: bool) -> Iterator[Stage]:
        stack = streamed_stack(config, sessions, commit)
        yield Stage(f"{name}: embed", tuple(embed_ops(model, sessions, dtype)))
        yield Stage(f"{name}: stack", tuple(stack_ops(stack)), stack)

    stages = [
        Stage("host in", (host_copy("frame and controls", pixels * (3 + controls)),)),
        Stage("encode", tuple(encode_ops(model, sessions, dtype))),
    ]
    for i in range(config.stream.passes):
        stages += passing(f"pass {i}", False)
        stages.append(Stage(f"pass {i}: read-out", tuple(readout_ops(model, sessions, dtype))))
        if i + 1 < config.stream.passes:
            step = elementwise("Euler step", pixels * CHANNELS, 3, dtype, reads=2)
            stages[-1] = replace(stages[-1], ops=(*stages[-1].ops, step))
    stages.append(Stage("decode", tuple(decode_ops(model, sessions, dtype))))
    stages += passing("remember", True)
    stages.append(Stage("commit", tuple(commit_ops(model, sessions, dtype))))
    stages.append(Stage("host out", (host_copy("frame", pixels * 3),)))
    return tuple(stages)


def matmul(
    name: str, m: int, k: int, n: int, dtype: str, batch: int = 1, times: int = 1, out: str = ""
) -> Op:
    """`batch` products `[m, k] @ [k, n]`; `out` is the dtype of the result where it differs."""
    size, written = np.dtype(dtype).itemsize, np.dtype(out or dtype).itemsize
    read, write = batch * size * (m * k + k * n), batch * written * m * n
    flops = 2 * batch * m * k * n
    return Op(name, "matmul", dtype, flops, read, write, 0, batch * m * n, m, k, n, batch, times)


def convolution(name: str, pixels: int, inside: int, outside: int, dtype: str) -> Op:
    """A 3x3 convolution that keeps the size; edges count as if they were inside."""
    size = np.dtype(dtype).itemsize
    read = size * (pixels * inside + 9 * inside * outside)
    return Op(
        name, "convolution", dtype, 2 * pixels * 9 * inside * outside, read,
        size * pixels * outside, 0, pixels * outside, pixels, 9 * inside, outside,
    )  # fmt: skip


def elementwise(
    name: str,
    elements: int,
    flops: int | float,
    dtype: str,
    transcendentals: int = 0,
    reads: int | float = 1,
    writes: int | float = 1,
    times: int = 1,
) -> Op:
    """A fused loop over elements: FLOPs, transcendentals and arrays read and written, each an
    element."""
    size = np.dtype(dtype).itemsize
    return Op(
        name, "elementwise", dtype, round(elements * flops), round(elements * reads * size),
        round(elements * writes * size), elements * transcendentals, elements, times=times,
    )  # fmt: skip


def copy(name: str, elements: int, dtype: str, times: int = 1) -> Op:
    """Elements moved or brought into another layout, with no arithmetic."""
    size = elements * np.dtype(dtype).itemsize
    return Op(name, "copy", dtype, 0, size, size, elements=elements, times=times)


def host_copy(name: str, size_bytes: int) -> Op:
    """Bytes between the host and the device."""
    return Op(name, "host", "uint8", 0, size_bytes, size_bytes, elements=size_bytes)


def encode_ops(model: ModelConfig, sessions: int, dtype: str) -> Iterator[Op]:
    """Pixels to latents, controls to planes, and this frame's noise (Threefry 2x32, 20 rounds, for
    each pair of numbers; then the inverse error function)."""
    pixels = sessions * model.height * model.width
    yield elementwise("latent", pixels * CHANNELS, 3, dtype, reads=0.25)
    if model.controls:
        yield elementwise("planes", pixels * len(model.controls), 2, dtype, reads=0.25)
    yield elementwise("noise", pixels * CHANNELS, 110, "float32", 2, reads=0)


def embed_ops(model: ModelConfig, sessions: int, dtype: str) -> Iterator[Op]:
    """Planes to tokens."""
    rows = sessions * model.tokens
    features = model.patch**2 * (2 * CHANNELS + len(model.controls))
    yield copy("patches", rows * features, dtype)
    yield matmul("embed", rows, features, model.dim, dtype)
    yield elementwise("position", rows * model.dim, 1, dtype, reads=2)


def stack_ops(s: StackShape, apart: bool = False) -> Iterator[Op]:
    """All layers of `ops.denoise_stack`, each operation once with as many times as layers.

    Layers that are `apart` (`ops.unrolled`) are not taken out of their stack first; and of the last
    one of a stack that commits a frame, XLA leaves out what is behind its keys and values.
    """
    each = partial(elementwise, dtype=s.dtype, times=s.layers)
    product = partial(matmul, dtype=s.dtype, times=s.layers)
    move = partial(copy, dtype=s.dtype, times=s.layers)
    width, seen = s.heads * s.head_dim, s.keys + s.tokens
    asked = s.per_kv * width
    remembered = s.sessions * s.slots * s.tokens * width
    buffered = s.sessions * s.keys * width
    logits = s.sessions * s.heads * s.per_kv * s.tokens * seen
    if not apart:
        weights = copy("weights of a layer", s.matrix_weights, s.weight_dtype or s.dtype)
        yield replace(weights, times=s.layers)
        yield move("buffer of a layer", 2 * buffered)
    if s.weight_dtype:
        read = s.weight_itemsize / s.itemsize
        yield each("weights from eight bits", s.matrix_weights, 2, reads=read)
    yield each("modulate", s.rows * s.dim, 5)
    yield product("qkv", s.rows, s.dim, asked + 2 * width)
    yield each("QK-norm, rotate", s.rows * (asked + width), 7)
    if remembered:
        yield each("ages", 2 * remembered, 1)
    if apart and s.places:
        fewer = s.layers - 1
        each, product = partial(each, times=fewer), partial(product, times=fewer)
        move = partial(move, times=fewer)
    yield move("keys and values", 2 * (buffered + s.rows * width))
    queries = s.per_kv * s.tokens
    if s.per_kv > 1:
        yield move("queries of a head", 2 * s.rows * asked)
    yield product("logits", queries, s.head_dim, seen, batch=s.sessions * s.heads, out="float32")
    yield replace(each("softmax", logits, 6, transcendentals=1), dtype="float32",
                  read_bytes=2 * 4 * logits, write_bytes=(4 + s.itemsize) * logits)  # fmt: skip
    yield product("values", queries, seen, s.head_dim, batch=s.sessions * s.heads)
    yield product("out", s.rows, asked, s.dim)
    yield each("gate, modulate", s.rows * s.dim, 7, reads=2, writes=2)
    yield product("up", s.rows, s.dim, s.mlp)
    yield each("gelu", s.rows * s.mlp, 8, transcendentals=1)
    yield product("down", s.rows, s.mlp, s.dim)
    yield each("gate", s.rows * s.dim, 2, reads=2)


def readout_ops(model: ModelConfig, sessions: int, dtype: str) -> Iterator[Op]:
    """Tokens and planes to the predicted clean latent, `readout.Readout`."""
    product, each = partial(matmul, dtype=dtype), partial(elementwise, dtype=dtype)
    rows, patch, cell = sessions * model.tokens, model.patch, model.detail_patch
    hidden, planes = model.detail_dim, 3 * CHANNELS + len(model.controls)
    height, width = model.height // cell, model.width // cell
    fine = sessions * height * width
    square = gcd(SURROUNDINGS * cell, patch)
    squares = sessions * (model.height // square) * (model.width // square)
    steering = CHANNELS**2 + 4 * hidden
    pixels = sessions * model.height * model.width
    yield each("norm", rows * model.dim, 3)
    yield product("coarse", rows, model.dim, patch**2 * CHANNELS)
    yield copy("coarse picture", pixels * CHANNELS, dtype)
    yield product("steer", rows, model.dim, steering)
    yield from upsample_ops(model.grid, (height, width), sessions * steering, dtype)
    yield copy("planes", pixels * planes, dtype)
    yield copy("squares", pixels * planes, dtype)
    yield product("gather", squares, square**2 * planes, hidden)
    yield each("gelu of squares", squares * hidden, 8, transcendentals=1)
    yield convolution("around", squares, hidden, hidden, dtype)
    yield copy("cells", pixels * planes, dtype)
    yield convolution("enter", fine, cell**2 * planes, hidden, dtype)
    yield each("steered gelu", fine * hidden, 12, transcendentals=1, reads=4)
    yield convolution("mix", fine, hidden, hidden, dtype)
    yield each("second steered gelu", fine * hidden, 12, transcendentals=1, reads=4)
    yield product("leave", fine, hidden, cell**2 * CHANNELS)
    yield product("recolour", cell**2, CHANNELS, CHANNELS, batch=fine)
    yield each("sum", pixels * CHANNELS, 3, reads=4)


def upsample_ops(
    grid: tuple[int, int], size: tuple[int, int], channels: int, dtype: str
) -> Iterator[Op]:
    """Bilinear interpolation as `jax.image.resize` does it: a product along each axis, in the
    order that costs less."""
    (rows, columns), (height, width) = grid, size
    orders = (
        (
            matmul("upsample rows", height, rows, columns * channels, dtype),
            matmul("upsample columns", width, columns, channels * height, dtype),
        ),
        (
            matmul("upsample columns", width, columns, rows * channels, dtype),
            matmul("upsample rows", height, rows, channels * width, dtype),
        ),
    )
    yield from min(orders, key=lambda order: sum(op.flops for op in order))


def decode_ops(model: ModelConfig, sessions: int, dtype: str) -> Iterator[Op]:
    """The latent to pixels, confined to the mask, and what is remembered of them."""
    values = sessions * model.height * model.width * CHANNELS
    yield elementwise("pixels", values, 6, dtype, reads=1.25, writes=0.25)
    yield elementwise("finite", values, 2, dtype, writes=0)
    yield elementwise("shown", values, 3, dtype, reads=0.25)


def commit_ops(
    model: ModelConfig, sessions: int, dtype: str, written: bool = False
) -> Iterator[Op]:
    """The new keys and values into the ring, and now and then into sinks and memory. It is all
    done in every frame, since the step has no branches. `written`: the kernel that made them has
    put them into the ring itself, and only the last layer's are looked at."""
    frame = 2 * model.layers * sessions * model.tokens * model.key_heads * model.head_dim
    yield elementwise("finite", frame // model.layers if written else frame, 2, dtype, writes=0)
    if not written:
        yield copy("window", frame, dtype)
        if model.sinks:
            yield copy("sink", frame, dtype)
    if model.memory:
        yield elementwise("compress", frame, 1.25, dtype, writes=0.25)
        yield elementwise("memory", model.memory * frame // 4, 1, dtype, reads=2)
