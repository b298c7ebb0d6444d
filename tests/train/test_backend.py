"""Which implementation training runs: kernels that have gradients, and else the specification."""

import dataclasses
import logging

import jax
import pytest

from lsd_jax import sharding
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.step import abstract_state, make_step


@pytest.fixture(scope="module")
def lowered(small_config, small_batch):
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])

    def lower(backend):
        train = dataclasses.replace(small_config.train, backend=backend)
        config = dataclasses.replace(small_config, train=train)
        step = make_step(config, forcing_loss, mesh)
        return step.lower(abstract_state(config, mesh), small_batch).as_text()

    return lower


def test_on_a_cpu_auto_is_the_specification_to_the_letter(lowered, caplog):
    caplog.set_level(logging.INFO, "absl")
    assert lowered("auto") == lowered("xla")
    assert "attend xla" in caplog.text and "denoise_stack xla" in caplog.text


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
