"""The stages of training: what each makes of the same model, batches and loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import Mesh

from lsd_jax.config import Config
from lsd_jax.data.batch import Batch
from lsd_jax.data.pipeline import plans
from lsd_jax.data.plan import Plan
from lsd_jax.data.rendered import render
from lsd_jax.model import cast
from lsd_jax.pretrained import load_model
from lsd_jax.train.distill import distill_loss
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.history import history_loss
from lsd_jax.train.rollouts import Rollouts
from lsd_jax.train.shortcut import shortcut_loss
from lsd_jax.train.step import Loss


@dataclass(frozen=True)
class Stage:
    """What `loop.train` needs of a stage."""

    loss: Loss
    draw: Callable[[int], Plan]
    make: Callable[[int, dict, Plan], Batch]


NAMES = ("forcing", "history", "shortcut", "distill")
SHARED = ("height", "width", "prompt_bytes", "external_text_dim", "controls")


def prepare(name: str, config: Config, videos: Path | None, mesh: Mesh) -> Stage:
    """The stage of that name for a config, with the folder of videos mixed in.

    Raises ValueError for settings that leave nothing to train on, and for a teacher that cannot
    teach this model.
    """
    if config.train.old_frames > config.model.memory:
        raise ValueError(
            f"train.old_frames={config.train.old_frames} need as many slots, and model.memory is "
            f"{config.model.memory}; set them alike"
        )
    if config.train.away and not (config.train.old_frames and config.train.carry_on):
        raise ValueError(
            "objects that go away teach a memory: set train.old_frames and train.carry_on too, or "
            "train.away=0"
        )
    if config.train.scene_edits and not config.train.scene_fraction:
        raise ValueError("train.scene_edits needs scene edits; set train.scene_fraction")
    if config.train.carry_on and config.model.external_text_dim:
        raise ValueError("carry_on is a prompt of bytes, not of embeddings; set train.carry_on=0")

    def rendered(step: int, weights: dict, plan: Plan) -> Batch:
        return render(plan, config.model, mesh)

    if name == "forcing":
        return Stage(forcing_loss, plans(config, videos), rendered)
    loss = history_loss
    if name == "shortcut":
        if config.shortcut.guidance != 1 and not config.train.prompt_drop:
            raise ValueError("shortcut.guidance needs dropped prompts; set train.prompt_drop=0.1")
        loss = by_teacher(shortcut_loss, config, mesh)
    elif name == "distill":
        if not config.distill.teacher:
            raise ValueError("who teaches? set distill.teacher=CHECKPOINT")
        loss = by_teacher(distill_loss, config, mesh)
    rollouts = Rollouts(config, mesh)
    if config.history.rolled_out and not rollouts.streams:
        raise ValueError(
            f"history.rolled_out={config.history.rolled_out} is no clip of a batch of "
            f"{config.train.batch}; set more, or 0"
        )
    if not rollouts.streams:
        return Stage(loss, plans(config, videos), rendered)
    clips = config.train.batch - rollouts.streams
    if not clips:
        raise ValueError("history.rolled_out leaves no other clip in the batch; lower it")
    others = replace(config, train=replace(config.train, batch=clips))
    return Stage(loss, rollouts.mixed(plans(others, videos)), rollouts.make)


def by_teacher(loss: Loss, config: Config, mesh: Mesh) -> Loss:
    """`loss` with the checkpoint for a teacher that the config names, if it names one.

    Raises ValueError for a teacher of other pictures or prompts, and on more than one device,
    where its weights would lie whole on each.
    """
    if not config.distill.teacher:
        return loss
    if mesh.size > 1:
        raise ValueError("distill.teacher works on one device so far; give a --mesh of one")
    teacher, theirs = load_model(config.distill.teacher, [])
    for field in SHARED:
        ours, other = getattr(config.model, field), getattr(theirs.model, field)
        if ours != other:
            raise ValueError(
                f"{config.distill.teacher} cannot teach this model: its {field} is {other}, "
                f"not {ours}"
            )
    teacher = cast(teacher, config.train.compute_dtype)
    return lambda model, _, batch, key, config: loss(model, teacher, batch, key, config)
