"""What a step is said to compute, against the backward pass itself; rates, by a clock of ours."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lsd_jax import sharding
from lsd_jax.flops import count_flops
from lsd_jax.hw import chips
from lsd_jax.train import throughput
from lsd_jax.train.forcing import forcing_loss
from lsd_jax.train.history import history_loss
from lsd_jax.train.shortcut import shortcut_loss
from lsd_jax.train.step import objective

BLOCKS = sys.modules["lsd_jax.ops.denoise_stack"]  # the package has the op under that name


@pytest.mark.parametrize("loss", [forcing_loss, history_loss, shortcut_loss])
def test_a_step_counts_as_its_backward_pass_that_keeps_everything(
    loss, small_config, small_params, small_batch, monkeypatch
):
    key = jax.random.key(0)

    def backward(params, batch):
        return jax.grad(lambda p: objective(small_config, loss, p, params, batch, key)[0])(params)

    repeated = count_flops(backward, small_params, small_batch)
    monkeypatch.setattr(BLOCKS, "KEPT", jax.checkpoint_policies.everything_saveable)
    kept = count_flops(lambda *args: backward(*args), small_params, small_batch)
    found = throughput.flops_of_step(small_config, loss, small_batch)
    assert found == kept < repeated


def test_a_teacher_counts_once(small_config, small_params, small_batch):
    """Its forward pass needs no other."""

    def forward(params, batch):
        loss = objective(small_config, history_loss, params, params, batch, jax.random.key(0))
        return loss[0]

    def taught(model, teacher, *rest):
        theirs, _ = history_loss(jax.lax.stop_gradient(teacher), teacher, *rest)
        ours, metrics = history_loss(model, teacher, *rest)
        return ours + theirs, metrics

    alone = throughput.flops_of_step(small_config, history_loss, small_batch)
    both = throughput.flops_of_step(small_config, taught, small_batch)
    assert both - alone == count_flops(forward, small_params, small_batch)


def test_rates_are_of_the_steps_since_the_last_lap(small_config, small_batch, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(throughput, "flops_of_step", lambda *_: 3e12)
    monkeypatch.setattr(throughput, "peak_flops", lambda mesh: 60e12)
    speed = throughput.Throughput(small_config, history_loss, None, step=7)
    now[0] += 2
    found = speed.lap(10, small_batch)  # three steps of eight clips
    assert found == {"clips_per_s": 12, "tflops_per_s": 4.5, "mfu": 0.075}
    now[0] += 1
    assert speed.lap(12, small_batch)["clips_per_s"] == 16
    now[0] += 50
    assert speed.lap(12, small_batch) == {}
    now[0] += 1
    assert speed.lap(13, small_batch)["clips_per_s"] == 8


def device(kind):
    return SimpleNamespace(device_kind=kind)


@pytest.mark.parametrize(
    ("kind", "tflops"), [("NVIDIA H200", 989), ("TPU v5p", 459), ("TPU v6 lite", 918), ("cpu", 0)]
)
def test_the_peak_is_that_of_all_devices(kind, tflops):
    mesh = SimpleNamespace(devices=np.array([[device(kind)] * 2] * 2), size=4)
    assert throughput.peak_flops(mesh) == pytest.approx(4 * tflops * 1e12)


def test_a_device_here_has_no_known_peak():
    assert throughput.peak_flops(sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])) == 0


def test_every_device_is_a_chip_that_we_have():
    assert set(chips.DEVICES.values()) <= set(chips.known())
