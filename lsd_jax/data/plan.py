"""What a training batch is to show, as numbers: that of any step, from the seed and its number.

Every host draws all of it: however many devices share a batch, it is the same one. Its kinds of
clips lie evenly in it, so that each device has about as many of each to render.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from lsd_jax.config import ModelConfig, TrainConfig
from lsd_jax.data import asks, prompts, worlds
from lsd_jax.data.scene import OBJECTS
from lsd_jax.data.worlds import BACKGROUNDS, COLOURS, KINDS, OBJECT_EDITS, SHAPES, World

HELD_OUT_WORLDS = 1 << 30
"""Worlds of this seed and above are never trained on."""

LATEST_START = 1 << 20


@dataclass(frozen=True)
class Film:
    """Clips of the user's, as `footage` gives them: those with an edited twin are `paired`, and
    their prompt is its caption."""

    source: UInt8[np.ndarray, "c f height width 3"]
    target: UInt8[np.ndarray, "c f height width 3"]
    prompt: list[str]
    paired: Bool[np.ndarray, " c"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """What each of `b` clips shows, and what is asked of it.

    The world of the seed `worlds`, from frame `starts` on at `offsets` behind that, each object at
    `scale` times its own size; edited as `scene_edits` say where it is one of `scenes`, else by the
    two edits of `footage`. Its reference is the world of the seed `lender` at frame `lent`, whether
    its edit asks for it or not. `regions` confine the edit: see `draw_regions`. `prompt`, `carried`
    and `old` are those of `Batch`. One that is `filmed` shows source and target of `film` instead.
    """

    worlds: Int[np.ndarray, " b"]
    starts: Int[np.ndarray, " b"]
    offsets: Int[np.ndarray, "b f"]
    scale: Float[np.ndarray, "b f objects"]
    scenes: Bool[np.ndarray, " b"]
    scene_edits: dict[str, np.ndarray]
    footage: Int[np.ndarray, "b 2"]
    lender: Int[np.ndarray, " b"]
    lent: Int[np.ndarray, " b"]
    regions: Float[np.ndarray, "b 5"]
    prompt: UInt8[np.ndarray, "b bytes"]
    carried: Int[np.ndarray, " b"] | None
    old: Int[np.ndarray, " b"] | None
    filmed: Bool[np.ndarray, " b"]
    film: UInt8[np.ndarray, "filmed 2 f height width 3"] | None = None

    def later(self, frames: int) -> Plan:
        """The same clips so many frames later; what they refer to stays as it was."""
        return replace(self, starts=self.starts + np.int32(frames))

    def before(self, others: Plan) -> Plan:
        """These clips, then others, of which none is filmed."""
        film = self.film
        ours, theirs = (replace(plan, film=None) for plan in (self, others))
        both = jax.tree.map(lambda *x: np.concatenate(x), ours, theirs)
        return replace(both, film=film)


def draw_plan(
    model: ModelConfig,
    train: TrainConfig,
    rng: np.random.Generator,
    clips: int,
    film: Film | None = None,
) -> Plan:
    """A random plan: of the clips that are not filmed `scene_fraction` scene edits, the others
    footage edits."""
    filmed = evenly(len(film.prompt) if film else 0, clips)
    scenes = np.zeros(clips, bool)
    rendered = np.flatnonzero(~filmed)
    scenes[rendered] = evenly(round(train.scene_fraction * len(rendered)), len(rendered))
    seeds = rng.integers(HELD_OUT_WORLDS, size=clips, dtype=np.int32)
    kinds = asks.random_kinds(rng, train, int(scenes.sum()))
    scene_edits, scene_texts = asks.draw_scene_edits(rng, sample_worlds(seeds[scenes]), kinds)
    footage, footage_texts = asks.draw_footage_edits(rng, clips - int(scenes.sum()))
    starts = rng.integers(LATEST_START, size=clips, dtype=np.int32)
    lender = lenders(scenes)
    plan = Plan(
        worlds=seeds,
        starts=starts,
        offsets=draw_offsets(rng, model, train, clips),
        scale=_filled(scenes, draw_scale(rng, train, scene_edits, int(scenes.sum())), 1),
        scenes=scenes,
        scene_edits={name: _filled(scenes, values) for name, values in scene_edits.items()},
        footage=_filled(~scenes, footage),
        lender=seeds[lender],
        lent=starts[lender],
        regions=draw_regions(rng, clips, train.mask_fraction),
        prompt=np.zeros((clips, model.prompt_bytes), np.uint8),
        carried=draw_carried(rng, train, clips),
        old=np.full(clips, train.old_frames, np.int32) if train.old_frames else None,
        filmed=filmed,
    )
    texts = np.empty(clips, object)
    texts[scenes], texts[~scenes] = scene_texts, footage_texts
    if film:
        plan = _with_film(plan, film, texts)
    asked = rng.random(clips) >= train.prompt_drop
    for i in np.flatnonzero(asked):
        plan.prompt[i] = prompts.encode(texts[i], model.prompt_bytes)
    return plan


def longest_prompt(train: TrainConfig) -> str:
    """The longest prompt that `draw_plan` asks of a clip, captions apart."""
    texts = []
    if train.scene_fraction < 1 or train.video_fraction:
        texts += [text for same in asks.footage_texts().values() for text in same]
    if train.scene_fraction:
        *_, shape, its_shape = sorted(SHAPES, key=len)
        *_, colour, its_colour = sorted(COLOURS, key=len)
        for kind, background in product(train.scene_edits or KINDS[1:], BACKGROUNDS):
            texts += [
                prompts.scene_prompt(
                    kind,
                    object_shape=its_shape,
                    object_colour=its_colour,
                    shape=shape,
                    colour=colour,
                    background=background,
                    choice=choice,
                ).text
                for choice in range(2 * len(prompts.SCENE_TEMPLATES[kind][0]))
            ]
    return max(texts, key=len)


def _with_film(plan: Plan, film: Film, texts: np.ndarray) -> Plan:
    """The plan with its filmed clips, which know no gaps; captions in the place of the texts of
    those that have an edited twin already."""
    rows = np.flatnonzero(plan.filmed)
    plan.offsets[rows] = np.arange(plan.offsets.shape[1])
    plan.footage[rows[film.paired]] = 0
    texts[rows[film.paired]] = np.array(film.prompt, object)[film.paired]
    if plan.old is not None:
        plan.old[rows] = 0
    return replace(plan, film=np.stack([film.source, film.target], axis=1))


def evenly(some: int, among: int) -> Bool[np.ndarray, " among"]:
    """Which ones, if `some` of them are to lie as evenly as can be."""
    steps = np.arange(among + 1) * some // max(among, 1)
    return np.diff(steps) > 0


def lenders(scenes: Bool[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
    """The clip whose picture is the reference of each: of a scene the scene before it or, if there
    is one alone, the clip behind it. What is no scene needs none, and has its own."""
    lender, rows = np.arange(len(scenes)), np.flatnonzero(scenes)
    lender[rows] = np.roll(rows, 1) if len(rows) > 1 else (rows + 1) % len(scenes)
    return lender


def _filled(rows: Bool[np.ndarray, " b"], values: np.ndarray, others: int = 0) -> np.ndarray:
    """`values` for the rows chosen, one number for all others."""
    out = np.full((len(rows), *values.shape[1:]), others, values.dtype)
    out[rows] = values
    return out


def draw_offsets(
    rng: np.random.Generator, model: ModelConfig, train: TrainConfig, clips: int
) -> Int[np.ndarray, "b f"]:
    """When each frame of a clip is: `train.old_frames` as long before the others as the slots of a
    memory reach back, the oldest first, then the others one after another."""
    old = train.old_frames
    periods = [model.memory_period(slot) for slot in range(old)]
    ages = np.cumsum([0, *periods])
    back = [rng.integers(a, b, size=clips) for a, b in zip(ages, ages[1:], strict=False)]
    recent = np.tile(np.arange(train.frames - old), (clips, 1))
    offsets = [ages[-1] - 1 - x[:, None] for x in reversed(back)]
    return np.concatenate([*offsets, ages[-1] + recent], axis=1).astype(np.int32)


def draw_carried(
    rng: np.random.Generator, train: TrainConfig, clips: int
) -> Int[np.ndarray, " b"] | None:
    """The frame from which on the prompt of each clip is taken back: `train.frames` but for a share
    `train.carry_on` of the clips, and None where that is 0."""
    if not train.carry_on:
        return None
    first = rng.integers(1, max(train.frames, 2), size=clips)
    taken_back = rng.random(clips) < train.carry_on
    return np.where(taken_back, first, train.frames).astype(np.int32)


def draw_scale(
    rng: np.random.Generator, train: TrainConfig, scene_edits: dict[str, np.ndarray], clips: int
) -> Float[np.ndarray, "b f objects"]:
    """How large each object is in each frame, in its own size. In a share `train.away` of the
    clips with old frames the edited object is there in the oldest frame, gone in those behind it,
    and comes back in a frame of the window, out of the distance: only the memory has seen it."""
    scale = np.ones((clips, train.frames, OBJECTS), np.float32)
    if not (train.away and train.old_frames and clips):
        return scale
    edited = scene_edits["object"]
    scenes, frames = np.arange(len(edited)), np.arange(train.frames)
    back = rng.integers(train.old_frames, train.frames, size=len(edited))[:, None]
    near = np.clip((frames - back + 1) * rng.choice([0.25, 1.0], len(edited))[:, None], 0, 1)
    gone = rng.random(len(edited)) < train.away
    gone &= np.isin(scene_edits["kind"], [KINDS.index(name) for name in OBJECT_EDITS])
    scale[scenes, :, edited] = np.where(gone[:, None] & (frames > 0), near, 1)
    return scale


@jax.jit
def sample_worlds(seeds: Int[np.ndarray | Array, " b"]) -> World:
    """One world per seed, stacked."""
    return jax.vmap(worlds.sample_world)(seeds)


def draw_regions(
    rng: np.random.Generator, clips: int, fraction: float
) -> Float[np.ndarray, "clips 5"]:
    """The region to edit in each clip, which mostly is everywhere: an ellipse, or nearly a
    rectangle. Centre and radii, y and x in pictures, and the power of its norm."""
    centre, radius = rng.uniform(0.2, 0.8, (clips, 2)), rng.uniform(0.15, 0.5, (clips, 2))
    power = rng.choice([2, 16], (clips, 1))
    radius[rng.random(clips) >= fraction] = np.inf
    return np.concatenate([centre, radius, power], axis=1).astype(np.float32)
