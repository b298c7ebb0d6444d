"""Writers of frames: a video file with another file's audio beside them, or a folder of PNGs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from absl import logging
from av.error import FFmpegError
from av.video.reformatter import Interpolation, VideoReformatter

from lsd_jax.data import pictures
from lsd_jax.data.containers import (
    JUMP_S,
    duration_s,
    frame_rate,
    open_input,
    reason,
    start_s,
)

_BT709, _LIMITED = 1, 1


class Format(NamedTuple):
    """How a kind of file is written."""

    muxer: str
    video: str
    pixels: str
    options: dict[str, str]
    audio: str | None  # what audio becomes that is not passed through
    passed: tuple[str, ...]  # decoders of audio that players of this kind of file know


# Its macroblock tree reads memory that it has not written, so that one stream gives many files.
_X264 = {"preset": "veryfast", "crf": "18", "mbtree": "0"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "24", "b": "0"}
_USUAL = ("aac", "mp3", "mp3float", "alac", "ac3", "eac3")
_PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le")
_MP4, _MOV = (*_USUAL, "opus", "flac"), (*_USUAL, *_PCM, "pcm_mulaw", "pcm_alaw")
_MKV = (*_USUAL, *_PCM, "opus", "flac", "vorbis", "mp2", "mp2float", "dca", "truehd")
FORMATS = {
    ".mp4": Format("mp4", "libx264", "yuv420p", _X264, "aac", _MP4),
    ".mov": Format("mov", "libx264", "yuv420p", _X264, "aac", _MOV),
    ".mkv": Format("matroska", "libx264", "yuv420p", _X264, "aac", _MKV),
    ".webm": Format("webm", "libvpx-vp9", "yuv420p", _VP9, "libopus", ("opus", "vorbis")),
    ".gif": Format("gif", "gif", "rgb8", {}, None, ()),
}


def check_target(target: str | Path) -> bool:
    """Whether `target` names a folder of images; ValueError, with what to do, if it cannot be."""
    path = Path(target)
    folder = str(target).endswith(("/", os.sep)) or not path.suffix or path.is_dir()
    if not path.absolute().parent.is_dir():
        raise ValueError(f"no folder {str(path.parent)!r} to write {path.name} in; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(f"the folder {str(path.parent)!r} is not writable; give another place")
    if folder and path.is_dir() and any(path.iterdir()):
        raise ValueError(f"the folder {str(path)!r} is not empty; empty it or give another name")
    if folder and path.is_file():
        raise ValueError(f"{str(path)!r} is a file; give another name for the folder of images")
    if not folder and path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"unknown kind of video {path.suffix!r}; known: {', '.join(FORMATS)}, "
            "or a folder for PNGs"
        )
    return folder


class FolderWriter:
    """Writes frames as numbered PNGs into a folder."""

    def __init__(self, folder: Path, size: tuple[int, int]):
        self._folder, self._size, self._index = folder, size, 0

    def add(self, frame: av.VideoFrame, time_s: float) -> None:
        """Writes the next picture; the order is kept, the time is not."""
        image = pictures.resize(frame.to_ndarray(), *self._size)
        pictures.write_image(self._folder / f"{self._index:06d}.png", image)
        self._index += 1

    def finish(self, whole: bool) -> None:
        """Nothing is held back."""

    def abort(self) -> None:
        """Nothing is held open."""


class FileWriter:
    """Encodes frames, and the audio of another file beside them, into an open binary file."""

    def __init__(self, file, suffix: str, size: tuple[int, int], fps: Fraction, audio: str | None):
        kind = FORMATS[suffix]
        self._container = av.open(file, "w", format=kind.muxer, buffer_size=1 << 18)
        self._height, self._width = (side + side % 2 for side in size)
        options = dict(kind.options)
        if "preset" in options and self._height * self._width > 1_000_000:
            options["preset"] = "superfast"  # half of veryfast's time, which would hold up a stream
        self._stream: Any = self._container.add_stream(kind.video, fps, options=options)
        self._fps, self._pixels = fps, kind.pixels
        self._tick = Fraction(1, fps.numerator * -(-90_000 // fps.numerator))
        self._stream.height, self._stream.width = self._height, self._width
        self._stream.pix_fmt = kind.pixels
        context = self._stream.codec_context
        context.time_base, context.thread_count = self._tick, 2
        if kind.pixels == "yuv420p":
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
        try:
            context.open()
        except FFmpegError as error:
            raise ValueError(
                f"{suffix} holds no frames of {self._width}x{self._height} ({reason(error)}); give "
                "a video of another size, or a folder for PNGs"
            ) from error
        self._reformatter, self._pts = VideoReformatter(), -1
        self._audio = AudioTrack(audio, self._container, kind) if audio else None

    def add(self, frame: av.VideoFrame, time_s: float) -> None:
        """Encodes one frame to be shown at `time_s`, and the audio that is heard before it."""
        yuv = self._pixels == "yuv420p"
        frame = self._reformatter.reformat(
            frame,
            width=self._width,
            height=self._height,
            format=self._pixels,
            dst_colorspace=_BT709 if yuv else None,
            dst_color_range=_LIMITED if yuv else None,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        self._pts = max(self._pts + 1, round(time_s / self._tick))
        frame.pts, frame.time_base = self._pts, self._tick
        frame.duration = round(1 / self._fps / self._tick)
        self._container.mux(self._stream.encode(frame))
        if self._audio:
            self._audio.advance(float(self._pts * self._tick))

    def finish(self, whole: bool) -> None:
        """Writes what the encoder still holds and closes; `whole` takes audio past the end too."""
        self._container.mux(self._stream.encode(None))
        if self._audio:
            self._audio.finish(float(self._pts * self._tick + 1 / self._fps), whole)
        self._container.close()

    def abort(self) -> None:
        """Lets go of the files without finishing them."""
        if self._audio:
            self._audio.close()


class AudioTrack:
    """The audio of a file, carried packet by packet into an output that has yet to start.

    Times count from the start of the file's video. Packets are passed on as they are where `kind`
    has their codec; else they become what it has instead, or are left out. Audio ends, with a
    warning, where its times jump back: what it goes with in the video is not known from there on.
    """

    def __init__(self, path: str, output: Any, kind: Format):
        self._path, self._output = path, output
        self._input = open_input(path)
        video = next(iter(self._input.streams.video), None)
        self._start = start_s(video) if video else 0.0
        length = duration_s(self._input, video) if video else None
        self._last_s = length - 2 / float(frame_rate(video)) if video and length else None
        self._encoders: dict[int, Any] = {}
        self._copies: dict[int, Any] = {}
        for stream in self._input.streams.audio:
            self._add(stream, kind)
        self._packets = self._read([*self._copies, *self._encoders])
        self._next = next(self._packets, None)

    def _add(self, stream: Any, kind: Format) -> None:
        name = stream.codec_context.name if stream.codec_context else "an unknown codec"
        if name in kind.passed:
            self._copies[stream.index] = self._output.add_stream_from_template(stream)
            return
        muxer = kind.muxer
        if kind.audio is None or stream.codec_context is None:
            logging.warning("%s: audio (%s) left out, %s cannot hold it", self._path, name, muxer)
            return
        logging.info("%s: audio re-encoded, %s cannot hold %s", self._path, muxer, name)
        mono = stream.codec_context.channels == 1
        layout = "mono" if mono else "stereo"
        encoder = self._output.add_stream(kind.audio, rate=48_000, layout=layout)
        self._encoders[stream.index] = encoder

    def _read(self, indices: list[int]) -> Iterator[av.Packet]:
        if not indices:
            return
        last: dict[int, int] = {}
        try:
            for packet in self._input.demux(*(self._input.streams[i] for i in indices)):
                if packet.dts is None:
                    continue
                end = last.setdefault(packet.stream.index, packet.dts - 1)
                if (end - packet.dts) * packet.time_base > JUMP_S:
                    at = f"{float(end * packet.time_base) - self._start:.1f} s"
                    text = (
                        "%s: audio ends at %s, where its times jump back; convert it to .mp4 first"
                    )
                    logging.warning(text, self._path, at)
                    return
                if packet.dts > end:  # one that is not would be refused, and all with it
                    last[packet.stream.index] = packet.dts
                    yield packet
        except FFmpegError as error:
            logging.warning("%s: audio ends early (%s)", self._path, reason(error))

    def advance(self, until_s: float) -> None:
        """Passes on what is heard before `until_s`."""
        while self._next is not None:
            packet: Any = self._next
            base = packet.time_base
            time_s = float((packet.pts if packet.pts is not None else packet.dts) * base)
            if time_s - self._start >= until_s:
                return
            self._pass(packet, round(self._start / base))
            self._next = next(self._packets, None)

    def _pass(self, packet: Any, offset: int) -> None:
        index = packet.stream.index
        if index in self._copies:
            packet.pts = None if packet.pts is None else packet.pts - offset
            packet.dts -= offset
            packet.stream = self._copies[index]
            self._output.mux(packet)
            return
        try:
            frames = packet.decode()
        except FFmpegError:
            return  # one damaged packet: a gap of some milliseconds
        for frame in frames:
            if frame.pts is not None:
                frame.pts -= round(self._start / frame.time_base)
            self._output.mux(self._encoders[index].encode(frame))

    def finish(self, end_s: float, whole: bool) -> None:
        """Passes on the rest: up to `end_s`, or all of it where the video came to its own end."""
        ended = whole and self._last_s is not None and end_s >= self._last_s
        self.advance(float("inf") if ended else end_s)
        for stream in self._encoders.values():
            self._output.mux(stream.encode(None))
        self.close()

    def close(self) -> None:
        """Closes the file the audio comes from."""
        self._input.close()
