"""Training batches drawn from rendered worlds: any step's batch, from the seed and its number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from lsd_jax.config import ModelConfig, TrainConfig
from lsd_jax.data import edits, prompts, textures, worlds
from lsd_jax.data.batch import Batch
from lsd_jax.data.scene import OBJECTS
from lsd_jax.data.worlds import BACKGROUNDS, COLOURS, KINDS, OBJECT_EDITS, SHAPES, SceneEdit, World
from lsd_jax.stream import control_planes
from lsd_jax.types import Conditioning

HELD_OUT_WORLDS = 1 << 30
"""Worlds of this seed and above are never trained on."""

PAIRS, IDENTITY = 0.3, 0.05  # shares of the footage prompts that name two edits, or none
LATEST_START = 1 << 20
AT_ONCE = 1 << 22  # pixels, of whole clips, rendered side by side: each takes some hundred bytes
GROUPS = 16  # footage clips are edited in about so many groups of one meaning each


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """Worlds, what is asked of each, the frame number at which each begins, and how many frames
    behind that the frames of its clip lie, and the size of each object in them, in its own."""

    drawn: World
    scene_edits: dict[str, Array]
    footage: Int[Array, "groups 2"]
    starts: Int[Array, " b"]
    offsets: Int[Array, "b f"]
    scale: Float[Array, "b f objects"]
    carried: Int[Array, " b"] | None
    old: Int[Array, " b"] | None
    masks: UInt8[Array, "b height width"]
    prompt: UInt8[Array, "b bytes"]


def rendered_batch(model: ModelConfig, train: TrainConfig, step: int, clips: int) -> Batch:
    """`clips` clips with their truth; the same (seed, step) always gives the same batch."""
    rng = np.random.default_rng([train.seed, step])
    return render(draw_plan(model, train, rng, clips), model)


def draw_plan(model: ModelConfig, train: TrainConfig, rng: np.random.Generator, clips: int) -> Plan:
    """A random plan: the first `scene_fraction` of the clips scene edits, the others footage
    edits."""
    scenes = round(train.scene_fraction * clips)
    drawn = sample_worlds(rng.integers(HELD_OUT_WORLDS, size=clips, dtype=np.int32))
    scene_edits, scene_texts = draw_scene_edits(rng, drawn, random_kinds(rng, train, scenes))
    footage, footage_texts = draw_footage_edits(rng, clips - scenes)
    texts = scene_texts + footage_texts
    prompt = np.stack([prompts.encode(text, model.prompt_bytes) for text in texts])
    prompt[rng.random(clips) < train.prompt_drop] = 0
    starts = rng.integers(LATEST_START, size=clips, dtype=np.int32)
    masks = draw_masks(rng, model, clips, train.mask_fraction)
    offsets, carried = draw_offsets(rng, model, train, clips), draw_carried(rng, train, clips)
    old = np.full(clips, train.old_frames, np.int32) if train.old_frames else None
    scale = draw_scale(rng, train, scene_edits, clips)
    numbers = (scene_edits, footage, starts, offsets, scale, carried, old, masks, prompt)
    return Plan(drawn, *jax.tree.map(jnp.asarray, numbers))


def render(plan: Plan, model: ModelConfig, after: int = 0) -> Batch:
    """The frames of each clip, all of them `after` frames later than planned."""
    return _render(
        plan,
        np.int32(after),
        textures.bank(),
        size=(model.height, model.width),
        controls=model.controls,
    )


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
    if not (train.away and train.old_frames and scene_edits):
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


def draw_scene_edits(
    rng: np.random.Generator, drawn: World, kinds: Iterable[int], held_out: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A random scene edit of each of `kinds`, for as many of the worlds, as arrays, and its
    prompts."""
    shape, colour, visible = (np.asarray(x) for x in (drawn.shape, drawn.colour, drawn.visible))
    fields: dict[str, list[int]] = defaultdict(list)
    texts = []
    for i, kind in enumerate(kinds):
        edit = scene_edit(rng, kind, shape[i][visible[i]], colour[i][visible[i]])
        for name, value in edit.items():
            fields[name].append(value)
        texts.append(scene_text(rng, edit, shape[i], colour[i], held_out))
    return {name: np.array(values, np.int32) for name, values in fields.items()}, texts


def random_kinds(rng: np.random.Generator, train: TrainConfig, count: int) -> Iterator[int]:
    """Kinds of scene edits among those trained, each drawn when it is asked for."""
    kinds = [KINDS.index(name) for name in train.scene_edits or KINDS[1:]]
    return (kinds[int(rng.integers(len(kinds)))] for _ in range(count))


def scene_edit(
    rng: np.random.Generator, kind: int, shape: np.ndarray, colour: np.ndarray
) -> dict[str, int]:
    """A random edit of a kind, for a world whose visible objects have these shapes and colours."""
    target = int(rng.integers(len(shape)))
    return {
        "kind": kind,
        "object": target,
        "shape": int(rng.choice(np.setdiff1d(np.arange(len(SHAPES)), shape))),
        "colour": int(rng.choice(np.setdiff1d(np.arange(len(COLOURS)), colour))),
        "background": int(rng.integers(len(BACKGROUNDS))),
    }


def scene_text(
    rng: np.random.Generator,
    edit: dict[str, int],
    shape: np.ndarray,
    colour: np.ndarray,
    held_out: bool,
) -> str:
    """A random paraphrase of a scene edit."""
    return prompts.scene_prompt(
        KINDS[edit["kind"]],
        object_shape=SHAPES[shape[edit["object"]]],
        object_colour=tuple(COLOURS)[colour[edit["object"]]],
        shape=SHAPES[edit["shape"]],
        colour=tuple(COLOURS)[edit["colour"]],
        background=BACKGROUNDS[edit["background"]],
        held_out=held_out,
        choice=int(rng.integers(1000)),
    ).text


@lru_cache
def footage_texts(held_out: bool = False) -> dict[tuple[str, ...], list[str]]:
    """The prompts of each meaning: `()` for identity, one edit, or two."""
    meanings = defaultdict(list)
    for prompt in prompts.footage_prompts(held_out):
        meanings[prompt.footage].append(prompt.text)
    return dict(meanings)


def draw_footage_edits(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
    """Edit numbers `[groups, 2]` as `edits.compose` takes them, and a prompt for each clip."""
    groups = footage_groups(count)
    texts = footage_texts()
    singles = [m for m in texts if len(m) == 1]
    pairs = [m for m in texts if len(m) == 2]
    chosen, spoken = [], []
    for _ in range(groups):
        dice = rng.random()
        pool = [()] if dice < IDENTITY else pairs if dice < IDENTITY + PAIRS else singles
        meaning = pool[rng.integers(len(pool))]
        chosen.append(edits.slots(meaning))
        paraphrases = texts[meaning]
        spoken += [paraphrases[i] for i in rng.integers(len(paraphrases), size=count // groups)]
    return np.array(chosen, np.int32).reshape(groups, 2), spoken


def footage_groups(count: int) -> int:
    """Into how many equal groups so many clips are split: at most `GROUPS` if that leaves at least
    half as many, else the next number above that does."""
    if count <= GROUPS:
        return count
    tried = (*range(GROUPS, GROUPS // 2 - 1, -1), *range(GROUPS + 1, count + 1))
    return next(groups for groups in tried if count % groups == 0)


def draw_masks(
    rng: np.random.Generator, model: ModelConfig, clips: int, fraction: float
) -> np.ndarray:
    """`[clips, H, W]` bytes: 255 inside the region to edit, which mostly is everywhere."""
    y, x = np.mgrid[: model.height, : model.width]
    y, x = (y + 0.5) / model.height, (x + 0.5) / model.width
    centre, radius = rng.uniform(0.2, 0.8, (clips, 2)), rng.uniform(0.15, 0.5, (clips, 2))
    power = rng.choice([2, 16], clips)  # an ellipse, or nearly a rectangle
    inside = [
        np.abs((y - c[0]) / r[0]) ** p + np.abs((x - c[1]) / r[1]) ** p < 1
        for c, r, p in zip(centre, radius, power, strict=True)
    ]
    everywhere = rng.random(clips) >= fraction
    return np.where(everywhere[:, None, None] | np.stack(inside), 255, 0).astype(np.uint8)


@partial(jax.jit, static_argnames=("size", "controls"))
def _render(plan: Plan, after, bank, *, size, controls) -> Batch:
    drawn, scene_edits, footage, masks = plan.drawn, plan.scene_edits, plan.footage, plan.masks
    clips, groups = plan.starts.shape[0], footage.shape[0]
    scenes = scene_edits["kind"].shape[0] if scene_edits else 0
    times = plan.starts[:, None] + after + plan.offsets
    frames = times.shape[1]
    reference = jnp.zeros((clips, *size, 3))
    shown = drawn, times, plan.scale
    if scenes:
        some = jax.tree.map(lambda x: x[:scenes], shown)
        # Another world's picture, and the same one however long the stream has run: of the scene
        # before it or, where there is one alone, of a footage clip if there is any.
        other = (np.arange(scenes) - 1) % max(scenes, min(clips, 2))
        worlds_of, starts_of = jax.tree.map(lambda x: x[other], (drawn, plan.starts))
        first = render_clips(worlds_of, starts_of, 1, size, bank)[:, 0]
        reference = reference.at[:scenes].set(first)
        edit = SceneEdit(**scene_edits, reference=reference[:scenes])
        after_edits = jax.vmap(worlds.edit_world)(some[0], edit), *some[1:]
        shown = jax.tree.map(lambda *x: jnp.concatenate(x), shown, after_edits)
    drawn, when, scale = shown
    pictures = render_at(drawn, when, size, bank, scale)  # [B + scenes, F, H, W, 3] in [0, 1]
    source, *targets = jnp.split(pictures, [clips]) if scenes else [pictures]
    if groups:
        index = times[scenes:].reshape(groups, -1)
        plain = source[scenes:].reshape(groups, -1, *size, 3)
        edited = jax.lax.map(
            lambda group: edits.compose(group[0][0], group[0][1], group[1], group[2]),
            (footage, plain, index),
        )
        targets.append(edited.reshape(clips - scenes, frames, *size, 3))
    target = jnp.where(masks[:, None, ..., None] > 0, jnp.concatenate(targets), source)
    uses_reference = jnp.array([kind.endswith("from_reference") for kind in KINDS])
    has_reference = jnp.zeros(clips, bool)
    if scenes:
        has_reference = has_reference.at[:scenes].set(uses_reference[scene_edits["kind"]])
    return Batch(
        source=to_bytes(source),
        target=to_bytes(target),
        controls=jnp.repeat(control_planes(controls, masks)[:, None], frames, axis=1),
        condition=Conditioning(plan.prompt, to_bytes(reference), has_reference),
        carried=plan.carried,
        old=plan.old,
    )


def render_clips(drawn: World, starts, frames: int, size: tuple[int, int], bank) -> jax.Array:
    """`frames` frames of each world from its start on, `[B, F, H, W, 3]` in [0, 1]."""
    times = starts[:, None] + jnp.arange(frames, dtype=jnp.int32)
    return render_at(drawn, times, size, bank, jnp.ones((*times.shape, OBJECTS)))


def render_at(
    drawn: World,
    times: Int[Array, "b f"],
    size: tuple[int, int],
    bank,
    scale: Float[Array, "b f objects"],
) -> jax.Array:
    """Each world at its times, its objects scaled, `[B, F, H, W, 3]` in [0, 1]."""

    def one(world, time, scale):
        return worlds.render(worlds.scaled(world, scale), time, *size, bank)

    def clip(shown):
        return jax.vmap(one, (None, 0, 0))(*shown)

    clips, frames = times.shape
    most = max(1, AT_ONCE // (frames * size[0] * size[1]))
    if clips <= most:
        return jax.vmap(clip)((drawn, times, scale))
    together = next(n for n in range(most, 0, -1) if clips % n == 0)
    return jax.lax.map(clip, (drawn, times, scale), batch_size=together)


def to_bytes(x: jax.Array) -> jax.Array:
    """[0, 1] to bytes."""
    return jnp.round(x * 255).astype(jnp.uint8)
