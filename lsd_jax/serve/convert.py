"""Pictures between what the wire has and what models take; for worker threads, not the loop."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from lsd_jax.data.pictures import untrusted

_local = threading.local()
_BT601, _LIMITED = 5, 1


def _reformatter() -> VideoReformatter:
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    return _local.reformatter


def to_rgb(
    picture: VideoFrame | bytes, width: int, height: int, max_pixels: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """`picture`, a decoded frame or a JPEG, stretched to the model's size.

    Raises ValueError where it is damaged, or has more than `max_pixels`.
    """
    if isinstance(picture, VideoFrame):
        if picture.width * picture.height > max_pixels:
            raise ValueError(f"frames of {picture.width}x{picture.height} are too large")
        shrinks = width <= picture.width and height <= picture.height
        rgb = _reformatter().reformat(
            picture,
            width=width,
            height=height,
            format="rgb24",
            interpolation=Interpolation.AREA if shrinks else Interpolation.BILINEAR,
            threads=1,
        )
        return np.ascontiguousarray(rgb.to_ndarray())
    try:
        with Image.open(untrusted(picture), formats=("JPEG",)) as image:
            if image.width * image.height <= max_pixels:
                image.draft("RGB", (width, height))
                small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
                return np.asarray(small)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"the picture is damaged or no JPEG ({error})") from error
    raise ValueError(f"the picture has more than {max_pixels:,} pixels")


def picture_size(picture: VideoFrame | bytes) -> tuple[int, int]:
    """Width and height as they came. Raises ValueError where a JPEG is damaged."""
    if isinstance(picture, VideoFrame):
        return picture.width, picture.height
    try:
        with Image.open(untrusted(picture), formats=("JPEG",)) as image:
            return image.size
    except Exception as error:
        raise ValueError(f"the picture is damaged or no JPEG ({error})") from error


def to_frame(sample: bytes, output: dict[str, Any]) -> VideoFrame:
    """A sample of a video output as the planes that encoders take."""
    width, height = output["width"], output["height"]
    if output["pixel_format"] == "yuv420p":
        planes = np.frombuffer(sample, np.uint8).reshape(height * 3 // 2, width)
        return VideoFrame.from_ndarray(planes, format="yuv420p")
    image = np.frombuffer(sample, np.uint8).reshape(height, width, 3)
    return _reformatter().reformat(
        VideoFrame.from_ndarray(image, format="rgb24"),
        format="yuv420p",
        dst_colorspace=_BT601,
        dst_color_range=_LIMITED,
        threads=1,
    )


def to_jpeg(sample: bytes, output: dict[str, Any], quality: int = 85) -> bytes:
    """A sample of a video output as a JPEG."""
    width, height = output["width"], output["height"]
    if output["pixel_format"] == "rgb24":
        image = np.frombuffer(sample, np.uint8).reshape(height, width, 3)
    else:
        image = (
            _reformatter()
            .reformat(
                to_frame(sample, output),
                format="rgb24",
                src_colorspace=_BT601,
                src_color_range=_LIMITED,
                threads=1,
            )
            .to_ndarray()
        )
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()
