"""What `lsd export` writes: a module that XLA reads, weights that the kernel takes, or nothing."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax import stream
from lsd_jax.cli.main import main
from lsd_jax.export import export
from lsd_jax.hw import chips
from lsd_jax.model import Denoiser
from nki_kernels.denoise_stack_ref import unpack
from nki_kernels.plan import Shapes

SMALL = dataclasses.replace(
    configs.load("tiny"),
    model=configs.ModelConfig(
        height=32, width=32, patch=8, dim=128, layers=1, heads=2, head_width=128, mlp=256,
        prompt_tokens=4, reference_tokens=4, text_dim=32, text_layers=1, detail_dim=8,
    ),
)  # fmt: skip
TRN2 = chips.load("trn2")


def test_an_export_holds_the_step_the_weights_and_the_commands(tmp_path):
    make = jax.jit(lambda key: Denoiser(SMALL.model, key)).lower(jax.random.key(0))
    denoiser = make.compile({"xla_backend_optimization_level": 0})(jax.random.key(0))
    out = tmp_path / "out"
    manifest = export(SMALL, TRN2, out, denoiser)
    assert json.loads((out / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    module = (out / "frame_step.hlo.pb").read_bytes()
    assert b"jit_frame_step" in module[:200] or b"frame_step" in module
    commands = (out / "commands.sh").read_text()
    assert "neuronx-cc compile frame_step.hlo.pb --framework XLA --target trn2 -lnc 2" in commands
    assert (out / "nki_kernels" / "denoise_stack.py").is_file()
    shapes = Shapes(**manifest["shapes"])
    packed = np.load(out / "packed_weights.npy").view(np.float32)
    weights = stream.prepare(denoiser, SMALL).denoiser.stack.weights()
    for core in range(2):  # each has one of the two heads
        np.testing.assert_array_equal(
            unpack(packed[core, 0], "k", shapes), weights.qkv[0, :, 1, core]
        )
    assert list(tmp_path.iterdir()) == [out]


def test_a_checkpoint_of_another_model_is_refused(tmp_path, capsys):
    tiny = Path(__file__).parent.parent / "checkpoints" / "tiny"
    out = tmp_path / "out"
    command = ["export", "base", "--checkpoint", str(tiny), "--chip", "trn2", "-o", str(out)]
    assert main(command) == 2
    assert "is no base (asked != found): height: 512 != 128" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_bad_export_says_why_and_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="taken exists; give another folder"):
        export(SMALL, TRN2, tmp_path / "taken")
    with pytest.raises(ValueError, match="--chip v6e: export is for trn1, trn2, trn3"):
        export(SMALL, chips.load("v6e"), tmp_path / "out")
    narrow = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, head_width=64))
    with pytest.raises(NotImplementedError, match="head_dim=64"):
        export(narrow, TRN2, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
