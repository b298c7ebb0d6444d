"""Worlds that were never trained on, what is asked of them, and how that should look.

Of each world there is one clip and the truth of every *candidate*: the clip unchanged, each footage
edit, one edit of each scene kind, each held-out pair of footage edits. Each `Ask` is a row of the
report: one candidate, in words that were trained on or in words that were not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from lsd_jax.config import ModelConfig
from lsd_jax.data import asks, edits, plan, prompts, rendered, textures, worlds
from lsd_jax.data.worlds import KINDS, SceneEdit

CHUNK = 32  # frames rendered at once
RENDERED = 16  # of one world among `OneOfEach`


@dataclass(frozen=True)
class Ask:
    """One candidate asked for; `group` is footage, scene or pair."""

    name: str
    group: str
    held_out: bool


PAIRS = tuple("+".join(pair) for pair in prompts.HELD_OUT_PAIRS)
SCENES = KINDS[1:]
IDENTITY = "identity"
CANDIDATES = (IDENTITY, *edits.NAMES, *SCENES, *PAIRS)
FOOTAGE_SLOTS = [edits.slots(names) for names in ((), *((n,) for n in edits.NAMES))]
PAIR_SLOTS = [edits.slots(pair) for pair in prompts.HELD_OUT_PAIRS]
TRAINED_ASKS = tuple(
    [Ask(name, "footage", False) for name in edits.NAMES]
    + [Ask(name, "scene", False) for name in SCENES]
)
HELD_OUT_ASKS = tuple(
    [Ask(ask.name, ask.group, True) for ask in TRAINED_ASKS]
    + [Ask(name, "pair", True) for name in PAIRS]
)
ASKS = TRAINED_ASKS + HELD_OUT_ASKS


@dataclass(frozen=True)
class Clip:
    """One world: its input, the truth of each of `CANDIDATES`, and a prompt for each of `ASKS`."""

    truths: UInt8[np.ndarray, "c f h w 3"]
    reference: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[str, ...]

    @property
    def source(self) -> UInt8[np.ndarray, "f h w 3"]:
        """The input, which is the truth of the identity."""
        return self.truths[0]


def candidates(ask: Ask) -> list[int]:
    """What an answer to `ask` could be taken for: indices into `CANDIDATES`.

    Held-out pairs count only against held-out prompts: nobody else can have heard of them.
    """
    return list(range(len(CANDIDATES) - (0 if ask.held_out else len(PAIRS))))


def clips(model: ModelConfig, count: int, frames: int, seed: int) -> Iterator[Clip]:
    """`count` held-out worlds, each from a random start on, rendered one at a time.

    The same seed always gives the same. References are pictures of further held-out worlds.
    """
    rng = np.random.default_rng([seed, 1])
    drawn, starts = draw(rng, 2 * count)
    shape, colour, visible = (np.asarray(x) for x in (drawn.shape, drawn.colour, drawn.visible))
    size, bank = (model.height, model.width), textures.bank()
    for i in range(count):
        chosen = [
            asks.scene_edit(rng, kind, shape[i][visible[i]], colour[i][visible[i]])
            for kind in range(len(KINDS))
        ]
        texts = [_text(rng, ask, chosen, shape[i], colour[i]) for ask in ASKS]
        fields = {name: np.array([c[name] for c in chosen], np.int32) for name in chosen[0]}
        world, other = (jax.tree.map(lambda x, k=k: x[k], drawn) for k in (i, count + i))
        reference = first_frame(other, starts[count + i], bank, size=size)
        parts = []
        for offset in range(0, frames, CHUNK):
            part = _truths(
                world, fields, reference, starts[i] + np.int32(offset), bank,
                frames=min(frames, CHUNK), size=size,
            )  # fmt: skip
            parts.append(np.asarray(part)[:, : frames - offset])
        truths = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        yield Clip(truths, np.asarray(rendered.to_bytes(reference)), tuple(texts))


def draw(rng: np.random.Generator, count: int) -> tuple[worlds.World, np.ndarray]:
    """Held-out worlds, stacked, and the frame number at which the clip of each starts."""
    low = plan.HELD_OUT_WORLDS
    drawn = plan.sample_worlds(rng.integers(low, 2 * low - 1, count, dtype=np.int32))
    return drawn, rng.integers(plan.LATEST_START, size=count, dtype=np.int32)


def _text(rng: np.random.Generator, ask: Ask, chosen: list[dict], shape, colour) -> str:
    """A random wording of `ask`; `chosen` holds the world's scene edit of each kind."""
    if ask.group == "scene":
        edit = chosen[KINDS.index(ask.name)]
        return asks.scene_text(rng, edit, shape, colour, ask.held_out)
    texts = asks.footage_texts(ask.held_out)[tuple(ask.name.split("+"))]
    return texts[rng.integers(len(texts))]


@partial(jax.jit, static_argnames="size")
def first_frame(world, start, bank, *, size: tuple[int, int]):
    """`[H, W, 3]` in [0, 1]."""
    return worlds.render(world, start, *size, bank)


@partial(jax.jit, static_argnames=("frames", "size"))
def _truths(world, fields, reference, start, bank, *, frames, size):
    """All candidates of one world, `[C, F, H, W, 3]` bytes, made as training batches are."""
    index = start + jnp.arange(frames, dtype=jnp.int32)

    def scene(fields):
        changed = worlds.edit_world(world, SceneEdit(**fields, reference=reference))
        stacked = jax.tree.map(lambda x: x[None], changed)
        return rendered.render_clips(stacked, start[None], frames, size, bank)[0]

    def footage(slots):
        return rendered.to_bytes(edits.compose(slots[0], slots[1], source, index))

    scenes = jax.lax.map(scene, fields)  # one of each of KINDS, of which the first is none
    source = scenes[0]
    edited = jax.lax.map(footage, jnp.array(FOOTAGE_SLOTS + PAIR_SLOTS, jnp.int32))
    singles = len(FOOTAGE_SLOTS)
    parts = [edited[:singles], rendered.to_bytes(scenes[1:]), edited[singles:]]
    return jnp.concatenate(parts)


class OneOfEach:
    """A world under each footage edit, in the order of `edits.NAMES`, then one under each of the
    `scenes` edits, for any number of frames."""

    def __init__(self, model: ModelConfig, rng: np.random.Generator, scenes: tuple[str, ...] = ()):
        self._size = (model.height, model.width)
        self.names = (*edits.NAMES, *scenes)
        slots = [edits.slots((name,)) for name in edits.NAMES] + [edits.slots(())] * len(scenes)
        self._slots = np.array(slots, np.int32)
        self.texts = [prompts.PARAPHRASES[name][0][1] for name in edits.NAMES]
        self._drawn, self._starts = draw(rng, len(edits.NAMES))
        self._fields = dict.fromkeys(asks.FIELDS, np.zeros(len(edits.NAMES), np.int32))
        self._pictures = np.zeros((len(self.names), *self._size, 3), np.float32)
        if scenes:
            self._add(model, rng, scenes)
        self.references: list[np.ndarray | None] = [
            np.asarray(rendered.to_bytes(jnp.asarray(picture)))
            if name.endswith("from_reference")
            else None
            for name, picture in zip(self.names, self._pictures, strict=True)
        ]

    def _add(self, model: ModelConfig, rng: np.random.Generator, scenes: tuple[str, ...]) -> None:
        count = len(scenes)
        drawn, starts = draw(rng, 2 * count)  # the second half for their pictures
        edits, texts = asks.draw_scene_edits(rng, drawn, [KINDS.index(name) for name in scenes])
        self.texts += texts
        self._fields = {k: np.concatenate([v, edits[k]]) for k, v in self._fields.items()}
        ours = jax.tree.map(lambda x: x[:count], drawn)
        self._drawn = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self._drawn, ours)
        self._starts = np.concatenate([self._starts, starts[:count]])
        for i in range(count):
            other = jax.tree.map(lambda x, i=i: x[count + i], drawn)
            picture = first_frame(other, starts[count + i], textures.bank(), size=self._size)
            self._pictures[i - count] = np.asarray(picture)

    def frames(self, some: slice, after: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Input and truth of some of the worlds, `count` frames from `after` behind their starts
        on, each `[B, F, H, W, 3]` bytes."""
        made = [self._clip(i, after, count) for i in range(len(self.names))[some]]
        source, truth = (np.stack(clips) for clips in zip(*made, strict=True))
        return source, truth

    def _clip(self, i: int, after: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Input and truth of one world, as many frames at a time as are always compiled."""
        world = jax.tree.map(lambda x: x[i], self._drawn)
        edit = {name: values[i] for name, values in self._fields.items()}
        parts = [
            _edited(
                world, edit, self._pictures[i], self._slots[i],
                self._starts[i] + np.int32(after + offset), textures.bank(), size=self._size,
                of_scene=bool(edit["kind"]),
            )
            for offset in range(0, count, RENDERED)
        ]  # fmt: skip
        source, truth = (np.concatenate(clips)[:count] for clips in zip(*parts, strict=True))
        return source, truth


@partial(jax.jit, static_argnames=("size", "of_scene"))
def _edited(world, edit, picture, slots, start, bank, *, size, of_scene):
    """Input and truth of a world's next `RENDERED` frames, `[F, H, W, 3]` bytes. Where the edit is
    not `of_scene`, both show the same world, which is rendered once."""
    drawn = [world]
    if of_scene:
        drawn.append(worlds.edit_world(world, SceneEdit(**edit, reference=picture)))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *drawn)
    shown = rendered.render_clips(stacked, jnp.stack([start] * len(drawn)), RENDERED, size, bank)
    source, plain = shown[0], shown[-1]
    index = start + jnp.arange(RENDERED, dtype=jnp.int32)
    edited = edits.compose(slots[0], slots[1], plain, index)
    return rendered.to_bytes(source), rendered.to_bytes(edited)
