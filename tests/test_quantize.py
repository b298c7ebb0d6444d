"""Eight-bit weights: how near, how small, and that they load and stream."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import reports
from lsd_jax.checkpoint import save_weights
from lsd_jax.cli import quantize as command
from lsd_jax.matrices import MATRICES
from lsd_jax.pretrained import load_model
from lsd_jax.quantize import dequantize, quantize


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
