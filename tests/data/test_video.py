"""Video in and out: sizes, times, rotation, audio, damage, interruption, full disks, threads."""

import struct
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from absl import logging as absl_logging
from PIL import Image

from lsd_jax.data import containers, video, writers
from lsd_jax.data.video import VideoSink, VideoSource

FPS = Fraction(30)
COLOURS = np.array([(200, 30, 60), (20, 200, 80), (40, 60, 220), (210, 200, 40)], np.uint8)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("lsd-")]


@pytest.fixture
def logged(monkeypatch):
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(absl_logging, level, lambda text, *args: lines.append(text % args))
    return lines


def clip(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames whose quarters have four colours, with a white square that moves."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for n, (rows, columns) in enumerate(np.ndindex(2, 2)):
        r, c = rows * height // 2, columns * width // 2
        frames[:, r : r + height // 2, c : c + width // 2] = COLOURS[n]
    for i in range(count):
        frames[i, 20:28, i % 50 : i % 50 + 8] = 255
    return frames


def encode(
    path: Path, frames, *, codec="libx264", pixels="yuv420p", pts=None, rate=FPS, angle=0, aspect=1,
    audio=None, audio_s=None, muxer=None, options=None,
) -> Path:  # fmt: skip
    """Writes a video by PyAV alone, with a tone of `audio_s` seconds beside it."""
    with av.open(str(path), "w", format=muxer, options=options or {}) as output:
        stream = output.add_stream(codec, rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if path.suffix != ".avi":
            stream.codec_context.time_base = Fraction(1, 3000)
        if angle:
            stream.set_display_rotation(angle)
        tone = output.add_stream(audio, rate=48_000, layout="mono") if audio else None
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts = pts[i] if pts else round(i * 3000 / rate)
            frame.time_base = Fraction(1, 3000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone:
            samples = int(48_000 * (audio_s or len(frames) / rate))
            wave = (8000 * np.sin(np.arange(samples) * 0.06)).astype(np.int16)[None]
            sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
            output.mux(tone.encode(sound))
            output.mux(tone.encode(None))
    return path


def read(path, height=48, width=64):
    with VideoSource(path, height, width) as source:
        pairs = list(source)
    return np.stack([image for image, _ in pairs]), [time for _, time in pairs]


def audio_packets(path) -> list[bytes]:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.size]


def lag(path) -> float:
    """How long after the video the sound starts, in seconds, the encoder's lead-in counted."""
    starts: dict[str, list] = {"audio": [], "video": []}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.pts is not None:
                starts[packet.stream.type].append(packet.pts * packet.time_base)
    return float(min(starts["audio"]) - min(starts["video"]))


def difference(a, b) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mkv", "libx265", "yuv420p10le"),
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("b.mkv", "ffv1", "bgra"),
        ("c.mkv", "ffv1", "gray"),
        ("d.mkv", "ffv1", "gray16le"),
        ("e.mp4", "libx264", "yuvj420p"),
    ],
)
def test_reads_what_pyav_reads(tmp_path, name, codec, pixels):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = clip(12)
    path = encode(tmp_path / name, frames, codec=codec, pixels=pixels, options=options)
    with VideoSource(path, 48, 64) as source:
        assert source.size == (48, 64) and source.fps == FPS
        assert source.frames == pytest.approx(12, abs=1)
        assert source.duration_s == pytest.approx(0.4, abs=0.05)
        pairs = list(source)
    images, times = np.stack([image for image, _ in pairs]), [time for _, time in pairs]
    assert images.shape == (12, 48, 64, 3) and images.dtype == np.uint8
    assert pairs[0][0].flags.c_contiguous
    np.testing.assert_allclose(times, np.arange(12) / 30, atol=2e-3)
    if pixels.startswith("gray"):
        frames = np.repeat((frames @ [0.299, 0.587, 0.114])[..., None], 3, -1)
    assert difference(images, frames) < 8
    assert difference(images[:, 4:16, 4:28], frames[:, 4:16, 4:28]) < 5


def test_tags_need_not_be_utf8(tmp_path):
    """As of old cameras and music players."""
    path = tmp_path / "a.mkv"
    with av.open(path, "w") as container:
        container.metadata["title"] = "Cafe"
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert data.count(b"Cafe") == 1
    path.write_bytes(data.replace(b"Cafe", b"Caf\xe9"))
    with VideoSource(path, 48, 64) as source:
        assert len(list(source)) == 1


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_turns_upright(tmp_path, angle):
    frames = clip(4)
    path = encode(tmp_path / "a.mp4", frames, angle=angle)
    upright = np.rot90(frames, angle // 90, axes=(1, 2))
    with VideoSource(path, *upright.shape[1:3]) as source:
        assert source.size == upright.shape[1:3]
        images = np.stack([image for image, _ in source])
    assert difference(images, upright) < 8


def test_resizes_and_keeps_square_pixels_in_mind(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(3, 96, 128))
    images, _ = read(path, 24, 32)
    assert difference(images[0, 3:9, 3:13], np.broadcast_to(COLOURS[0], (6, 10, 3))) < 5
    wide = encode(tmp_path / "b.mp4", clip(3, 96, 128), aspect=2)
    with VideoSource(wide, 24, 32) as source:
        assert source.size == (96, 256)


def test_reads_a_folder_in_natural_order(tmp_path):
    for n in (0, 1, 2, 10, 11):
        Image.new("RGB", (64 + n, 48), (n * 20, 0, 0)).save(tmp_path / f"f{n}.png")
    with VideoSource(tmp_path, 16, 16) as source:
        assert (source.size, source.frames, source.fps) == ((48, 64), 5, 24)
        pairs = list(source)
    assert [int(image[0, 0, 0]) for image, _ in pairs] == [0, 20, 40, 200, 220]
    np.testing.assert_allclose([time for _, time in pairs], np.arange(5) / 24)


def test_a_camera_gives_its_newest_frame(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", clip(40))
    monkeypatch.setattr(containers, "camera", lambda _: (str(path), "mp4"))
    with VideoSource("camera:0", 48, 64) as source:
        times = []
        for _, time in source:
            times.append(time)
            if len(times) == 1:
                source._thread.join(0.3)  # meanwhile frames come and go
    assert source.live and len(times) < 40 and times[-1] == pytest.approx(39 / 30, abs=1e-3)


@pytest.mark.parametrize("suffix", sorted(writers.FORMATS))
def test_writes_every_kind_with_its_times(tmp_path, suffix):
    frames = clip(10)
    times = [0.0, 0.04, 0.08, 0.2, 0.24, 0.5, 0.54, 0.6, 0.9, 1.0]  # a variable frame rate
    with VideoSink(tmp_path / f"a{suffix}", size=(96, 128), fps=Fraction(25)) as sink:
        for image, time in zip(frames, times, strict=True):
            sink.write(image, time)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]
    with VideoSource(tmp_path / f"a{suffix}", 48, 64) as source:
        assert source.size == (96, 128)
        pairs = list(source)
    np.testing.assert_allclose([time for _, time in pairs], times, atol=0.011)
    assert difference(np.stack([image for image, _ in pairs]), frames) < 18


@pytest.mark.parametrize("fps", [Fraction(24_000, 1001), Fraction(24), Fraction(60)])
def test_constant_rates_and_odd_sizes(tmp_path, fps):
    with VideoSink(tmp_path / "a.mp4", size=(47, 63), fps=fps) as sink:
        for image in clip(24):
            sink.write(image)
    with VideoSource(tmp_path / "a.mp4", 48, 64) as source:
        assert (source.size, source.fps, source.frames) == ((48, 64), fps, 24)
        assert source.duration_s == pytest.approx(24 / fps, abs=1e-3)
        np.testing.assert_allclose([t for _, t in source], np.arange(24) / float(fps), atol=1e-4)


@pytest.mark.parametrize("target", ["frames", "frames.out/"])
def test_writes_a_folder(tmp_path, target):
    frames = clip(3)
    (tmp_path / target).mkdir()  # an empty folder is taken over
    with VideoSink(f"{tmp_path}/{target}", size=(48, 64), fps=FPS) as sink:
        for image in frames:
            sink.write(image)
    images, _ = read(tmp_path / target)
    np.testing.assert_array_equal(images, frames)
    with pytest.raises(ValueError, match="not empty; empty it or give another name"):
        VideoSink(tmp_path / target, size=(48, 64), fps=FPS)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("out", ["b.mp4", "b.mkv", "b.mov"])
def test_audio_passes_through_untouched(tmp_path, logged, name, out):
    source = encode(tmp_path / name, clip(45), audio="aac", audio_s=1.9)
    out_path = tmp_path / out
    images, times = read(source)
    with VideoSink(out_path, size=(48, 64), fps=FPS, audio_from=source) as sink:
        for image, time in zip(images, times, strict=True):
            sink.write(image, time)
    ours, theirs = audio_packets(out_path), audio_packets(source)
    if name == "a.ts":  # ADTS headers go, the sound stays
        theirs = [packet[7:] for packet in theirs]
    assert len(theirs) > 80 and ours == theirs and not logged
    with av.open(str(out_path)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        order = [p.stream.type for p in container.demux() if p.size]
        assert "audio" in order[:8]  # interleaved, not appended
    assert lag(out_path) == pytest.approx(lag(source), abs=2e-3)


def test_audio_is_clipped_on_an_early_stop(tmp_path):
    source = encode(tmp_path / "a.mp4", clip(90), audio="aac")
    for way in ("stop", "interrupt"):
        out = tmp_path / f"{way}.mp4"
        try:
            with VideoSink(out, size=(48, 64), fps=FPS, audio_from=source) as sink:
                for image in clip(30):
                    sink.write(image)
                if way == "interrupt":
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert way == "interrupt"
        images, _ = read(out)
        assert len(images) == 30
        assert 44 <= len(audio_packets(out)) <= 49  # a second of 1024 samples each


@pytest.mark.parametrize(
    "codec, name, out, becomes",
    [("aac", "a.mp4", "b.webm", "opus"), ("pcm_u8", "a.mkv", "b.mp4", "aac"),
     ("aac", "a.mp4", "b.gif", None)],
)  # fmt: skip
def test_audio_the_container_cannot_hold(tmp_path, logged, codec, name, out, becomes):
    source = encode(tmp_path / name, clip(30), audio=codec)
    with VideoSink(tmp_path / out, size=(48, 64), fps=FPS, audio_from=source) as sink:
        for image in clip(30):
            sink.write(image)
    assert len(logged) == 1 and ("re-encoded" if becomes else "left out") in logged[0]
    with av.open(str(tmp_path / out)) as container:
        names = [stream.codec_context.name for stream in container.streams.audio]
        assert names == ([becomes] if becomes else [])
        if becomes:
            sound = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
            assert len(sound) / 48_000 == pytest.approx(1.0, abs=0.06) and sound.std() > 0.1


def test_a_source_without_audio_is_fine(tmp_path):
    source = encode(tmp_path / "a.mp4", clip(3))
    for audio_from in (source, tmp_path, "camera:0"):
        with VideoSink(tmp_path / "b.mp4", size=(48, 64), fps=FPS, audio_from=audio_from) as sink:
            sink.write(clip(1)[0])
        assert audio_packets(tmp_path / "b.mp4") == []


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_one_clear_line(tmp_path):
    whole = encode(tmp_path / "whole.mp4", clip(30)).read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "f1.png").write_bytes(b"not a picture")
    song = tmp_path / "song.mp3"
    with av.open(str(song), "w") as output:
        tone = output.add_stream("mp3", rate=48_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 4800), np.int16), format="s16", layout="mono"
        )
        sound.sample_rate = 48_000
        output.mux(tone.encode(sound))
        output.mux(tone.encode(None))
    contents = {
        "empty.mp4": b"",
        "cut.mp4": whole[:300],
        "half.mp4": whole[: len(whole) // 2],  # its index stood at the end
        "text.mp4": b"these are plain words, not a video\n" * 99,
        "text.txt": b"these are plain words, not a video\n" * 99,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "song.au": b".snd" + struct.pack(">5I", 24, 1000, 99, 8000, 1),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {
        "none.mp4": "no file",
        "empty.mp4": "is empty",
        "cut.mp4": "does not open as a video",
        "half.mp4": "does not open as a video",
        "text.mp4": "video that plays|give one that plays",
        "text.txt": "video that plays|give one that plays",
        "noise.mp4": "give one that plays|video that plays",
        "song.au": "does not open as a video",  # which FFmpeg "does not implement"
        "song.mp3": "holds no video",
        "folder": "no images in the folder",
        "broken": "f1.png is damaged or no picture",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message) as caught:
            VideoSource(tmp_path / name, 16, 16)
        assert name in one_line(caught)
    for path in ("camera:97", "/dev/video97"):
        with pytest.raises(ValueError, match="no camera at .*plug one in") as caught:
            VideoSource(path, 16, 16)
        one_line(caught)


def test_a_video_without_frames_is_refused(tmp_path):
    path = encode(tmp_path / "a.mkv", clip(5), codec="libx264")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and (at := bytes(content).find(bytes(packet))) >= 0:
                content[at : at + packet.size] = b"\xff" * packet.size
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="no frame that decodes|give one that plays") as caught:
        VideoSource(path, 16, 16)
    one_line(caught)


def test_a_picture_that_breaks_midway_is_named(tmp_path):
    for n in range(3):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with VideoSource(tmp_path, 16, 16) as source:
        with pytest.raises(ValueError, match=r"2\.png is damaged"):
            list(source)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_video_cut_midway_gives_what_decodes_and_warns(tmp_path, logged, name):
    options = {"movflags": "faststart"} if name == "a.mp4" else {}
    noise = np.random.default_rng(0).integers(0, 256, (90, 48, 64, 3), np.uint8)
    path = encode(tmp_path / name, noise, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images, _ = read(path)
    assert 20 < len(images) < 75
    if name != "a.ts":  # a stream of packets says nowhere how long it was
        assert logged and "a." in logged[0]


def test_unwritable_targets_are_refused_before_anything_is_written(tmp_path):
    (tmp_path / "file").write_text("x")
    cases = {
        "none/a.mp4": "no folder .*make it first",
        "file/a.mp4": "no folder",
        "a.xyz": r"unknown kind of video '.xyz'; known: .mp4, .mov",
        "file": "is a file",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            VideoSink(tmp_path / name, size=(16, 16), fps=FPS)
        one_line(caught)
    with pytest.raises(ValueError, match="not writable|cannot be written"):
        VideoSink("/proc/a.mp4", size=(16, 16), fps=FPS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_exception_leaves_nothing_and_keep_partial_keeps_all(tmp_path):
    (tmp_path / "a.mp4").write_text("what was here before")
    for keep in (False, True):
        with pytest.raises(RuntimeError):
            with VideoSink(tmp_path / "a.mp4", size=(48, 64), fps=FPS) as sink:
                if keep:
                    sink.keep_partial()
                for image in clip(5):
                    sink.write(image)
                raise RuntimeError
        assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
        if not keep:
            assert (tmp_path / "a.mp4").read_text() == "what was here before"
    assert len(read(tmp_path / "a.mp4")[0]) == 5
    with pytest.raises(ValueError, match="no frames came"):
        with VideoSink(tmp_path / "b.mp4", size=(48, 64), fps=FPS):
            pass
    with pytest.raises(KeyboardInterrupt):  # before the first frame: nothing to keep, no error
        with VideoSink(tmp_path / "b.mp4", size=(48, 64), fps=FPS):
            raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


FULL_DISK = """
import resource, sys
import numpy as np
from lsd_jax.data.video import VideoSink
assert "jax" not in sys.modules
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), np.uint8)
try:
    with VideoSink(sys.argv[1], size=(int(sys.argv[2]),) * 2, fps=30) as sink:
        for n in range(int(sys.argv[3])):
            sink.write(noise[n % 8])
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("name, size, frames", [("a.mp4", 128, 200), ("a.mkv", 128, 22),
                                                ("pngs", 512, 4)])  # fmt: skip
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, name, size, frames):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / name), str(size), str(frames)]
    root = Path(video.__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.count("\n") == 1 and f"{name} cannot be written" in done.stdout
    assert "make room" in done.stdout and list(tmp_path.iterdir()) == []


def test_an_error_while_encoding_reaches_the_caller(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.FileWriter, "add", fail)
    with pytest.raises(ValueError, match=r"a\.mp4 cannot be written \(No space left"):
        with VideoSink(tmp_path / "a.mp4", size=(48, 64), fps=FPS) as sink:
            for image in clip(100):
                sink.write(image)
    assert list(tmp_path.iterdir()) == []


def test_leaving_early_stops_the_threads(tmp_path):
    path = encode(tmp_path / "a.mp4", clip(60))
    with VideoSource(path, 48, 64) as source:
        for _ in source:
            break
    source.close()
    with pytest.raises(ValueError, match="open it again"):
        list(source)
    for _ in VideoSource(path, 48, 64):
        break  # without `with`: the dropped iterator closes
    VideoSource(path, 48, 64).close()


def test_import_is_light():
    code = "import sys, lsd_jax.data.video; assert 'jax' not in sys.modules"
    root = Path(video.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
