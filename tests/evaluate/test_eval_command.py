"""`lsd eval` on a small random model: the report's keys, its files, and bad input."""

import argparse
import json

import numpy as np
import pytest
from flax import nnx

from lsd_jax import reports
from lsd_jax.checkpoint import CheckpointError, save_weights, verify
from lsd_jax.cli import eval as command
from lsd_jax.evaluate import drift, report


@pytest.fixture(scope="module")
def checkpoint(small_model, small_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "weights"
    save_weights(path, nnx.to_pure_dict(nnx.state(small_model, nnx.Param)), small_config)
    return path


def arguments(checkpoint, *extra):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json")
    return parser.parse_args([str(checkpoint), *map(str, extra)])


def test_long_streams_are_as_many_as_can_be_asked_for():
    assert command.LONG_STREAMS == drift.STREAMS


def test_report_has_the_keys_that_are_promised(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reports, "provenance", lambda: {"versions": {}, "commit": None})
    out, plots = tmp_path / "report.json", tmp_path / "plots"
    extra = ("--worlds", 1, "--frames", 2, "--batch", 19, "--drift-frames", 3, "--passes", "1,2")
    command.run(arguments(checkpoint, *extra, "--json", out, "--plots", plots))
    found = json.loads(out.read_text())

    assert found["frames"] == 2 and found["streams"] == 52 and found["kind"] == "measured"
    assert set(found["psnr_db"]) == {"mean", "identity", "by_edit", "held_out_prompts"}
    assert {"footage", "scene", "held_out"} <= set(found["prompt_accuracy"])
    assert len(found["psnr_db"]["by_edit"]) == len(found["by_edit"]) == 22
    assert len(found["held_out_prompts"]) == 30
    for row in found["by_edit"].values():
        assert {"psnr", "identity", "gain", "accuracy", "texture"} <= set(row)
        assert np.isfinite([row["psnr"], row["texture"]]).all()
    assert len(found["drift"]["psnr_db_by_frame"]) == 2
    promised = {"early_db", "late_db", "worst_stream_drop_db", "brightness_ratio"}
    assert promised | {"contrast_ratio"} <= set(found["drift"]) and found["drift"]["frames"] == 3
    assert set(found["by_passes"]) == {"1", "2"}
    assert found["by_passes"]["1"]["psnr_db"] == found["psnr_db"]["mean"]
    long = found["by_passes"]["2"]["drift"]
    assert long["frames"] == 3 and len(long["curves"]["worst_psnr_db"]) == len(long["bin_ends"])
    assert {"early_db", "late_db", "contrast_ratio", "cold"} <= set(long)
    assert {"recovery_frames", "prompt_response_frames", "flicker"} <= set(found)
    assert {"config", "passes", "versions", "commit", "gain_db"} <= set(found)
    for name in ("edits.png", "drift.png", "contact.png", "contact_held_out.png"):
        assert (plots / name).stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "held-out" in printed and "night" in printed and "recolour" in printed
    assert set(report.lines(found)) <= set(printed.splitlines())  # no figure is broken in two
    assert "passes a frame 2" in printed and printed.count("  3 frames: early") == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--worlds", 0), "--worlds 0: give at least 1"),
        (("--drift-frames", -1), "--drift-frames -1: give at least 0"),
        (("--drift-streams", 20), "there are 19"),
        (("--passes", "1,5"), "from 1 to 4"),
        (("--passes", ","), "from 1 to 4"),
        (("--seed", 2**31), "--seed 2147483648: give 0 to"),
        (("--plots", __file__), "test_eval_command.py"),
        (("--work", __file__), "test_eval_command.py"),
        (("--set", "model.layers=4"), "layers: 4 != 2"),
        (("--set", "stream.speed=2"), "unknown config field"),
    ],
)
def test_bad_input_is_one_clear_line(checkpoint, extra, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        command.run(arguments(checkpoint, *extra))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["--plots", "--work"])
@pytest.mark.parametrize("inside", ["", "new/folder"])
def test_no_results_inside_of_a_checkpoint(checkpoint, option, inside):
    """A file more is damage to it."""
    with pytest.raises(CheckpointError, match="inside of the checkpoint .*another place"):
        command.run(arguments(checkpoint, option, checkpoint / inside))
    verify(checkpoint)
    assert not (checkpoint / "new").exists()
