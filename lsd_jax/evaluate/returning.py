"""Long memory: does an edit come back with an object that was gone for longer than the window?

A stream is told what to do with an object, and from the moment at which it starts to go away only
to carry on. When the object comes back, neither prompt nor input nor window say any more how it
is to look: only the memory does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from lsd_jax.config import ModelConfig
from lsd_jax.data import asks, rendered, textures, worlds
from lsd_jax.data.prompts import CARRY_ON
from lsd_jax.data.scene import OBJECTS
from lsd_jax.data.worlds import KINDS, OBJECT_EDITS, SceneEdit, World
from lsd_jax.evaluate import held_out, metrics
from lsd_jax.evaluate.streams import ModelStreams, Stream
from lsd_jax.model import Denoiser, build

SEEN, TURNING, GONE, BACK = 24, 4, 40, 12
"""Frames: told and in view; going into the distance, and again coming back; gone; in view again."""

FRAMES = SEEN + TURNING + GONE + TURNING + BACK
SHOWN = [SEEN - 1, SEEN + 2, SEEN + TURNING + GONE // 2, FRAMES - BACK - 2, FRAMES - BACK + 2, -1]


@dataclass(frozen=True)
class Visits:
    """Worlds in which an object goes and comes back, and what is asked of it."""

    source: UInt8[np.ndarray, "b f h w 3"]
    truth: UInt8[np.ndarray, "b f h w 3"]
    references: list[np.ndarray | None]
    texts: list[str]
    kinds: list[str]


def measure(
    denoiser: Denoiser,
    remembering: ModelStreams,
    count: int,
    seed: int,
    done: Callable[[int], None],
    edits: Sequence[str] = OBJECT_EDITS,
) -> tuple[dict, dict[str, np.ndarray]]:
    """How near the returned object is to its truth, for a model with a memory.

    Args:
        denoiser: with the weights of `remembering`, as they were before these were cast.
        edits: which of `OBJECT_EDITS` are asked for.

    Returns:
        PSNR, in dB, of the pixels that the edit changes, over the frames after the return, a mean
        over `count` worlds for each of `edits`: `with` the memory; `without`, by the same weights
        with no memory slots; `told`, with a prompt that says it all the time; `input`, for the
        input unchanged; and `nearer`, the share of the objects that come back nearer to their truth
        with the memory than without. `by_edit` has the same for each. And pictures of the first of
        them at the times `SHOWN`, `[len(edits), len(SHOWN), H, W, 3]` each.
    """
    config, batch = remembering.config, remembering.batch
    bare = replace(config, model=replace(config.model, memory=0))
    weights = nnx.to_pure_dict(nnx.state(denoiser, nnx.Param))
    without = ModelStreams(build(bare.model, weights), bare, batch, seed)
    streams = {"with": remembering, "without": without, "told": remembering}
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*streams, "input")}
    kinds, strips = [], {}
    for visits in draw(config.model, count, batch, seed, edits):
        kinds += visits.kinds
        shown = {"input": visits.source}
        for name, opened in streams.items():
            shown[name] = play(opened, visits, taken_back=name != "told")
            done(shown[name].shape[0] * FRAMES)
        for name, frames in shown.items():
            found[name].append(likeness(frames, visits))
        if not strips:
            some = {**shown, "truth": visits.truth}
            strips = {name: frames[: len(edits), SHOWN] for name, frames in some.items()}
    joined = {name: np.concatenate(parts) for name, parts in found.items()}

    def means(of: np.ndarray) -> dict[str, float]:
        figures = {name: float(np.nanmean(values[of])) for name, values in joined.items()}
        pairs = np.stack([joined["with"], joined["without"]])[:, of]
        pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
        return figures | {"nearer": float(np.mean(pairs[0] > pairs[1]))}

    of_kind = np.array(kinds)
    figures = means(of_kind != "")
    return figures | {"by_edit": {kind: means(of_kind == kind) for kind in edits}}, strips


def play(streams: Stream, visits: Visits, taken_back: bool) -> UInt8[np.ndarray, "b f h w 3"]:
    """What streams make of visits, whose prompt is taken back when the object goes, or stays."""
    running = streams(visits.texts, visits.references)
    before = running(visits.source[:, :SEEN])
    if taken_back:
        running.ask([CARRY_ON] * len(visits.texts), [None] * len(visits.texts))
    return np.concatenate([before, running(visits.source[:, SEEN:])], axis=1)


def likeness(shown: np.ndarray, visits: Visits) -> Float[np.ndarray, " b"]:
    """PSNR of each stream where the edit changes the picture, in the frames after the return; NaN
    where it changes nothing there."""
    clips = zip(shown, visits.truth, visits.source, strict=True)
    errors = [metrics.edited_mse(*(x[-BACK:] for x in clip)) for clip in clips]
    seen = [mse[np.isfinite(mse)] for mse in np.asarray(errors, np.float64)]
    return metrics.psnr_db(np.array([mse.mean() if mse.size else np.nan for mse in seen]))


def draw(
    model: ModelConfig,
    count: int,
    batch: int,
    seed: int,
    edits: Sequence[str] = OBJECT_EDITS,
) -> Iterator[Visits]:
    """`count` held-out worlds for each of `edits`, at most `batch` at once."""
    rng = np.random.default_rng([seed, 5])
    total, size, bank = count * len(edits), (model.height, model.width), textures.bank()
    drawn, starts = held_out.draw(rng, total + count)
    kinds = [edits[i % len(edits)] for i in range(total)]
    chosen, texts = asks.draw_scene_edits(rng, drawn, [KINDS.index(kind) for kind in kinds])
    scale = jnp.asarray(distance_scale())
    for low in range(0, total, batch):
        some = range(low, min(low + batch, total))
        others = [total + i // len(edits) for i in some]
        pictures = [held_out.first_frame(_of(drawn, i), starts[i], bank, size=size) for i in others]
        made = [
            _visit(
                _of(drawn, i), {name: values[i] for name, values in chosen.items()}, picture,
                starts[i], scale, bank, size=size,
            )
            for i, picture in zip(some, pictures, strict=True)
        ]  # fmt: skip
        source, truth = (np.stack(clips) for clips in zip(*made, strict=True))
        yield Visits(
            source,
            truth,
            [
                np.asarray(rendered.to_bytes(picture))
                if kinds[i].endswith("from_reference")
                else None
                for i, picture in zip(some, pictures, strict=True)
            ],
            [texts[i] for i in some],
            [kinds[i] for i in some],
        )


def _of(drawn: World, i: int) -> World:
    return jax.tree.map(lambda x: x[i], drawn)


def distance_scale() -> Float[np.ndarray, " f"]:
    """The size of the object in each frame, as a share of its own."""
    going = np.linspace(1, 0, TURNING + 1)[1:]
    return np.concatenate(
        [np.ones(SEEN), going, np.zeros(GONE), going[::-1], np.ones(BACK)]
    ).astype(np.float32)


@partial(jax.jit, static_argnames="size")
def _visit(world, fields, reference, start, scale, bank, *, size: tuple[int, int]):
    """Input and truth of a world, `[F, H, W, 3]` bytes."""
    edited = worlds.edit_world(world, SceneEdit(**fields, reference=reference))
    chosen = jnp.arange(OBJECTS) == fields["object"]
    times = start + jnp.arange(scale.shape[0], dtype=jnp.int32)
    scales = jnp.where(chosen, scale[:, None], 1.0)
    both = jax.tree.map(lambda *x: jnp.stack(x), world, edited)
    times, scales = (jnp.stack([x, x]) for x in (times, scales))
    return tuple(rendered.to_bytes(rendered.render_at(both, times, size, bank, scales)))
