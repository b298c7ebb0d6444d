"""What is asked of clips, at random: edits as numbers, and a prompt that says each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from lsd_jax.config import TrainConfig
from lsd_jax.data import edits, prompts
from lsd_jax.data.worlds import BACKGROUNDS, COLOURS, KINDS, SHAPES, World

FIELDS = ("kind", "object", "shape", "colour", "background")  # of a scene edit, its reference apart
PAIRS, IDENTITY = 0.3, 0.05  # shares of the footage prompts that name two edits, or none


def draw_scene_edits(
    rng: np.random.Generator, drawn: World, kinds: Iterable[int], held_out: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A random scene edit of each of `kinds`, for as many of the worlds, as arrays, and its
    prompts."""
    shape, colour, visible = (np.asarray(x) for x in (drawn.shape, drawn.colour, drawn.visible))
    fields: dict[str, list[int]] = {name: [] for name in FIELDS}
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


def draw_footage_edits(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
    """For each clip two edit numbers, `[count, 2]` as `edits.compose` takes them, and a prompt."""
    texts = footage_texts()
    singles = [m for m in texts if len(m) == 1]
    pairs = [m for m in texts if len(m) == 2]
    chosen, spoken = [], []
    for _ in range(count):
        dice = rng.random()
        pool = [()] if dice < IDENTITY else pairs if dice < IDENTITY + PAIRS else singles
        meaning = pool[rng.integers(len(pool))]
        chosen.append(edits.slots(meaning))
        paraphrases = texts[meaning]
        spoken.append(paraphrases[rng.integers(len(paraphrases))])
    return np.array(chosen, np.int32).reshape(count, 2), spoken


@lru_cache
def footage_texts(held_out: bool = False) -> dict[tuple[str, ...], list[str]]:
    """The prompts of each meaning: `()` for identity, one edit, or two."""
    meanings = defaultdict(list)
    for prompt in prompts.footage_prompts(held_out):
        meanings[prompt.footage].append(prompt.text)
    return dict(meanings)
