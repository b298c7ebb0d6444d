"""Pictures: reference images, and folders of images that stand in for a video."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
_WEB = ("JPEG", "PNG", "WEBP")  # what strangers may send: no format that runs an interpreter
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SCANS, SEGMENTS, PROFILES, READS = 32, 1_000, 8, 10_000
"""What a stranger's picture may have at most: a scan of a few bytes costs libjpeg a pass over all
pixels, a profile in a PNG unpacks to a megabyte, and each read costs Pillow a turn in Python. (So
many reads are 27 MB of a PNG in the usual chunks of 8 KB.)"""
PART = 1 << 18  # bytes searched before other threads have their turn: milliseconds, at worst
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # of a segment, as libjpeg looks for one
_SCAN, _END = b"\xff\xda", b"\xff\xd9"

# Pillow only warns between its own limit and twice that; a bomb is an error here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def load_picture(
    path: str | Path, height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The picture at `path`, cropped around its centre to the aspect ratio and resized.

    EXIF orientation is honoured, transparency flattened on white, of an animation the first frame
    is taken. Raises ValueError, with what to do, where the file is no picture or is too large.
    """
    return np.array(ImageOps.fit(_open(Path(path)), (width, height), Image.Resampling.BICUBIC))


def load_mask(
    picture: str | Path | bytes, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "{height} {width}"]:
    """How white a picture is, of a file or in a stranger's bytes, stretched as frames are, which a
    mask covers place by place. What is transparent counts as black.

    Raises ValueError as `load_picture` does.
    """
    if isinstance(picture, bytes):
        image = _decode(picture, "the picture", max_pixels, backdrop="black")
    else:
        image = _open(Path(picture), backdrop="black")
    return np.array(image.convert("L").resize((width, height), Image.Resampling.BILINEAR))


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture at `path` at its own size, upright, opaque, as RGB."""
    return np.array(_open(Path(path)))


def resize(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """`image` stretched to `height` x `width`, averaged where it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def write_image(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes `image` as a PNG: lossless, compressed for speed rather than for size."""
    Image.fromarray(image).save(path, format="PNG", compress_level=1, compress_type=3)  # RLE


def image_files(folder: str | Path) -> list[Path]:
    """The pictures in `folder` in natural order: `2.png` comes before `10.png`."""
    found = [
        p
        for p in Path(folder).iterdir()
        if p.is_file() and p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    ]
    return sorted(found, key=lambda p: natural(p.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that orders the numbers within `name` by their value."""
    parts = re.findall(r"(\d+)|(\D+)", name)
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts]


def decode_picture(
    data: bytes, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """The picture in `data`, as `load_picture` gives one from a file."""
    image = _decode(data, "the picture", max_pixels)
    return np.array(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def picture_kind(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """The MIME type of the picture in `data`, by its own header; nothing is decoded.

    Raises ValueError where it is no picture, or has more than `max_pixels`.
    """
    header = _decode(data, "the picture", max_pixels, whole=False)
    return Image.MIME["JPEG" if header.format == "MPO" else header.format]  # some phones' JPEGs


def untrusted(data: bytes) -> io.BytesIO:
    """A stranger's picture as a file for Pillow: one of which it costs little to find out what it
    is, and no more than its size says to decode it. Raises ValueError for another, here or once
    that has shown while it is read."""
    if data.startswith(b"\xff\xd8"):
        _check_scans(data)
    elif data.count(b"iCCP") > PROFILES:
        raise ValueError(f"it has more than {PROFILES} colour profiles")
    return _Bounded(data)


class _Bounded(io.BytesIO):
    """A file that is not read in more than `READS` pieces."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > READS:
            raise ValueError("it is in too many small pieces")
        return super().read(size)


def _check_scans(jpeg: bytes) -> None:
    """Raises ValueError for too many scans. What only looks like one does not count: thumbnails are
    within segments, and videos that phones append lie behind the end."""
    at, scans, segments = 2, 0, 0
    while at < len(jpeg):
        marker = _MARKER.search(jpeg, at, at + PART)
        if marker is None:
            at += PART - 1
            continue
        if marker[0] == _END:
            return
        scans, segments = scans + (marker[0] == _SCAN), segments + 1
        if scans > SCANS or segments > SEGMENTS:
            raise ValueError(f"it has more than {SCANS} scans or {SEGMENTS:,} segments")
        length = int.from_bytes(jpeg[marker.end() : marker.end() + 2])
        at = marker.end() + max(length, 2)


def _open(path: Path, backdrop: str = "white") -> Image.Image:
    if not path.is_file():
        raise ValueError(f"no picture {str(path)!r}; give an image file such as a PNG or a JPEG")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; give an image file such as a PNG or a JPEG")
    return _decode(path, str(path), MAX_PIXELS, backdrop=backdrop)


def _decode(
    source: Path | bytes, name: str, max_pixels: int, whole: bool = True, backdrop: str = "white"
) -> Any:
    """The picture upright in RGB; or only its header read where it is not wanted `whole`. Bytes are
    a stranger's. Transparency is flattened on `backdrop`."""
    too_large = f"{name} has more than {max_pixels / 1e6:g} million pixels; give a smaller picture"
    try:
        file, formats = (source, None) if isinstance(source, Path) else (untrusted(source), _WEB)
        with Image.open(file, formats=formats) as image:
            if image.width * image.height <= max_pixels:
                return _upright_rgb(image, backdrop) if whole else image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pass
    except Exception as error:  # decoders raise nearly anything on damaged files
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{name} is damaged or no picture ({reason}); give an image file such as a PNG"
        ) from error
    raise ValueError(too_large)


def _upright_rgb(image: Image.Image, backdrop: str) -> Image.Image:
    image.getexif()  # is kept, and what it was read from is not, which would be written anew:
    image.info.pop("exif", None)  # seconds, where a stranger's has many entries
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 and 32 bit greyscale, which Pillow would clip
        deep = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
        full = 65535.0 if image.mode.startswith("I") else max(float(deep.max()), 1e-6)
        image = Image.fromarray(np.clip(deep * (255 / full) + 0.5, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, backdrop)
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    return image.convert("RGB")
