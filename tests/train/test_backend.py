"""Which implementation training runs: kernels that have gradients, and else the specification."""

import dataclasses

import jax
import pytest

from lsd_jax import config as configs
from lsd_jax import sharding
from lsd_jax.hw import chips
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.step import abstract_state, explain_attention, make_step
from pallas_kernels.tpu import attend as kernel


@pytest.fixture(scope="module")
def lowered(small_config, small_batch):
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])

    def lower(backend):
        train = dataclasses.replace(small_config.train, backend=backend)
        config = dataclasses.replace(small_config, train=train)
        step = make_step(config, forcing_loss, mesh)
        return step.lower(abstract_state(config, mesh), small_batch).as_text()

    return lower


def test_on_a_cpu_auto_is_the_specification_to_the_letter(lowered):
    assert lowered("auto") == lowered("xla")


def test_what_attention_is_trained_by_is_explained(monkeypatch):
    mesh = sharding.make_mesh(1, 8, 1)
    config = configs.override(configs.load("base"), ["train.batch=8"])
    answers = explain_attention(config, mesh)
    assert answers["xla"] == "chosen" and "this is 'cpu'" in answers["pallas"]
    monkeypatch.setattr(kernel, "chip_here", lambda: chips.load("v6e"))
    assert explain_attention(config, mesh)["pallas"] == "chosen"
    small = configs.override(config, ["model.head_width=64"])
    assert "multiple of 128 features, not 64" in explain_attention(small, mesh)["pallas"]
    few = configs.override(config, ["model.height=64", "model.width=128"])
    assert "32 queries leave a tile" in explain_attention(few, mesh)["pallas"]


def test_an_unknown_one_is_refused_before_anything_is_compiled(small_config):
    train = dataclasses.replace(small_config.train, backend="zzz")
    with pytest.raises(ValueError, match="unknown train.backend=zzz; known: auto, pallas.*xla"):
        explain_attention(dataclasses.replace(small_config, train=train), sharding.make_mesh())


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("pallas", "train.backend=pallas: runs on .*, and this is 'cpu'"),
        ("pallas-interpret", "heads of a multiple of 128 features, not 16"),
        ("tpu", "no backend 'tpu'"),
    ],
)
def test_a_forced_one_runs_or_says_why_not(lowered, backend, reason):
    with pytest.raises(ValueError, match=reason):
        lowered(backend)
