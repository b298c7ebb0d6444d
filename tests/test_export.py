"""What `lsd export` writes: a module that XLA reads, weights that the kernel takes, or nothing."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from lsd_jax import config as configs
from lsd_jax import stream
from lsd_jax.cli.main import main
from lsd_jax.export import export, frame_step
from lsd_jax.hw import chips
from lsd_jax.hw.stack import stack_of
from lsd_jax.model import Denoiser
from lsd_jax.ops import dispatch
from lsd_jax.pretrained import load_model, weights_for
from nki_kernels import _compat, alone, backend, bench
from nki_kernels.denoise_stack_ref import unpack
from nki_kernels.plan import Shapes
from nki_kernels.sharing import share
from nki_kernels.sim.timeline import schedule

SMALL = dataclasses.replace(
    configs.load("tiny"),
    model=configs.ModelConfig(
        height=32, width=32, patch=8, dim=128, layers=1, heads=2, head_width=128, mlp=256,
        prompt_tokens=4, reference_tokens=4, text_dim=32, text_layers=1, detail_dim=8,
    ),
)  # fmt: skip
TRN2 = chips.load("trn2")


@pytest.fixture(scope="module")
def denoiser():
    found, where = weights_for(SMALL, 0)  # it is called tiny, but is of another shape
    assert where == "initialised by seed 0"
    return found


def test_an_export_holds_the_step_the_weights_and_the_commands(tmp_path, denoiser):
    out = tmp_path / "out"
    manifest = export(SMALL, TRN2, out, denoiser, "a test")
    assert manifest["weights_from"] == "a test" and manifest["kernel"] == "plain XLA"
    assert manifest["kernel_why"] == "the real `nki` is not installed here"
    assert json.loads((out / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    module = (out / "frame_step.hlo.pb").read_bytes()
    assert b"jit_frame_step" in module[:200] or b"frame_step" in module
    commands = (out / "commands.sh").read_text()
    assert "neuronx-cc compile frame_step.hlo.pb --framework XLA --target trn2 -lnc 2" in commands
    debug = commands.index("export NEURON_FRAMEWORK_DEBUG=1 XLA_IR_DEBUG=1 XLA_HLO_DEBUG=1")
    capture = "NEURON_RT_ENABLE_DGE_NOTIFICATIONS=1 neuron-profile capture --neff frame_step.neff"
    assert debug < commands.index("neuronx-cc") < commands.index(capture)
    assert subprocess.run(["sh", "-n", out / "commands.sh"], check=False).returncode == 0
    assert (out / "nki_kernels" / "denoise_stack.py").is_file()
    shapes = Shapes(**manifest["shapes"])
    packed = np.load(out / "packed_weights.npy").view(np.float32)
    weights = stream.prepare(denoiser, SMALL).denoiser.stack.weights()
    for core in range(2):  # each has one of the two heads
        np.testing.assert_array_equal(
            unpack(packed[core, 0], "k", shapes), weights.qkv[0, :, 1, core]
        )
    assert list(tmp_path.iterdir()) == [out]


def test_query_heads_are_packed_beside_those_that_share_their_keys(tmp_path):
    model = dataclasses.replace(SMALL.model, heads=4, kv_heads=2)
    config = dataclasses.replace(SMALL, model=model)
    shared = Denoiser(model, jax.random.key(0))
    shapes = Shapes(**export(config, TRN2, tmp_path / "out", shared, "a test")["shapes"])
    assert (shapes.heads, shapes.per_kv) == (1, 2)
    packed = np.load(tmp_path / "out" / "packed_weights.npy").view(np.float32)
    weights = shared.stack.weights()
    for core in range(2):
        found = unpack(packed[core, 0], "q", shapes)
        np.testing.assert_array_equal(found, np.hstack(weights.qkv[0, :, :2, core].swapaxes(0, 1)))
        np.testing.assert_array_equal(unpack(packed[core, 0], "out", shapes), weights.out[0, core])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, denoiser):
    out = tmp_path_factory.mktemp("export") / "out"
    export(SMALL, TRN2, out, denoiser, "a test")
    return out


def custom_call(shapes, x, *rest):
    """Stands for the real kernel, of which the lowering has a call and donated rings alone."""
    dtype = rest[1].dtype
    keys = (shapes.layers, shapes.sessions, shapes.ring or shapes.tokens, rest[1].shape[-1])
    out = [jax.ShapeDtypeStruct(s, d) for s, d in ((x.shape, x.dtype), (keys, dtype))]
    call = jax.ffi.ffi_call("AwsNeuronCustomNativeKernel", (out[0], out[1], out[1]))
    return call(x, *rest)


def test_with_nki_the_kernel_is_lowered_though_there_is_no_device(monkeypatch):
    monkeypatch.setattr(_compat, "REAL", True)
    monkeypatch.setattr(backend, "_on_device", custom_call)
    module, kernel, why = frame_step(SMALL, cores=2)
    assert (kernel, why) == ("custom call", "the real `nki` is installed")
    assert module.count(b"AwsNeuronCustomNativeKernel") == SMALL.stream.passes + 1
    with dispatch.using("nki"), pytest.raises(NotImplementedError, match="this is a cpu device"):
        jax.eval_shape(stream.frame_step, stream.abstract_prepared(SMALL),
                       *stream.abstract_inputs(SMALL))  # fmt: skip


def test_what_nki_cannot_lower_here_is_exported_in_plain_xla_and_said(monkeypatch):
    def fails(shapes, *arguments):
        raise RuntimeError("no NeuronCore\n  was found")

    monkeypatch.setattr(_compat, "REAL", True)
    monkeypatch.setattr(backend, "_on_device", fails)
    module, kernel, why = frame_step(SMALL, cores=2)
    assert kernel == "plain XLA" and b"AwsNeuronCustomNativeKernel" not in module
    assert why == "NKI did not lower the kernel here: RuntimeError: no NeuronCore was found"


def test_weights_are_the_shipped_ones_or_of_a_seed(denoiser):
    tiny, where = weights_for(configs.load("tiny"), 0)
    assert where == "checkpoints/tiny, as shipped"
    shipped, _ = load_model(None, [])
    for a, b in zip(jax.tree.leaves(tiny), jax.tree.leaves(shipped), strict=True):
        np.testing.assert_array_equal(a, b)
    other, where = weights_for(SMALL, 1)
    assert where == "initialised by seed 1"
    assert (other.stack.weights().up != denoiser.stack.weights().up).any()


def test_by_the_command_line_an_export_has_weights(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", "tiny", "--chip", "trn2", "-o", str(out)]) == 0
    assert "weights: checkpoints/tiny, as shipped; there, run" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["weights_from"] == "checkpoints/tiny, as shipped"
    packed = np.load(out / manifest["weights"])
    assert packed.std() > 0 and packed.shape[:2] == (2, configs.load("tiny").model.layers)


def test_what_one_device_has_no_room_for_is_refused_with_a_size_that_fits(tmp_path, capsys):
    lucy = configs.load("lucy_1080p")
    assert main(["export", "lucy_1080p", "--chip", "trn2", "-o", str(tmp_path / "out")]) == 2
    why = capsys.readouterr().err
    assert "one device, 2 cores of trn2 as one, which it does not fit" in why
    assert why.count("\n") == 1 and not list(tmp_path.iterdir())
    tokens = int(re.search(r"at most (\d+) tokens fit \(it has 2040\)", why)[1])
    stack = dataclasses.replace(stack_of(lucy.model, "bfloat16"), tokens=tokens)
    assert share(stack, cores=2).cores == 2


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
    alone_here = ["bench", "calibrate", "--profile", str(folder / "megakernel" / "summary.json")]
    assert main(alone_here) == 0  # the manifest says the rest
    fitted = folder / "megakernel" / "trn2-fitted.json"
    assert f"wrote {fitted}" in capsys.readouterr().out
    assert fitted.read_text() == out.read_text()
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


def test_a_bad_export_says_why_and_leaves_nothing(tmp_path, denoiser):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="taken exists; give another folder"):
        export(SMALL, TRN2, tmp_path / "taken", denoiser, "")
    with pytest.raises(ValueError, match="--chip v6e: export is for trn1, trn2, trn3"):
        export(SMALL, chips.load("v6e"), tmp_path / "out", denoiser, "")
    narrow = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, head_width=64))
    with pytest.raises(ValueError, match="head_dim=64"):
        export(narrow, TRN2, tmp_path / "out", denoiser, "")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
