"""The command line from end to end on a small random model: results, reports and refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from lsd_jax.cli import demo
from lsd_jax.cli.main import main
from lsd_jax.cli.stream import parse_time
from lsd_jax.data import edits
from lsd_jax.data.pictures import write_image
from lsd_jax.data.video import VideoSink, VideoSource
from lsd_jax.session import Session

REPORT = {
    "frames",
    "fps",
    "latency_ms",
    "time_to_first_frame_ms",
    "launches_per_frame",
    "recompiles_after_warmup",
    "host_ms_p50",
    "config",
    "backend",
    "versions",
    "commit",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    rng = np.random.default_rng(0)
    with VideoSink(path, size=(48, 64), fps=Fraction(25)) as sink:
        for image in rng.integers(0, 256, (20, 48, 64, 3), np.uint8):
            sink.write(image)
    return str(path)


def frames_of(path) -> np.ndarray:
    with VideoSource(path, 48, 64) as source:
        assert source.size == (48, 64)
        return np.stack([image for image, _ in source])


def test_a_stream_is_repeatable_and_reported(small_checkpoint, clip, tmp_path):
    outputs = []
    for name in ("a.mkv", "b.mkv"):
        out, report = tmp_path / name, tmp_path / f"{name}.json"
        arguments = ["stream", clip, "--prompt", "night", "--at", "0.4s", "film noir"]
        arguments += ["-o", str(out), "--checkpoint", small_checkpoint, "--json", str(report)]
        assert main(arguments) == 0
        outputs.append(frames_of(out))
        found = json.loads(report.read_text())
        assert found.keys() >= REPORT
        assert found["frames"] == 20
        assert found["launches_per_frame"] == 1
        assert found["recompiles_after_warmup"] == 0
        assert found["latency_ms"].keys() == {"p50", "p99", "max"}
    assert np.array_equal(*outputs)
    assert len(outputs[0]) == 20


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C arrives while the eighth frame is computed."""
    step, done = Session.step, []

    def interrupting(self, frame):
        done.append(frame)
        if len(done) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, frame)

    monkeypatch.setattr(Session, "step", interrupting)


def test_interruption_keeps_what_was_done(small_checkpoint, clip, tmp_path, interrupted, capsys):
    out, report = tmp_path / "out.mkv", tmp_path / "report.json"
    arguments = ["stream", clip, "--prompt", "x", "-o", str(out), "--checkpoint", small_checkpoint]
    assert main([*arguments, "--json", str(report)]) == 2
    assert len(frames_of(out)) == 8
    assert "8 frames are kept" in capsys.readouterr().err
    assert json.loads(report.read_text())["launches_per_frame"] == 1


def test_an_interrupted_demo_keeps_what_was_done(small_checkpoint, tmp_path, interrupted, capsys):
    assert main(["demo", "--out", str(tmp_path), "--checkpoint", small_checkpoint]) == 2
    assert json.loads((tmp_path / "demo.json").read_text())["frames"] == 8
    assert (tmp_path / "demo.png").is_file()
    assert "what was done is kept" in capsys.readouterr().err


def test_a_mask_covers_the_same_place_of_a_wide_video(small_checkpoint, tmp_path):
    """The pictures are 4:3 and the model square: both are stretched, so the left half stays."""
    ramp = np.broadcast_to(np.linspace(40, 200, 64)[:, None], (48, 64, 3)).astype(np.uint8)
    (tmp_path / "in").mkdir()
    for n in range(4):
        write_image(tmp_path / "in" / f"{n}.png", ramp)
    left = np.full((48, 64, 4), 255, np.uint8)
    left[:, 32:, 3] = 0  # white, but transparent
    Image.fromarray(left).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    arguments = ["stream", str(tmp_path / "in"), "--prompt", "x", "-o", str(out)]
    arguments += ["--checkpoint", small_checkpoint, "--mask", str(tmp_path / "mask.png")]
    assert main(arguments) == 0
    change = np.abs(frames_of(out).astype(int) - ramp).mean((0, 1, 3))  # by column
    assert change[36:].max() < 3 < change[:28].max()


def refusals(small_checkpoint, clip, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_text("no picture")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    out = str(tmp_path / "out.mp4")
    plain = ["stream", clip, "--prompt", "night", "-o", out, "--checkpoint", small_checkpoint]

    def changed(**new):
        names = {"input": 1, "prompt": 3, "output": 5, "checkpoint": 7}
        return [new.get(next((k for k, v in names.items() if v == i), ""), x)
                for i, x in enumerate(plain)]  # fmt: skip

    return {
        "missing": (changed(input=str(tmp_path / "none.mp4")), "none.mp4"),
        "text": (changed(input=str(text)), "does not open as a video"),
        "empty prompt": (changed(prompt=""), "prompt is empty"),
        "long prompt": (changed(prompt="a" * 10_000), "10,000 bytes"),
        "no folder": (changed(output=str(tmp_path / "no" / "out.mp4")), "make it first"),
        "kind": (changed(output=str(tmp_path / "out.xyz")), "unknown kind of video"),
        "reference": ([*plain, "--reference", str(picture)], "no picture"),
        "field": ([*plain, "--set", "model.layrs=3"], "layers"),
        "architecture": ([*plain, "--set", "model.dim=64"], "dim: 64 != 32"),
        "checkpoint": (changed(checkpoint=str(tmp_path / "none")), "no such checkpoint"),
        "itself": (changed(output=clip), "is given as input and as output"),
        "report over the input": ([*plain, "--json", clip], "is given as input and as json"),
        "report over the output": ([*plain, "--json", out], "is given as json and as output"),
        "report in a checkpoint": (
            [*plain, "--json", f"{small_checkpoint}/report.json"],
            "is inside of the checkpoint",
        ),
        "video in a checkpoint": (
            changed(output=f"{small_checkpoint}/out.mp4"),
            "is inside of the checkpoint",
        ),
        "report": ([*plain, "--json", str(text / "a.json")], "text.mp4"),
        "folder for a report": ([*plain, "--json", str(tmp_path)], f"{tmp_path}: Is a directory"),
        "no report": ([*plain, "--json", ""], "Is a directory"),
        "seed": ([*plain, "--seed", str(2**31)], "--seed 2147483648: give 0 to"),
        "time": ([*plain, "--at", "soon", "snow"], "write a time such as 3s"),
    }


REFUSED = ("missing", "text", "empty prompt", "long prompt", "no folder", "kind", "reference",
           "field", "architecture", "checkpoint", "itself", "report over the input",
           "report over the output", "report in a checkpoint", "video in a checkpoint", "report",
           "folder for a report", "no report", "seed", "time")  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_line_and_leaves_nothing(case, small_checkpoint, clip, tmp_path, capsys):
    arguments, words = refusals(small_checkpoint, clip, tmp_path)[case]
    before = sorted(tmp_path.iterdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "command",
    [
        ["info", "FILE", "--json", "FILE"],
        ["plan", "tiny", "--chip", "cpu", "--json", "NEW", "--plot", "NEW"],
        ["plan", "tiny", "--chip", "FILE", "--plot", "LINK"],
        ["bench", "fit", "FILE", "-o", "FILE"],
        ["bench", "compare", "FILE", "FILE", "--json", "LINK"],
    ],
)
def test_no_result_replaces_what_another_argument_names(command, tmp_path, capsys):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("kept")
    link.symlink_to(file)
    names = {"FILE": str(file), "LINK": str(link), "NEW": str(tmp_path / "new")}
    assert main([names.get(word, word) for word in command]) == 2
    line = capsys.readouterr().err
    assert "give what is written a place of its own" in line and line.count("\n") == 1
    assert file.read_text() == "kept" and sorted(tmp_path.iterdir()) == [file, link]


def test_a_name_that_is_no_file_may_be_an_output_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "tiny", "--chip", "cpu", "--json", "tiny"]) == 0
    assert json.loads((tmp_path / "tiny").read_text())["config"] == "tiny"


def test_emoji_in_a_prompt_is_text(small_checkpoint, clip, tmp_path):
    out = str(tmp_path / "out.mp4")
    arguments = ["stream", clip, "--prompt", "❄️🌙", "-o", out, "--checkpoint", small_checkpoint]
    assert main(arguments) == 0


def test_the_demo_writes_its_three_files(small_checkpoint, tmp_path, capsys):
    command = ["demo", "--out", str(tmp_path), "--checkpoint", small_checkpoint]
    assert main([*command, "--minutes", "0.2"]) == 0
    report = json.loads((tmp_path / "demo.json").read_text())
    assert report.keys() >= REPORT
    assert report["recompiles_after_warmup"] == 0
    assert report["frames"] == 288
    assert [row["frames"] for row in report["drift"]] == [48] * 6
    with av.open(str(tmp_path / "demo.mp4")) as video:
        assert video.streams.video[0].width == 2 * video.streams.video[0].height
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert "recompiles after warm-up" in capsys.readouterr().out
    for minutes in ("0.05", "1e308", "nan"):
        assert main([*command, "--minutes", minutes]) == 2
        assert f"--minutes {float(minutes)}: give at least 0.1" in capsys.readouterr().err


def test_a_prompt_of_the_demo_ends_at_the_picture_that_it_began_with():
    frames, shown = 7, []
    clip = [(np.full((2, 2, 3), i, np.uint8), i / 25) for i in range(frames)]

    class Video:
        def write(self, image, time_s):
            shown.append((int(image[0, 0, 0]), int(image[0, 2, 0]), time_s))

    hold = 2 * frames  # there and back
    pairs = demo.SideBySide(Video(), hold, moment=3)
    for image, time_s in pairs.watch(demo.there_and_back(clip, 25.0, 2 * hold + 5)):
        pairs.write(image + 100, time_s)
    there = list(range(frames))
    assert [before for before, _, _ in shown] == (there + there[::-1]) * 2 + there[:5]
    assert all(after == before + 100 for before, after, _ in shown)
    assert [time_s for _, _, time_s in shown] == [i / 25 for i in range(2 * hold + 5)]
    assert [held.frames for held in pairs.held] == [hold, hold, 5]
    for held in pairs.held[:2]:
        (first, early), (last, late) = held.moments()
        assert (first, last) == (held.start, held.start + hold - 3)
        assert np.array_equal(early[-1], late[0]) and len(early) == len(late) == 3
    assert pairs.held[2].drift() is None  # its moments are not apart
    assert list(demo.there_and_back(clip, 25.0, 3)) == clip[:3]


def test_the_demo_measures_each_moment_against_the_truth_of_its_own_frames():
    held = demo.Held("make it snow", start=40, moment=4)
    inputs = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    truth = edits.apply("make it snow", inputs, 40)
    for i, (image, right) in enumerate(zip(inputs, truth, strict=True)):
        held.add(image, right if i < 8 else image)
    found = held.drift()
    assert found["first_db"] == 60 and found["last_db"] == pytest.approx(found["input_db"], abs=1)


@pytest.mark.parametrize("name", ["tiny", "small", "base", "lucy_1080p"])
def test_info_counts_every_config(name, tmp_path):
    report = tmp_path / "info.json"
    assert main(["info", name, "--json", str(report)]) == 0
    found = json.loads(report.read_text())
    expected = {"tiny": 8e6, "small": 28e6, "base": 300e6, "lucy_1080p": 1.3e9}[name]
    assert abs(found["parameters"] / expected - 1) < 0.1
    assert found["flops_per_frame"] > 2 * found["tokens_per_frame"] * 0.5 * expected


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 9. TiB"), RuntimeError("RESOURCE_EXHAUSTED: Out\n9")]
)
def test_too_much_at_once_is_one_line(error, monkeypatch, capsys):
    def run(args):
        raise error

    monkeypatch.setattr("lsd_jax.cli.info.run", run)
    assert main(["info", "tiny"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("lsd info: out of memory; ask for less at once: ")
    assert line.count("\n") == 1
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main(["info", "tiny"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["plan", "tiny", "--set", f"model.dim=1{400 * '0'}", "--set", "model.head_width=128"],
            "lsd plan: a number is too large, give less: int too large to convert to float\n",
        ),
        (
            ["export", "micro", "-o", "OUT", "--seed", 23 * "9"],
            f"lsd export: --seed {23 * '9'}: give 0 to 2147483647\n",
        ),
    ],
)
def test_a_number_that_is_too_large_is_one_line(arguments, said, tmp_path, capsys):
    out = str(tmp_path / "out")
    chip = {"plan": "cpu", "export": "trn1"}[arguments[0]]
    assert main([*(out if a == "OUT" else a for a in arguments), "--chip", chip]) == 2
    assert capsys.readouterr().err == said and not list(tmp_path.iterdir())


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys; from lsd_jax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'av', 'flax', 'rich'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize("chip", ["trn2", "v6e", "cpu"])
def test_a_plan_does_not_wait_for_jax(chip):
    code = (
        "import sys; from lsd_jax.cli.main import main\n"
        f"assert main(['plan', 'tiny', '--chip', '{chip}']) == 0\n"
        "sys.exit('jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize(
    ("text", "seconds"), [("3s", 3), ("250ms", 0.25), ("1m30s", 90), ("90", 90), ("0.5", 0.5)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds
