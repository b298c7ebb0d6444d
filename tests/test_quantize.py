"""Eight-bit weights: how near, how small, and that they load and stream."""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsd_jax import reports
from lsd_jax.checkpoint import save_weights
from lsd_jax.cli import quantize as command
from lsd_jax.cli.main import main
from lsd_jax.matrices import MATRICES
from lsd_jax.model import Denoiser, build
from lsd_jax.pretrained import load_model
from lsd_jax.quantize import dequantize, quantize, quantize_stack


@pytest.mark.parametrize(("form", "step"), [("int8", 1 / 254), ("fp8", 1 / 16)])
def test_each_result_has_a_scale_and_no_weight_is_further_off_than_half_a_step(
    form, step, small_params
):
    small = quantize(small_params, form)
    restored = dequantize(small)
    for path, matrix in MATRICES.items():
        before, leaf, after = small_params, small, restored
        for name in path:
            before, leaf, after = before[name], leaf[name], after[name]
        before, after = np.asarray(before), np.asarray(after)
        assert leaf["qvalue"].dtype.itemsize == 1 and leaf["qvalue"].shape == before.shape
        shape = [1 if axis in matrix.summed else n for axis, n in enumerate(before.shape)]
        assert list(leaf["scale"].shape) == shape
        largest = np.abs(before).max(axis=matrix.summed, keepdims=True)
        bound = largest if form == "int8" else np.abs(before) + largest * 2**-9
        assert (np.abs(after - before) <= 1.02 * step * bound).all(), path
    for name in ("position", "modulation"):
        jax.tree.map(np.testing.assert_array_equal, restored[name], small_params[name])
    with pytest.raises(ValueError, match="int8, fp8"):
        quantize(small_params, "int3")


def test_the_blocks_of_a_stream_keep_the_integers_of_a_checkpoint(small_params, small_config):
    """Those whose largest is -128 there are rounded again, by a step at most."""
    leaves = quantize(small_params, "int8")
    model = build(small_config.model, dequantize(leaves))
    eight = quantize_stack(model.stack.weights(), "bfloat16")
    assert eight.q_scale.dtype == jnp.bfloat16
    for name, scale in vars(eight.matrix_scales).items():
        leaf = leaves["stack"][name]
        summed = MATRICES["stack", name].summed
        ours, theirs = (np.asarray(x, int) for x in (getattr(eight, name), leaf["qvalue"]))
        again = theirs.min(axis=summed, keepdims=True) == -128
        np.testing.assert_array_equal(*(np.where(again, 0, x) for x in (ours, theirs)))
        assert np.abs(ours - theirs).max() <= 1 and not again.all()
        np.testing.assert_allclose(scale, leaf["scale"].squeeze(summed), rtol=0.01)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_the_command_writes_what_loads(form, small_params, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "provenance", lambda: {})
    save_weights(tmp_path / "whole", small_params, small_config)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json")
    given = [tmp_path / "whole", "--format", form, "-o", tmp_path / "small", "--frames", 2]
    given += ["--worlds", 1 if form == "int8" else 0, "--json", tmp_path / "report.json"]
    command.run(parser.parse_args([str(x) for x in given]))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["weight_bytes"]["after"] < 0.6 * report["weight_bytes"]["before"]
    if form == "int8":
        assert abs(report["psnr_db"]["after"] - report["psnr_db"]["before"]) < 0.5
    model, config = load_model(tmp_path / "small", [])
    assert config == small_config and model.embed.dtype == jnp.float32
    expected = dequantize(quantize(small_params, form))["embed"]
    np.testing.assert_array_equal(model.embed[...], expected)
    for bad in (["--frames", "0"], ["-o", str(tmp_path / "whole")]):
        with pytest.raises(ValueError, match="at least 1|checkpoint itself"):
            command.run(parser.parse_args([*map(str, given), *bad]))


def test_without_text_the_loss_cannot_be_measured_and_nothing_is_written(
    small_config, tmp_path, capsys
):
    shape = dataclasses.replace(small_config.model, external_text_dim=8)
    params = nnx.to_pure_dict(nnx.state(Denoiser(shape, jax.random.key(0)), nnx.Param))
    save_weights(tmp_path / "whole", params, dataclasses.replace(small_config, model=shape))
    arguments = ["quantize", str(tmp_path / "whole"), "-o", str(tmp_path / "small")]
    assert main(arguments) == 2
    assert "give --worlds 0" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    assert main([*arguments, "--worlds", "0"]) == 0
