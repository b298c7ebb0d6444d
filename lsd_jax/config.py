"""Frozen settings of a model, its stream and its training, and how to load and override them."""

from __future__ import annotations

import dataclasses
import math
import runpy
import types
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lsd_jax.data.prompts import SCENE_KINDS

_POSITIVE = (
    "height", "width", "patch", "dim", "layers", "heads", "mlp", "window", "prompt_bytes",
    "prompt_tokens", "reference_tokens", "text_dim", "text_layers", "detail_patch", "detail_dim",
)  # fmt: skip
_SHAPELESS = ("sinks", "memory", "memory_every")
_DTYPES = ("float32", "bfloat16", "float16")
_MOST_TOKENS = 2**18  # 8K video in patches of 12; each one's position is a constant of the step


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_types(config: object) -> None:
    for name, kind in _hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
            fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
        else:
            fits = isinstance(value, (int, float) if kind is float else kind)
            fits = fits and (kind is bool) == isinstance(value, bool)
        _require(fits, f"{name}={value!r}: expected {kind.__name__}")


@lru_cache
def _hints(owner: type) -> dict[str, typing.Any]:
    return typing.get_type_hints(owner)


def _require_amount(section: object, name: str) -> None:
    value = getattr(section, name)
    _require(0 <= value < math.inf, f"{name}={value} must be finite and not negative")


def _require_dtype(name: str) -> None:
    _require(name in _DTYPES, f"unknown compute_dtype {name!r}; known: {', '.join(_DTYPES)}")


@dataclass(frozen=True)
class ModelConfig:
    """Shapes of the denoiser and of its history. All fields but those of the history size
    parameters; of those, `window` sizes the age table, the others nothing.
    """

    height: int = 128
    width: int = 128
    patch: int = 16
    dim: int = 256
    layers: int = 6
    heads: int = 2
    kv_heads: int = 0  # of keys and values, each shared by heads / kv_heads; 0: one for each head
    head_width: int = 0  # features of a head; 0: dim / heads
    mlp: int = 1024
    window: int = 3
    sinks: int = 0
    memory: int = 0  # slots of compressed older frames
    memory_every: int = 32  # frames between two renewals of the first; each next waits 4 times that
    prompt_bytes: int = 128
    prompt_tokens: int = 32
    reference_tokens: int = 32
    text_dim: int = 128
    text_layers: int = 2
    external_text_dim: int = 0  # width of embeddings from outside; 0: the built-in text encoder
    detail_patch: int = 2
    detail_dim: int = 64
    controls: tuple[str, ...] = ("mask",)

    def __post_init__(self):
        _require_types(self)
        for name in _POSITIVE:
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        _require(
            self.head_width > 0 or self.dim % self.heads == 0,
            f"dim={self.dim} does not split over heads={self.heads}; set head_width",
        )
        _require(
            self.kv_heads >= 0 and self.heads % self.key_heads == 0,
            f"kv_heads={self.kv_heads} must divide heads={self.heads}, or be 0 for as many",
        )
        for name in ("dim", "head_dim", "text_dim"):  # heads of text, and pairs of two axes
            _require(
                getattr(self, name) % 4 == 0,
                f"{name}={getattr(self, name)} must be a multiple of 4",
            )
        for side in ("height", "width"):
            size = getattr(self, side)
            _require(
                size % self.patch == 0,
                f"{side}={size} is not a multiple of patch={self.patch}",
            )
        _require(
            self.patch % self.detail_patch == 0,
            f"patch={self.patch} is not a multiple of detail_patch={self.detail_patch}",
        )
        _require(
            self.tokens <= _MOST_TOKENS,
            f"{self.tokens:,} tokens of a {self.width}x{self.height} frame are more than "
            f"{_MOST_TOKENS:,}; set a larger patch",
        )
        for name in ("head_width", "sinks", "memory", "external_text_dim"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        _require(self.memory_every >= 1, f"memory_every={self.memory_every} must be at least 1")
        _require(
            not self.memory or not any(side % 2 for side in self.grid),
            f"memory pools 2x2 tokens, and {self.grid[0]}x{self.grid[1]} of them do not pair up; "
            "set memory=0 or another patch",
        )
        controls = ",".join(self.controls)
        _require(controls in ("mask", ""), f"controls={controls} must be mask, or nothing")

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.head_width or self.dim // self.heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def per_kv(self) -> int:
        """Query heads to each head of keys and values."""
        return self.heads // self.key_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a frame."""
        return self.height // self.patch, self.width // self.patch

    @property
    def tokens(self) -> int:
        """Tokens of one frame."""
        return self.grid[0] * self.grid[1]

    @property
    def pinned(self) -> int:
        """Pinned tokens: prompt, then reference."""
        return self.prompt_tokens + self.reference_tokens

    @property
    def slots(self) -> int:
        """Frame slots of the KV buffer."""
        return self.sinks + self.window

    @property
    def keys(self) -> int:
        """Keys in the KV buffer."""
        return self.pinned + self.memory * self.memory_tokens + self.slots * self.tokens

    @property
    def memory_tokens(self) -> int:
        """Keys of one memory slot."""
        return self.tokens // 4

    def memory_period(self, slot: int) -> int:
        """Frames between two renewals of a memory slot."""
        return self.memory_every * 4**slot


@dataclass(frozen=True)
class StreamConfig:
    """How a trained model is streamed; none of it changes parameters."""

    passes: int = 1
    history_level: float = 0.0  # 0: history is taken as clean; 1: as worthless
    compute_dtype: str = "float32"
    weight_dtype: str = ""  # of the blocks' matrices: int8, float8_e4m3, or as they are computed
    backend: str = "auto"  # of the ops; auto: the first that does not refuse

    def __post_init__(self):
        _require_types(self)
        _require(1 <= self.passes <= 4, f"passes={self.passes} must be 1, 2, 3 or 4")
        _require(
            0 <= self.history_level <= 1, f"history_level={self.history_level} must be in [0, 1]"
        )
        _require_dtype(self.compute_dtype)
        _require(
            self.weight_dtype in ("", "int8", "float8_e4m3"),
            f"unknown weight_dtype {self.weight_dtype!r}; known: int8, float8_e4m3, or empty",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Batch, optimiser and schedule of a training stage."""

    batch: int = 8  # clips per step, over all devices
    frames: int = 4  # frames per clip
    old_frames: int = 0  # the first of them, from long before the others: what a memory holds
    carry_on: float = 0.0  # share of the clips whose prompt is taken back after some frames
    away: float = 0.0  # share of the scene edits with old frames whose object is gone for a while
    steps: int = 20_000
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    pure_noise: float = 0.5  # share of frames denoised from nothing, as the first pass does
    prompt_drop: float = 0.05
    scene_fraction: float = 0.5  # of the prompts, those that edit the scene
    scene_edits: tuple[str, ...] = ()  # the kinds of these; empty: all
    edit_weight: float = 1.0  # of the region that an edit changes, in frames; 0: by its area
    video_fraction: float = 0.0  # of the clips that are no own streams, from the folder of videos
    keep_zeros: bool = False  # of the weights, as a 2:4 pattern needs; else they learn again
    mask_fraction: float = 0.15  # of the clips, edited only inside a region
    checkpoint_every: int = 500
    sample_every: int = 500
    log_every: int = 20
    compute_dtype: str = "float32"  # of the arithmetic; master weights are float32 always
    backend: str = "auto"  # of the ops that give gradients; auto: the first that does not refuse
    seed: int = 0

    def __post_init__(self):
        _require_types(self)
        _require_dtype(self.compute_dtype)
        for name in ("batch", "frames", "steps", "checkpoint_every", "sample_every", "log_every"):
            _require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip_norm"):
            _require_amount(self, name)
            _require(getattr(self, name) > 0, f"{name}=0 would train nothing; give more")
        for name in ("warmup", "weight_decay", "edit_weight", "seed"):
            _require_amount(self, name)
        for name in ("steps", "seed"):  # held in 32 bits
            _require(getattr(self, name) < 2**31, f"{name}={getattr(self, name)} is not below 2^31")
        for name in (
            "pure_noise",
            "prompt_drop",
            "scene_fraction",
            "video_fraction",
            "mask_fraction",
            "carry_on",
            "away",
            "ema",
        ):
            _require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} not in [0, 1]")
        _require(
            0 <= self.old_frames < self.frames,
            f"old_frames={self.old_frames} must leave some of the frames={self.frames}",
        )
        for kind in self.scene_edits:
            _require(
                kind in SCENE_KINDS, f"unknown scene edit {kind!r}; known: {', '.join(SCENE_KINDS)}"
            )


@dataclass(frozen=True)
class HistoryConfig:
    """What the history stage lets a model remember."""

    corrupted: float = 0.5  # share of the clips whose history is corrupted by hand
    rolled_out: float = 0.0  # share of the clips whose history is the model's own stream
    drift_penalty: float = 0.0  # weight of the error that grows along a stream
    level_input: bool = False  # tell the model how wrong each remembered frame is

    def __post_init__(self):
        _require_types(self)
        for name in ("corrupted", "rolled_out"):
            _require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} not in [0, 1]")
        _require(
            self.corrupted + self.rolled_out <= 1,
            f"corrupted={self.corrupted} and rolled_out={self.rolled_out} are more than all clips",
        )
        _require_amount(self, "drift_penalty")


@dataclass(frozen=True)
class ShortcutConfig:
    """How the shortcut stage distils few passes; its history is that of the history stage."""

    share: float = 0.25  # of the frames, answered by two steps of the teacher
    guidance: float = 1.0  # classifier-free, of the teacher; 1: none

    def __post_init__(self):
        _require_types(self)
        _require(0 <= self.share <= 1, f"share={self.share} not in [0, 1]")
        _require_amount(self, "guidance")


@dataclass(frozen=True)
class DistillConfig:
    """Who teaches the stages shortcut and distill."""

    teacher: str = ""  # a checkpoint; empty: the running mean of the model in training
    weight: float = 0.8  # of the teacher's answer, of the distill stage; the rest is the truth's

    def __post_init__(self):
        _require_types(self)
        _require(0 <= self.weight <= 1, f"weight={self.weight} not in [0, 1]")


@dataclass(frozen=True)
class Config:
    """One runnable setting: a file in `configs/` sets `config = Config(...)`."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    shortcut: ShortcutConfig = field(default_factory=ShortcutConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self):
        _require_types(self)


SECTIONS = {
    "model": ModelConfig,
    "stream": StreamConfig,
    "train": TrainConfig,
    "history": HistoryConfig,
    "shortcut": ShortcutConfig,
    "distill": DistillConfig,
}


def load(path: str | Path) -> Config:
    """The `config` of a Python file, or of a shipped one by its bare name (`tiny`).

    Raises ValueError, with what to do, where there is no such file or no `config` in it.
    """
    path = Path(path)
    if not path.suffix and not path.is_file():
        shipped = Path(__file__).parent.parent / "configs"
        names = sorted(p.stem for p in shipped.glob("[!_]*.py"))
        if str(path) not in names:
            raise ValueError(f"no config {str(path)!r}; shipped ones: {', '.join(names)}")
        path = shipped / f"{path.name}.py"
    if not path.is_file():
        raise ValueError(f"no config file {str(path)!r}; give a .py file or a shipped name")
    try:
        config = runpy.run_path(str(path)).get("config")
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        known = ""
        if isinstance(error, TypeError):
            names = [f.name for section in SECTIONS.values() for f in dataclasses.fields(section)]
            known = f"; known fields: {', '.join(names)}"
        words = repr(error) if isinstance(error, SystemExit) else error
        raise ValueError(f"{path} is no config: {words}{known}") from error
    if not isinstance(config, Config):
        raise ValueError(f"{path} does not set `config = Config(...)`")
    return config


def override(config: Config, assignments: list[str]) -> Config:
    """`config` with `section.field=value` assignments applied, each typed like its field.

    >>> override(Config("x"), ["model.layers=4"]).model.layers
    4
    """
    changes: dict[str, dict[str, typing.Any]] = {}  # by section, "" being the config itself
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ValueError(f"--set {assignment!r}: write it as section.field=value")
        section, name, kind = _field(path)
        changes.setdefault(section, {})[name] = _parse(kind, text, path)
    own = changes.pop("", {})
    # All of a section at once: values that only go together may come in any order.
    sections = {s: dataclasses.replace(getattr(config, s), **new) for s, new in changes.items()}
    return dataclasses.replace(config, **own, **sections)


def _field(path: str) -> tuple[str, str, typing.Any]:
    """The section, name and type of what `section.field` names."""
    section, owner, names = "", Config, path.split(".")
    while True:
        name, *names = names
        hints = typing.get_type_hints(owner)
        if name not in hints:
            raise ValueError(f"unknown config field {path!r}; known here: {', '.join(hints)}")
        if not dataclasses.is_dataclass(hints[name]):
            break
        section, owner = name, SECTIONS[name]
        if not names:
            inner = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(owner))
            raise ValueError(f"{path!r} is a section; set one of its fields: {inner}")
    if names:
        raise ValueError(f"{path!r}: {name} has no fields of its own")
    return section, name, hints[name]


def _parse(kind, text: str, whole: str):
    if isinstance(kind, types.GenericAlias):  # tuple[str, ...]
        return tuple(part for part in text.split(",") if part)
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"--set {whole}={text}: expected true or false")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--set {whole}={text}: expected {kind.__name__}") from None


def section_from_dict(section: str, stored: dict) -> typing.Any:
    """One of `SECTIONS`; a field that is newer than what is stored is at its default. Raises
    ValueError for one that is unknown."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    known = {f.name for f in dataclasses.fields(SECTIONS[section])}
    if unknown := set(fields) - known:
        raise ValueError(f"unknown {section} fields {sorted(unknown)}; known: {sorted(known)}")
    return SECTIONS[section](**fields)


def from_dict(values: dict) -> Config:
    """The inverse of `dataclasses.asdict`, for configs stored beside a checkpoint."""
    newer = {"history": {}, "shortcut": {}, "distill": {}}  # than some stored ones
    values = newer | values
    built = {section: section_from_dict(section, values[section]) for section in SECTIONS}
    return Config(name=values["name"], **built)


def differences(ours: ModelConfig, theirs: ModelConfig) -> list[str]:
    """The fields that shape parameters and in which two configs differ, as `field: ours != theirs`
    lines."""
    return [
        f"{f.name}: {getattr(ours, f.name)} != {getattr(theirs, f.name)}"
        for f in dataclasses.fields(ModelConfig)
        if f.name not in _SHAPELESS and getattr(ours, f.name) != getattr(theirs, f.name)
    ]
