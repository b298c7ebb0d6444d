"""Odd files: joined recordings, frames without times, names with colons, colours without a tag."""

from fractions import Fraction

import av
import numpy as np
import pytest
from absl import logging as absl_logging
from av.video.reformatter import VideoReformatter
from test_video import FPS, audio_packets, clip, difference, encode, read

from lsd_jax.data import containers
from lsd_jax.data.video import VideoSink, VideoSource


@pytest.fixture
def warned(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


@pytest.mark.parametrize("audio", [None, "aac"])
def test_joined_recordings_go_on_where_the_first_ends(tmp_path, warned, audio):
    path = encode(tmp_path / "a.ts", clip(45), audio=audio)
    once = audio_packets(path)
    path.write_bytes(path.read_bytes() * 2)  # as by `cat a.ts a.ts`
    images, times = read(path)
    np.testing.assert_allclose(times, np.arange(90) / 30, atol=2e-3)
    with VideoSink(tmp_path / "b.mp4", size=(48, 64), fps=FPS, audio_from=path) as sink:
        for image, time in zip(images, times, strict=True):
            sink.write(image, time)
    written, times = read(tmp_path / "b.mp4")
    np.testing.assert_allclose(times, np.arange(90) / 30, atol=2e-3)
    assert difference(written, images) < 8
    if audio:  # nothing says how it goes with the second video
        assert len(audio_packets(tmp_path / "b.mp4")) == pytest.approx(len(once), abs=1)
        assert len(warned) == 1 and "a.ts: audio ends at 1.5 s" in warned[0]


def test_one_frame_out_of_order_does_not_move_those_behind_it(tmp_path, monkeypatch):
    """As where a packet's time was damaged by a few frames."""
    true = containers.decode

    def damaged(*args):
        for n, frame in enumerate(true(*args)):
            if n == 5:
                frame.pts -= round(0.1 / frame.time_base)
            yield frame

    monkeypatch.setattr(containers, "decode", damaged)
    _, times = read(encode(tmp_path / "a.mp4", clip(10)))
    assert times == sorted(times)
    np.testing.assert_allclose(times[6:], np.arange(6, 10) / 30, atol=1e-3)


def test_avi_shows_reordered_frames_one_after_another(tmp_path):
    """AVI keeps no times: those that FFmpeg makes up follow the order in which H.264 is decoded."""
    frames = clip(24)
    path = encode(tmp_path / "a.avi", frames, codec="libx264")
    with av.open(str(path)) as container:
        made_up = [frame.pts for frame in container.decode(video=0)]
    assert made_up != sorted(made_up)
    images, times = read(path)
    np.testing.assert_allclose(times, np.arange(24) / 30, atol=1e-6)
    assert difference(images, frames) < 8


def test_a_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    encode(tmp_path / "a.mp4", clip(3), audio="aac").rename(tmp_path / "2024-01-01T10:30:00.mp4")
    monkeypatch.chdir(tmp_path)
    name = "2024-01-01T10:30:00.mp4"
    images, _ = read(name)
    with VideoSink("out:1.mp4", size=(48, 64), fps=FPS, audio_from=name) as sink:
        for image in images:
            sink.write(image)
    assert len(read("out:1.mp4")[0]) == 3 and audio_packets(tmp_path / "out:1.mp4")


@pytest.mark.parametrize(
    "height, width, hd",
    [(720, 1280, True), (536, 1280, True), (1280, 720, True), (480, 640, False),
     (576, 1024, False)],
)  # fmt: skip
def test_large_untagged_video_has_the_colours_of_hd(height, width, hd):
    colour = np.array([30, 200, 60])
    red, blue = (0.2126, 0.0722) if hd else (0.299, 0.114)
    luma = colour @ [red, 1 - red - blue, blue] / 255
    u, v = (colour[2] / 255 - luma) / (2 - 2 * blue), (colour[0] / 255 - luma) / (2 - 2 * red)
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane, value in zip(
        frame.planes, (16 + 219 * luma, 128 + 224 * u, 128 + 224 * v), strict=True
    ):
        plane.update(bytes([round(value)]) * plane.buffer_size)
    image = containers.to_image(frame, 16, 16, VideoReformatter())
    np.testing.assert_allclose(image[8, 8], colour, atol=3)


def test_only_what_ends_early_may_be_cut_short(tmp_path, warned):
    few = encode(tmp_path / "few.mkv", clip(4), pts=[0, 100, 3000, 9000])
    with VideoSource(few, 48, 64) as source:
        assert [round(time, 2) for _, time in source] == [0, 0.03, 1, 3]
    late = encode(tmp_path / "late.mkv", clip(30), pts=range(9000, 12000, 100), audio="aac")
    with VideoSource(late, 48, 64) as source:
        assert len(list(source)) == 30 and source.duration_s == pytest.approx(1, abs=0.05)
    assert not warned
    path = encode(tmp_path / "cut.mkv", clip(90), rate=Fraction(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    read(path)
    assert [line for line in warned if "of about 3.0 seconds; it may be cut short" in line]
