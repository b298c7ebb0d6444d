"""Clips of users' videos: exact frames, pairs, captions, damage, resume bit for bit."""

import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from absl import logging as absl_logging

from lsd_jax.data import containers
from lsd_jax.data.footage import FootageSource, footage
from lsd_jax.data.video import VideoSink, VideoSource

SIZE = {"height": 32, "width": 48}


def movie(path, count: int, base: int = 0, size=(32, 48)):
    """A video whose every frame tells its number by its brightness."""
    with VideoSink(path, size=size, fps=Fraction(25)) as sink:
        for i in range(count):
            sink.write(np.full((*size, 3), base + 6 * i, np.uint8))
    return path


def recorded(path, codec: str, count: int = 48, options=None):
    """A video of noise that moves, as cameras and other programs write one: a key frame in 12."""
    still = (
        np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, 24, options={"g": "12"} | (options or {}))
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 2 * i, 1))
            frame.pts, frame.time_base = i, Fraction(1, 24)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def levels(clip) -> list[int]:
    return [int(v) for v in np.round(clip.astype(float).mean((1, 2, 3)))]


@pytest.fixture
def warned(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


@pytest.fixture
def folder(tmp_path):
    movie(tmp_path / "boat.mp4", 20)
    movie(tmp_path / "boat.edited.mkv", 18, base=100, size=(64, 96))
    (tmp_path / "boat.txt").write_text("make it night \N{CRESCENT MOON}\n", encoding="utf-8")
    movie(tmp_path / "tree.webm", 9, base=40)
    movie(tmp_path / "car.mkv", 33, base=8)
    (tmp_path / "car.txt").write_text("a car")
    (tmp_path / "notes.md").write_text("no video")
    return tmp_path


def test_clips_are_the_exact_frames(folder):
    source = FootageSource(folder, frames=4, **SIZE)
    assert [(c.source.path.rsplit("/")[-1], c.start) for c in source.clips] == [
        *[("boat.mp4", s) for s in (0, 4, 8, 12)],
        *[("car.mkv", s) for s in range(0, 32, 4)],
        *[("tree.webm", s) for s in (0, 4)],
    ]
    for n, clip in enumerate(source.clips):
        item = source[n]
        assert item is not None and item["source"].shape == (4, 32, 48, 3)
        base = {"b": 0, "c": 8, "t": 40}[clip.source.path.rsplit("/")[-1][0]]
        expected = base + 6 * (clip.start + np.arange(4))
        np.testing.assert_allclose(levels(item["source"]), expected, atol=2.5)
        assert item["paired"] == (base == 0)
        shift = 100 if item["paired"] else 0
        np.testing.assert_allclose(levels(item["target"]), expected + shift, atol=2.5)
        prompts = {0: "make it night \N{CRESCENT MOON}", 8: "a car", 40: ""}
        assert item["prompt"] == prompts[base]


def test_clips_far_into_a_video_of_many_key_frames(tmp_path):
    path = tmp_path / "long.mp4"
    with VideoSink(path, size=(32, 48), fps=Fraction(30)) as sink:
        for i in range(600):  # x264 sets a key frame every 250
            sink.write(np.full((32, 48, 3), (i * 7) % 250, np.uint8))
    source = FootageSource(tmp_path, frames=6, **SIZE)
    assert len(source) == 100
    for n in (0, 40, 41, 42, 83, 99):
        item = source[n]
        assert item is not None
        expected = [(i * 7) % 250 for i in range(6 * n, 6 * n + 6)]
        np.testing.assert_allclose(levels(item["source"]), expected, atol=3)


OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:keyint=12"}


@pytest.mark.parametrize(
    "name, codec, options",
    [("a.ts", "libx264", {}), ("b.ts", "libx264", OPEN_GOP), ("c.ts", "mpeg2video", {}),
     ("a.mpg", "mpeg2video", {}), ("a.avi", "mpeg4", {"bf": "2"}), ("a.mkv", "libx264", OPEN_GOP)],
)  # fmt: skip
def test_clips_of_containers_without_an_index_are_the_exact_frames(tmp_path, name, codec, options):
    path = recorded(tmp_path / name, codec, count=192, options=options)
    with VideoSource(path, **SIZE) as video:
        images = np.stack([image for image, _ in video])
    source = FootageSource(tmp_path, frames=8, **SIZE)
    assert len(source) == 24
    clips = np.concatenate([source[n]["source"] for n in range(24)])
    np.testing.assert_array_equal(clips, images)


def test_only_the_clips_own_part_is_decoded(tmp_path, monkeypatch):
    """Seeking hits, also where times have to be searched for."""
    recorded(tmp_path / "a.ts", "libx264", count=240)
    source = FootageSource(tmp_path, frames=8, **SIZE)
    open_input, opened = containers.open_input, []
    monkeypatch.setattr(
        containers, "open_input", lambda path: opened.append(path) or open_input(path)
    )
    for n in range(30):
        source[n]
    assert len(opened) == 30  # none was tried again, from the start


def test_a_recording_that_begins_amid_a_stream_loses_only_what_cannot_be_decoded(tmp_path):
    whole = recorded(tmp_path / "a.ts", "libx264", options=OPEN_GOP).read_bytes()
    packets = len(whole) // 188
    (tmp_path / "a.ts").write_bytes(whole[188 * (packets // 3) :])
    with VideoSource(tmp_path / "a.ts", **SIZE) as video:
        images = np.stack([image for image, _ in video])
    source = FootageSource(tmp_path, frames=8, **SIZE)
    clips = np.concatenate([source[n]["source"] for n in range(len(source))])
    np.testing.assert_array_equal(clips, images[: len(clips)])
    assert len(source) == 3


@pytest.mark.parametrize("name", ["joined.ts", "reordered.avi"])
def test_frames_without_times_are_refused_by_name(tmp_path, warned, name):
    path = recorded(tmp_path / name, "libx264")
    if name == "joined.ts":
        path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match="no video of 8 frames"):
        FootageSource(tmp_path, frames=8, **SIZE)
    assert name in warned[0] and "convert it to .mp4" in warned[0]


def test_a_caption_of_windows_notepad(tmp_path):
    movie(tmp_path / "a.mp4", 4)
    (tmp_path / "a.txt").write_text("make it night\n", encoding="utf-8-sig")
    assert FootageSource(tmp_path, frames=4, **SIZE)[0]["prompt"] == "make it night"


def test_twins_in_any_case_and_those_that_do_not_fit_are_warned_of(tmp_path, warned):
    for name in ("a.mp4", "a.Edited.mp4", "b.mp4", "b.edited.mp4", "lone.edited.mp4"):
        movie(tmp_path / name, 8)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("night")
    source = FootageSource(tmp_path, frames=4, **SIZE)
    assert len(source) == 4 and all(clip.target for clip in source.clips)
    assert len(warned) == 1 and "lone.edited.mp4 left out" in warned[0]
    movie(tmp_path / "a.Edited.mp4", 5)
    recorded(tmp_path / "b.edited.mp4", "libx264", count=8)
    assert len(FootageSource(tmp_path, frames=4, **SIZE)) == 3
    assert "a.mp4 has 8 frames at 25 per second" in warned[2] and "5 at 25" in warned[2]
    assert "b.edited.mp4 has 8 at 24" in warned[3]


def test_batches_are_endless_shuffled_and_resume_exactly(folder):
    def batches(state=None, count=6, seed=3):
        iterator = iter(footage(folder, frames=4, batch=3, seed=seed, **SIZE))
        if state is not None:
            iterator.set_state(state)
        taken = []
        for _ in range(count):
            taken.append((next(iterator), iterator.get_state()))
        iterator.close()
        return taken

    whole = batches(count=12)  # 36 clips of 14: more than two passes
    batch = whole[0][0]
    assert batch["source"].shape == batch["target"].shape == (3, 4, 32, 48, 3)
    assert batch["source"].dtype == np.uint8 and batch["paired"].dtype == bool
    assert batch["paired"].shape == (3,) and all(isinstance(p, str) for p in batch["prompt"])
    for resumed, expected in zip(batches(whole[4][1], 7), whole[5:], strict=True):
        for name in ("source", "target", "paired"):
            np.testing.assert_array_equal(resumed[0][name], expected[0][name])
        assert resumed[0]["prompt"] == expected[0]["prompt"] and resumed[1] == expected[1]
    seen = [levels(clip)[0] for taken, _ in whole for clip in taken["source"]]
    assert sorted(seen[:14]) == sorted(seen[14:28]) and seen[:14] != seen[14:28]
    other = [levels(c)[0] for taken, _ in batches(seed=4) for c in taken["source"]]
    assert other != seen[: len(other)]
    names = [t.name for t in threading.enumerate()]
    assert not [name for name in names if "lsd-" in name]


def test_broken_videos_are_left_out_by_name(folder, warned):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"words " * 500)
    whole = (folder / "boat.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    movie(folder / "short.mp4", 2)
    source = FootageSource(folder, frames=4, **SIZE)
    lines = [line for line in warned if "left out" in line]
    assert len(source) == 14 and len(lines) == 4
    for name in ("empty", "text", "cut", "short"):
        assert [line for line in lines if f"{name}.mp4" in line and "\n" not in line]


def test_a_clip_that_is_damaged_midway_is_replaced(tmp_path, warned):
    path = tmp_path / "a.mkv"
    with VideoSink(path, size=(32, 48), fps=Fraction(25)) as sink:
        for image in np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), np.uint8):
            sink.write(image)
    source = FootageSource(tmp_path, frames=4, **SIZE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    first, last = source[0], source[9]  # the one after the last is the first again
    assert np.array_equal(first["source"], last["source"])
    assert "a.mkv does not decode from frame 36" in warned[0]


def test_nothing_to_read_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="no video of 4 frames or more in .*; it needs some of"):
        footage(tmp_path, frames=4, batch=2, seed=0, **SIZE)
    with pytest.raises(ValueError, match="no folder"):
        footage(tmp_path / "none", frames=4, batch=2, seed=0, **SIZE)
