"""What `lsd export` writes: a module that XLA reads, weights that the kernel takes, or nothing."""

import dataclasses
import json
import shutil
import subprocess
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
from nki_kernels import alone, bench
from nki_kernels.denoise_stack_ref import unpack
from nki_kernels.plan import Shapes
from nki_kernels.sim.timeline import schedule

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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Without weights."""
    out = tmp_path_factory.mktemp("export") / "out"
    export(SMALL, TRN2, out)
    return out


def test_the_megakernel_alone_runs_and_is_right(exported, capsys):
    """By the command of its commands.sh, but for the chip: on two simulated cores."""
    folder = exported / "megakernel"
    commands = (folder / "commands.sh").read_text()
    assert "NEURON_LOGICAL_NC_CONFIG=2" in commands and "-m nki_kernels.alone .\n" in commands
    assert subprocess.run(["sh", "-n", folder / "commands.sh"], check=False).returncode == 0
    assert alone.main([str(folder), "--simulate"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["x", "k", "v"]
    assert all(1e-4 < float(line.split(",")[1].split()[0]) < 5e-3 for line in lines)
    eight = bench.shapes_of(SMALL.model, TRN2, 2, 2, "float8_e4m3")
    given = alone.arguments(eight)
    off = alone.differences(eight, given, alone.run(eight, given, simulate=True))
    assert all(1e-4 < relative < 5e-2 for _, _, relative in off)
    assert alone.main([str(folder)]) == 2
    assert "`nki` is not installed" in capsys.readouterr().err
    assert alone.main([str(exported), "--simulate"]) == 2
    assert "want the folder `megakernel`" in capsys.readouterr().err


def test_a_profile_is_known_by_the_manifest_beside_it(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "out")
    shapes = Shapes(**json.loads((folder / "megakernel" / "manifest.json").read_text())["shapes"])
    busy = schedule([bench.trace(shapes, TRN2)], TRN2)[0].busy_ns["pe"] / 1e9
    for where in (folder, folder / "megakernel"):
        summary = {"total_time": 1e-3, "tensor_engine_active_time": 2 * busy}
        (where / "summary.json").write_text(json.dumps(summary))
    out = tmp_path / "mine.json"

    def calibrate(where, chip="trn2"):
        profile = str(where / "summary.json")
        command = ["bench", "calibrate", "--chip", chip, "--profile", profile]
        return main([*command, "--out", str(out)]), capsys.readouterr().err

    code, why = calibrate(folder)
    assert code == 2 and "is of the whole frame step" in why and "megakernel/summary.json" in why
    code, why = calibrate(folder / "megakernel", "trn3")
    assert code == 2 and "was made for trn2, not for --chip trn3" in why and not out.exists()
    assert calibrate(folder / "megakernel")[0] == 0
    assert chips.load(str(out))["pe_clock"] == pytest.approx(TRN2["pe_clock"] / 2)
    (folder / "manifest.json").write_text("{}")
    code, why = calibrate(folder)
    assert code == 2 and "none of `lsd export`'s, or an older one's: export anew" in why
    (folder / "megakernel" / "manifest.json").write_text('{"module": "megakernel", "chip": "trn2"}')
    code, why = calibrate(folder / "megakernel")
    assert code == 2 and "is damaged, or of another version: export anew" in why
    assert alone.main([str(folder / "megakernel"), "--simulate"]) == 2


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
