"""What is written is a function of the pictures alone; audio and sizes that a file can hold."""

import errno
import os
import subprocess
import sys
from fractions import Fraction
from unittest import mock

import av
import numpy as np
import pytest
from test_video import FPS, clip, read

from lsd_jax.data import writers
from lsd_jax.data.video import VideoSink

ENCODE_NOISE = """
import sys
from fractions import Fraction
import numpy as np
from lsd_jax.data.video import VideoSink
blocks = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
with VideoSink(sys.argv[1], size=(240, 320), fps=Fraction(25)) as sink:
    for image in blocks.repeat(5, axis=1).repeat(5, axis=2):
        sink.write(image)
"""


@pytest.mark.parametrize("suffix", sorted(writers.FORMATS))
def test_what_is_written_does_not_hang_on_what_memory_held(tmp_path, suffix):
    written = []
    for filled in ("1", "170"):
        path = tmp_path / f"{filled}{suffix}"
        command = [sys.executable, "-c", ENCODE_NOISE, path]
        environment = os.environ | {"MALLOC_PERTURB_": filled}  # what glibc fills new memory with
        subprocess.run(command, env=environment, check=True, timeout=60)
        with av.open(str(path)) as container:
            written.append([bytes(packet) for packet in container.demux(video=0)])
    assert len(written[0]) > 12
    assert written[0] == written[1]


def sound(path, codecs: list[str]):
    """A file with a tone by each codec and a picture."""
    wave = (8000 * np.sin(np.arange(24_000) * 0.06)).astype(np.int16)[None]
    with av.open(str(path), "w") as output:
        video = output.add_stream("mpeg4", 10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        tones = [output.add_stream(codec, rate=48_000, layout="mono") for codec in codecs]
        output.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(video.encode(None))
        for tone in tones:
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            output.mux(tone.encode(frame))
            output.mux(tone.encode(None))
    return path


COMPRESSED = ["aac", "libmp3lame", "ac3", "eac3", "alac", "flac", "libopus", "mp2"]
RAW = ["pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le",
       "pcm_mulaw", "pcm_alaw"]  # fmt: skip


@pytest.mark.parametrize("source, codecs", [("a.mkv", COMPRESSED), ("a.mov", RAW)])
@pytest.mark.parametrize("suffix", sorted(writers.FORMATS.keys() - {".gif"}))
def test_no_audio_spoils_the_video(tmp_path, source, codecs, suffix):
    """What a kind of file passes through its muxer takes, and all else is encoded anew."""
    kind = writers.FORMATS[suffix]
    path = sound(tmp_path / source, codecs)
    with VideoSink(tmp_path / f"b{suffix}", size=(48, 64), fps=FPS, audio_from=path) as sink:
        for image in clip(15):
            sink.write(image)
    with av.open(str(path)) as before, av.open(str(tmp_path / f"b{suffix}")) as after:
        names = [stream.codec_context.name for stream in before.streams.audio]
        anew = (kind.audio or "").removeprefix("lib")
        expected = [name if name in kind.passed else anew for name in names]
        assert [stream.codec_context.name for stream in after.streams.audio] == expected
        if suffix == ".mov":
            assert not {"opus", "flac"} & set(expected)
        if suffix == ".mp4":
            assert not [name for name in expected if name.startswith("pcm")]


def test_a_size_that_no_encoder_takes_is_refused_before_the_first_frame(tmp_path):
    for suffix, size in ((".mp4", (2, 40_000)), (".webm", (20_000, 20_000))):
        with pytest.raises(ValueError, match=f"holds no frames of {size[1]}x{size[0]}"):
            VideoSink(tmp_path / f"a{suffix}", size=size, fps=FPS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mp4", "a"])
def test_two_sinks_on_one_path_do_not_meet_before_they_close(tmp_path, name):
    first, second = (VideoSink(tmp_path / name, size=(48, 64), fps=FPS) for _ in range(2))
    for sink, count in ((first, 3), (second, 5)):
        for image in clip(count):
            sink.write(image)
    second.abort()
    first.close()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert len(read(tmp_path / name)[0]) == 3
    (tmp_path / "plain").touch()
    if name == "a.mp4":
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_a_full_disk_asks_for_room(tmp_path, monkeypatch):
    for code, asks in ((errno.ENOSPC, True), (errno.EINVAL, False)):
        fail = mock.Mock(side_effect=OSError(code, os.strerror(code)))
        monkeypatch.setattr(writers.FileWriter, "finish", fail)
        with pytest.raises(ValueError, match="cannot be written") as caught:
            with VideoSink(tmp_path / "a.mp4", size=(48, 64), fps=FPS) as sink:
                sink.write(clip(1)[0])
        assert ("make room" in str(caught.value)) == asks
    with pytest.raises(ValueError, match="cannot be written .File name too long") as caught:
        VideoSink(tmp_path / f"{'x' * 246}.mp4", size=(48, 64), fps=FPS)
    assert "make room" not in str(caught.value) and not list(tmp_path.iterdir())
