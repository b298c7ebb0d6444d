"""Short real training runs on fixed grids of small models: what the scaling law is fitted to.

The runs `pictures` are the stage `forcing` at 128x128, on single frames; they say what sizes are
worth. Single frames have no history, so the runs `clips` say what one is worth: the stage `history`
at 32x32, one architecture with another window, sinks and memory each time. All runs of a grid see
the same batches, in as many steps, by the loop that `lsd train` runs; `score` has their scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from lsd_jax.checkpoint import load_weights
from lsd_jax.config import Config, HistoryConfig, ModelConfig, TrainConfig, section_from_dict
from lsd_jax.model import Denoiser, build
from lsd_jax.reports import provenance, write_json
from lsd_jax.search import law, score
from lsd_jax.sharding import make_mesh
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.history import history_loss
from lsd_jax.train.loop import train
from lsd_jax.train.step import Loss

TRAIN = TrainConfig(
    batch=16, frames=1, steps=200, learning_rate=2e-3, warmup=20, ema=0.97, pure_noise=0.85,
    prompt_drop=0.0, checkpoint_every=100, sample_every=100_000, log_every=25,
)  # fmt: skip
CLIPS = TrainConfig(
    batch=8, frames=9, old_frames=2, steps=100, learning_rate=2e-3, warmup=20, ema=0.97,
    pure_noise=0.85, prompt_drop=0.0, checkpoint_every=100, sample_every=100_000, log_every=25,
)  # fmt: skip
"""The old frames are what memory and sinks hold; a model without them sees two cold starts."""
HISTORY = HistoryConfig(corrupted=0.5)


def _model(
    dim: int, layers: int, patch: int = 16, ratio: int = 4, heads: int = 0, kv_heads: int = 0
) -> ModelConfig:
    """All that is not searched is as `tiny` has it; a single frame needs no window."""
    heads = heads or max(1, dim // 128)
    return ModelConfig(
        patch=patch, dim=dim, layers=layers, heads=heads, kv_heads=kv_heads,
        head_width=dim // heads, mlp=ratio * dim, window=1,
    )  # fmt: skip


FITTED = (
    _model(256, 6),
    _model(128, 3, patch=8),
    _model(512, 4, patch=32),
    _model(128, 3),
    _model(256, 3),
    _model(128, 3, patch=32),
    _model(128, 8),
    _model(256, 6, patch=32),
    _model(256, 6, ratio=1),
    _model(384, 6),
)
HELD_OUT = (
    _model(192, 4, ratio=3),
    _model(384, 4, patch=32),
    _model(192, 3, patch=8),
    _model(256, 3, kv_heads=1),
    _model(256, 6, kv_heads=1),
    _model(256, 3, patch=32, heads=4, kv_heads=1),
)


def _remembering(window: int, sinks: int = 0, memory: int = 0) -> ModelConfig:
    """A model of 16 tokens that trains in a minute or two, with such a history."""
    return ModelConfig(
        height=32, width=32, patch=8, dim=64, layers=4, heads=1, mlp=256, window=window,
        sinks=sinks, memory=memory, prompt_tokens=16, reference_tokens=16, text_dim=32,
        text_layers=1, detail_dim=16,
    )  # fmt: skip


HISTORIES = (
    _remembering(1),
    _remembering(6),
    _remembering(3),
    _remembering(3, memory=2),
    _remembering(3, sinks=2),
    _remembering(1, memory=2),
)
HISTORIES_HELD_OUT = (_remembering(2, sinks=1, memory=1),)


@dataclass(frozen=True)
class Part:
    """One grid: its runs, and what they have to be alike in beside the loss that they train by."""

    train: TrainConfig
    loss: Loss
    history: HistoryConfig
    fitted: tuple[ModelConfig, ...]
    held_out: tuple[ModelConfig, ...]
    name_of: Callable[[ModelConfig], str]
    score: Callable[[Denoiser, Config], dict[str, Any]]
    scored: dict[str, int]

    def config(self, model: ModelConfig) -> Config:
        """One of its runs."""
        return Config(self.name_of(model), model, train=self.train, history=self.history)


def parts() -> dict[str, Part]:
    """The grids, by where a file holds them; empty: at its top."""
    pictures = Part(
        TRAIN, forcing_loss, HistoryConfig(), FITTED, HELD_OUT, name_of, score.of_pictures,
        {"scored": score.SCORED},
    )  # fmt: skip
    clips = Part(
        CLIPS, history_loss, HISTORY, HISTORIES, HISTORIES_HELD_OUT, history_name,
        score.of_streams, {"streams": score.STREAMS, "frames": score.FRAMES},
    )  # fmt: skip
    return {"": pictures, "clips": clips}


def name_of(model: ModelConfig) -> str:
    """What distinguishes a run on pictures."""
    heads = f"{model.heads}by{model.kv_heads}" if model.kv_heads else f"{model.heads}"
    sizes = f"d{model.dim}-l{model.layers}-h{heads}x{model.head_dim}"
    return f"{sizes}-m{model.mlp}-p{model.patch}"


def history_name(model: ModelConfig) -> str:
    """What distinguishes a run on clips."""
    return f"w{model.window}-s{model.sinks}-r{model.memory}"


def run(path: Path, folder: Path, most: int = 0) -> dict[str, Any]:
    """Trains and scores what `path` does not hold yet, and writes it there, run by run; stops after
    `most` runs where that is not 0.

    Runs keep their checkpoints in `folder`, so that one that was interrupted goes on. Raises
    ValueError for a file of other settings.
    """
    found: dict[str, Any] = law.read(path) if path.is_file() else {"kind": "measured"}
    missing: list[tuple[Part, dict[str, Any], ModelConfig]] = []
    for where, part in parts().items():
        held = found.setdefault(where, {}) if where else found
        settings = {"train": asdict(part.train), "history": asdict(part.history)} | part.scored
        if settings.keys() & held.keys() and not alike(held, settings):
            raise ValueError(f"{path} holds runs of other settings; move it away to begin anew")
        held |= {"runs": [], **settings} | held
        done = {entry["name"] for entry in held["runs"]}
        every = (*part.fitted, *part.held_out)
        missing += [(part, held, model) for model in every if part.name_of(model) not in done]
    for part, held, model in missing[: most or None]:
        started = time.monotonic()
        config = part.config(model)
        entry = {"name": config.name, "held_out": model in part.held_out, "model": asdict(model)}
        entry |= part.score(trained(config, folder / config.name, part.loss), config)
        held["runs"].append(entry | {"seconds": round(time.monotonic() - started)})
        held |= provenance()
        write_json(str(path), found)
    return found


def alike(held: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether stored runs are of these settings; a field of a section that is newer than they are
    has to be at its default."""

    def same(name: str) -> bool:
        if not isinstance(settings[name], dict):
            return held.get(name) == settings[name]
        stored, wanted = (section_from_dict(name, x) for x in (held.get(name, {}), settings[name]))
        return stored == wanted

    return all(same(name) for name in settings)


def trained(config: Config, folder: Path, loss: Loss = forcing_loss) -> Denoiser:
    """The running mean of the weights after a stage; goes on where it had stopped."""
    shared = score.shared_batches(config.model.height, config.model.width, config.train)
    train(config, loss, shared, folder, make_mesh(devices=jax.devices()[:1]))
    params, _ = load_weights(folder / "weights")
    return build(config.model, params)
