"""Video files and cameras through PyAV: opening, decoding, upright RGB frames."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from absl import logging
from av.container import InputContainer
from av.error import BlockingIOError, FFmpegError
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

DEFAULT_FPS = Fraction(24)  # of folders of images, and where a file does not say
JUMP_S = 0.2
"""Times that go back by more are of another recording's clock, as in streams joined by `cat`."""
_BT709, _UNSPECIFIED = 1, 2
# Tags need not be UTF-8, which PyAV 19 takes as it comes, and those before if they are told so.
_TAGS: dict[str, Any] = (
    {} if int(av.__version__.partition(".")[0]) > 18 else {"metadata_errors": "replace"}
)


def camera(path: str) -> tuple[str, str] | None:
    """The device and PyAV's format of a camera named `camera:N` or `/dev/videoN`, else None."""
    if match := re.fullmatch(r"camera:(\d+)", path):
        if sys.platform == "darwin":
            return f"{match[1]}:none", "avfoundation"
        return f"/dev/video{match[1]}", "v4l2"
    return (path, "v4l2") if re.fullmatch(r"/dev/video\d+", path) else None


def open_input(path: str) -> InputContainer:
    """Opens a video file or a camera; ValueError, with what to do, where that cannot be."""
    device = camera(path)
    if device:
        options = {"framerate": "30"} if device[1] == "avfoundation" else {}
        try:
            return av.open(device[0], format=device[1], options=options, timeout=5)
        except (FFmpegError, OSError, ValueError) as error:  # some of FFmpeg's are neither
            raise ValueError(
                f"no camera at {path} ({reason(error)}); plug one in, or give a video file or a "
                "folder of images"
            ) from error
    if not Path(path).is_file():
        raise ValueError(
            f"no file {path!r}; give a video, a folder of images, or a camera as camera:0"
        )
    if not Path(path).stat().st_size:
        raise ValueError(f"{path} is empty; give a video that plays")
    try:
        container = av.open(str(Path(path).absolute()), **_TAGS)  # `10:30.mp4` is no protocol
    except (FFmpegError, OSError, ValueError) as error:  # some of FFmpeg's are neither
        raise ValueError(
            f"{path} does not open as a video ({reason(error)}); it may be cut short or of "
            "another kind, give one that plays"
        ) from error
    if container.format.name == "tty":  # plain text, which FFmpeg would draw as terminal art
        container.close()
        raise ValueError(f"{path} is text, not a video; give a video that plays")
    return container


def video_stream(container: InputContainer, path: str) -> VideoStream:
    """The first stream of moving pictures; the cover of a song is none."""
    for stream in container.streams.video:
        if stream.codec_context and not stream.disposition & Disposition.attached_pic:
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = 2
            return stream
    raise ValueError(f"{path} holds no video that PyAV decodes; give a file with moving pictures")


def is_timed(container: InputContainer, stream: VideoStream) -> bool:
    """Whether frames say when they are shown. AVI keeps no times, and those that FFmpeg gives
    frames which it reorders follow the order of decoding for these codecs."""
    reordered = stream.codec_context.has_b_frames and stream.codec_context.name in ("h264", "hevc")
    return not (container.format.name == "avi" and reordered)


def decode(container: InputContainer, stream: VideoStream, path: str) -> Iterator[av.VideoFrame]:
    """All frames that decode, in order; damage is skipped and warned of at the end.

    Their `time` is None where the file does not say when they are shown.
    """
    damage, good, packets = None, 0, container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except BlockingIOError:  # a camera that has no new frame yet
            time.sleep(0.002)
            packets = container.demux(stream)
            continue
        except FFmpegError as error:  # the file ends here; so flush the decoder
            damage, packet = damage or reason(error), None
        try:
            frames = stream.decode(packet)
        except FFmpegError as error:  # what follows a damaged packet may decode
            if packet is not None:
                damage = damage or reason(error)
            frames = []
        for frame in frames:
            good += 1
            if not is_timed(container, stream):
                frame.pts = None
            yield frame
        if packet is None:
            break
    if damage and good:
        logging.warning("%s is damaged (%s); what decodes of it is used", path, damage)


def to_image(
    frame: av.VideoFrame, height: int, width: int, reformatter: VideoReformatter
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """`frame` turned upright and stretched to `height` x `width` RGB; of transparent pixels the
    colour that lies beneath."""
    quarters = round(frame.rotation / 90) % 4  # counterclockwise
    h, w = (width, height) if quarters % 2 else (height, width)
    shrinks = h <= frame.height and w <= frame.width
    hd = frame.width >= 1280 or frame.height > 576  # as players tell it
    untagged_hd = hd and frame.colorspace == _UNSPECIFIED
    rgb = reformatter.reformat(
        frame,
        width=w,
        height=h,
        format="rgb24",
        src_colorspace=_BT709 if untagged_hd else None,
        interpolation=Interpolation.AREA if shrinks else Interpolation.BILINEAR,
        threads=1,
    )
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarters))


def shown_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Height and width to show `frame` at: pixels made square, then turned upright."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    height, width = frame.height, max(1, round(frame.width * aspect))
    return (width, height) if round(frame.rotation / 90) % 2 else (height, width)


def frame_rate(stream: VideoStream) -> Fraction:
    """The stream's mean frame rate, or a default where it gives none that makes sense."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and Fraction(1, 10) <= rate <= 1000:
            return Fraction(rate).limit_denominator(1001)
    return DEFAULT_FPS


def start_s(stream: Any) -> float:
    """When the stream starts, in seconds of its container's clock."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def duration_s(container: InputContainer, stream: Any) -> float | None:
    """The stream's length as its container gives it, in seconds."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)$", stream.metadata.get("DURATION", ""))
    if tag:  # Matroska keeps it there, and counts from the file's start
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - start_s(stream)
    return container.duration / av.time_base if container.duration else None


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:120]
