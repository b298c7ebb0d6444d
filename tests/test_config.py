"""Configs: typed overrides, errors that name what is known, round trips."""

import dataclasses
import math
from functools import partial

import pytest

from lsd_jax.config import (
    Config,
    HistoryConfig,
    ModelConfig,
    ShortcutConfig,
    StreamConfig,
    TrainConfig,
    differences,
    from_dict,
    load,
    override,
)

CONFIG = Config("x")


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("model.layers=4", 4),
        ("train.learning_rate=3e-4", 3e-4),
        ("train.compute_dtype=bfloat16", "bfloat16"),
        ("model.controls=mask", ("mask",)),
        ("model.controls=", ()),
        ("train.scene_edits=remove,recolour", ("remove", "recolour")),
        ("name=y", "y"),
    ],
)
def test_override_is_typed_like_the_field(assignment, value):
    config, node = override(CONFIG, [assignment]), None
    for name in assignment.split("=")[0].split("."):
        node = getattr(node or config, name)
    assert node == value and type(node) is type(value)
    assert CONFIG == Config("x")


def test_overrides_apply_in_order():
    config = override(CONFIG, ["model.height=96", "model.width=160", "model.height=64"])
    assert (config.model.height, config.model.width) == (64, 160)
    assert config.train == CONFIG.train


def test_values_that_only_go_together_come_in_any_order():
    pair = ["model.height=96", "model.width=96", "model.patch=12", "model.detail_patch=4"]
    for given in (pair, pair[::-1]):
        assert override(CONFIG, given).model.grid == (8, 8)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.layer=4", r"unknown config field 'model.layer'; known here: .*layers"),
        ("modle.layers=4", r"unknown config field .*known here: name, model, stream, train"),
        ("model=4", r"'model' is a section.*model.height"),
        ("model.layers.x=4", r"layers has no fields"),
        ("model.layers", r"write it as section.field=value"),
        ("model.layers=four", r"model.layers=four: expected int"),
        ("train.ema=high", r"expected float"),
        ("model.heads=3", r"dim=256 does not split over .*heads=3"),
        ("model.height=100", r"height=100 is not a multiple of patch=16"),
        ("stream.passes=5", r"passes=5 must be 1, 2, 3 or 4"),
        ("model.controls=depth", r"controls=depth must be mask, or nothing"),
        ("train.batch=0", r"batch=0 must be at least 1"),
    ],
)
def test_override_says_what_is_wrong(assignment, message):
    with pytest.raises(ValueError, match=message):
        override(CONFIG, [assignment])


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        (ModelConfig, "width", 0, "width=0 must be at least 1"),
        (ModelConfig, "patch", 0, "patch=0"),
        (ModelConfig, "heads", 0, "heads=0"),
        (ModelConfig, "window", 0, "window=0"),
        (ModelConfig, "kv_heads", 3, "kv_heads=3 must divide heads=2, or be 0"),
        (ModelConfig, "kv_heads", -1, "kv_heads=-1 must divide"),
        (ModelConfig, "sinks", -1, "sinks=-1"),
        (ModelConfig, "detail_patch", 3, "not a multiple of detail_patch=3"),
        (ModelConfig, "dim", 12, "head_dim=6 must be a multiple of 4"),
        (ModelConfig, "text_dim", 6, "text_dim=6 must be a multiple of 4"),
        (ModelConfig, "external_text_dim", -1, "external_text_dim=-1 must not be negative"),
        (ModelConfig, "height", 16 * 10**8, "800,000,000 tokens of a .* set a larger patch"),
        (ModelConfig, "layers", 2.0, "layers=2.0: expected int"),
        (ModelConfig, "layers", True, "layers=True: expected int"),
        (ModelConfig, "controls", ["mask"], r"controls=\['mask'\]: expected tuple"),
        (TrainConfig, "learning_rate", "1e-3", "learning_rate='1e-3': expected float"),
        (TrainConfig, "keep_zeros", 1, "keep_zeros=1: expected bool"),
        (partial(Config, "x"), "model", 3, "model=3: expected ModelConfig"),
        (Config, "name", None, "name=None: expected str"),
        (StreamConfig, "compute_dtype", "int8", "'int8'; known: float32, bfloat16"),
        (StreamConfig, "history_level", 1.5, "history_level=1.5"),
        (TrainConfig, "prompt_drop", -0.1, "prompt_drop=-0.1"),
        (TrainConfig, "log_every", 0, "log_every=0"),
        (ModelConfig, "head_width", -4, "head_width=-4 must not be negative"),
        (TrainConfig, "learning_rate", math.nan, "learning_rate=nan must be finite"),
        (TrainConfig, "learning_rate", math.inf, "learning_rate=inf must be finite"),
        (TrainConfig, "learning_rate", 0.0, "learning_rate=0 would train nothing"),
        (TrainConfig, "clip_norm", -1.0, "clip_norm=-1.0 must be finite and not negative"),
        (TrainConfig, "weight_decay", math.nan, "weight_decay=nan"),
        (TrainConfig, "edit_weight", math.inf, "edit_weight=inf"),
        (TrainConfig, "warmup", -5, "warmup=-5"),
        (TrainConfig, "ema", 2.0, "ema=2.0 not in"),
        (TrainConfig, "ema", math.nan, "ema=nan not in"),
        (TrainConfig, "seed", -1, "seed=-1"),
        (TrainConfig, "seed", 2**31, "seed=2147483648 is not below 2.31"),
        (TrainConfig, "steps", 10**20, "steps=1000.* is not below"),
        (HistoryConfig, "drift_penalty", math.inf, "drift_penalty=inf"),
        (ShortcutConfig, "guidance", math.inf, "guidance=inf"),
    ],
)
def test_values_are_checked(section, field, value, message):
    with pytest.raises(ValueError, match=message):
        section(**{field: value})


def test_a_width_that_text_cannot_share_is_refused():
    with pytest.raises(ValueError, match="dim=6 must be a multiple of 4"):
        ModelConfig(dim=6, heads=1, head_width=4)


def test_a_whole_number_is_a_float_too():
    assert TrainConfig(learning_rate=1).learning_rate == 1


def test_derived_sizes():
    model = ModelConfig(height=64, width=96, patch=16, sinks=1, window=2)
    assert (model.grid, model.tokens, model.head_dim) == ((4, 6), 24, 128)
    assert (model.pinned, model.slots, model.keys) == (64, 3, 64 + 3 * 24)
    assert (model.key_heads, model.per_kv) == (2, 1)
    shared = ModelConfig(heads=8, kv_heads=2)
    assert (shared.key_heads, shared.per_kv, shared.head_dim) == (2, 4, 32)


def test_load_by_path_and_by_name(tmp_path):
    assert load("tiny").name == "tiny"
    file = tmp_path / "mine.py"
    file.write_text("from lsd_jax.config import Config\nconfig = Config('mine')\n")
    assert load(file) == Config("mine")


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="no config 'tinny'; shipped ones: .*tiny"):
        load("tinny")
    with pytest.raises(ValueError, match="no config file '.*absent.py'; give a .py file"):
        load(tmp_path / "absent.py")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"does not set `config = Config"):
        load(tmp_path / "empty.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = Config('x', model=3)", "model=3: expected ModelConfig"),
        ("config = Config('x', ModelConfig(layers=2.0))", "layers=2.0: expected int"),
        ("config = Config('x', ModelConfig(layrs=2))", "layrs.*; known fields: .*layers"),
        ("import sys; sys.exit(3)", r"SystemExit\(3\)"),
    ],
)
def test_what_a_file_gets_wrong_is_one_line(text, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"from lsd_jax.config import Config, ModelConfig\n{text}\n")
    with pytest.raises(ValueError, match=f"mine.py is no config: .*{message}"):
        load(file)


def test_a_shipped_name_is_itself_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert load("tiny").name == "tiny"
    with pytest.raises(ValueError, match="no config 'runs/tiny'"):
        load("runs/tiny")


def test_from_dict_is_the_inverse_of_asdict():
    config = override(CONFIG, ["model.controls=", "train.ema=0.5"])
    values = dataclasses.asdict(config)
    assert from_dict(values) == config
    values["model"]["controls"] = list(values["model"]["controls"])  # as JSON returns it
    assert from_dict(values) == config
    with pytest.raises(ValueError, match="layers=2.0: expected int"):
        from_dict(values | {"model": values["model"] | {"layers": 2.0}})
    values["train"]["speed"] = 1
    with pytest.raises(ValueError, match=r"unknown train fields \['speed'\]; known: .*'batch'"):
        from_dict(values)


def test_differences_name_the_fields():
    ours, theirs = ModelConfig(), ModelConfig(layers=7, window=5)
    assert differences(ours, ours) == []
    assert differences(ours, dataclasses.replace(ours, memory=2, sinks=1)) == []
    assert differences(ours, theirs) == ["layers: 6 != 7", "window: 3 != 5"]
