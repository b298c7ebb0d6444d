"""Pictures from strangers: genuine ones are taken, those that only cost time are not."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lsd_jax.data import pictures
from lsd_jax.serve import convert

SIZE = (64, 48)


def encoded(kind, **options):
    ramp = np.linspace(0, 255, SIZE[0])[None, :, None] * np.ones((SIZE[1], 1, 3))
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


def chunk(name, content=b""):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def segment(marker, content):
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


JPEG, PNG = encoded("JPEG"), encoded("PNG")
PROGRESSIVE = encoded("JPEG", progressive=True)
SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
HIDDEN_END = segment(0xE5, b"\xff\xd9")
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))


def decoded(data):
    return pictures.decode_picture(data, 48, 64)


def live(data):
    return convert.to_rgb(data, *SIZE, 10_000)


LOOKS_AT = {
    "kind": pictures.picture_kind,
    "decode": decoded,
    "live": live,
    "live size": convert.picture_size,
}


SLOW_JPEGS = {
    "fill": (JPEG[:2] + b"\xff" * 200_000 + JPEG[2:], "small pieces"),
    "junk": (JPEG[:2] + b"\xff\x00" * 100_000 + JPEG[2:], "small pieces"),
    "segments": (JPEG[:2] + segment(0xE5, b"") * 50_000 + JPEG[2:], "1,000 segments"),
    "behind an end": (JPEG[:2] + b"\xff\xd9" + b"\xff" * 200_000 + JPEG[2:], "small pieces"),
    "scans": (PROGRESSIVE[:-2] + SCAN * 40 + b"\xff\xd9", "32 scans"),
    "scans apart": (PROGRESSIVE[:-2] + (HIDDEN_END + SCAN) * 40 + b"\xff\xd9", "32 scans"),
}
SLOW_PNGS = {
    "before": (PNG[:33] + chunk(b"vpAg") * 20_000 + PNG[33:], "small pieces"),
    "between": (PNG[:33] + chunk(b"IDAT") * 20_000 + PNG[33:], "small pieces"),
    "behind": (PNG[:-12] + chunk(b"vpAg") * 20_000 + PNG[-12:], "small pieces"),
    "profiles": (PNG[:-12] + PROFILE * 9 + PNG[-12:], "8 colour profiles"),
}


@pytest.mark.parametrize("look", LOOKS_AT.values(), ids=LOOKS_AT)
@pytest.mark.parametrize(("data", "words"), SLOW_JPEGS.values(), ids=SLOW_JPEGS)
def test_jpegs_that_only_cost_time_are_refused(look, data, words):
    with pytest.raises(ValueError, match=words) as refused:
        look(data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("data", "words"), SLOW_PNGS.values(), ids=SLOW_PNGS)
def test_pngs_that_only_cost_time_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        decoded(data)


@pytest.mark.parametrize("part", [2, 3, 64])
def test_scans_are_found_wherever_the_search_pauses(monkeypatch, part):
    monkeypatch.setattr(pictures, "PART", part)
    with pytest.raises(ValueError, match="32 scans"):
        pictures.untrusted(PROGRESSIVE[:-2] + SCAN * 40 + b"\xff\xd9")
    assert pictures.untrusted(PROGRESSIVE).read() == PROGRESSIVE


def noted():
    """EXIF of some 60 KB, with a thumbnail."""
    exif = Image.Exif()
    exif[0x010E] = "notes " * 8_000
    return exif.tobytes() + PROGRESSIVE * 8


def with_a_film():
    """As phones append one: of some megabytes, many places look like the beginning of a scan."""
    return JPEG + b"\0\0\0\x18ftypmp42" + b"\x12\xff\xda\x34" * 60


def in_chunks():
    """A PNG of 8 MB as libpng writes one."""
    row = b"\0" + np.repeat(np.linspace(0, 255, 1600).astype(np.uint8), 3).tobytes()
    rows = zlib.compress(row * 1600, 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1600, 1600, 8, 2, 0, 0, 0))
    parts = [chunk(b"IDAT", rows[at : at + 8192]) for at in range(0, len(rows), 8192)]
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + chunk(b"IEND")


GENUINE = {
    "EXIF and ICC of 150 KB": lambda: encoded("JPEG", exif=noted(), icc_profile=bytes(90_000)),
    "a profile for print": lambda: encoded("JPEG", icc_profile=b"\xff\xda" * 300_000),
    "scans": lambda: PROGRESSIVE,
    "a film": with_a_film,
    "WebP": lambda: encoded("WEBP"),
    "PNG": in_chunks,
}


@pytest.mark.parametrize("make", GENUINE.values(), ids=GENUINE)
def test_genuine_pictures_are_taken(make):
    data = make()
    kind = pictures.picture_kind(data)
    assert kind == Image.open(io.BytesIO(data)).get_format_mimetype()
    assert decoded(data).std() > 10
    if kind == "image/jpeg":
        assert live(data).std() > 10 and convert.picture_size(data) == SIZE


def test_what_a_picture_says_of_itself_is_not_written_anew(monkeypatch):
    """That would take seconds for the 65,535 entries that EXIF may have."""
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded("JPEG", quality=95, exif=exif)
    monkeypatch.setattr(Image.Exif, "tobytes", None)
    upright, plain = decoded(data), decoded(encoded("JPEG", quality=95))
    assert np.abs(upright[::-1, ::-1].astype(int) - plain).max() < 8
