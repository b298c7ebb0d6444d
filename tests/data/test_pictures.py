"""Reference images and image folders: orientation, transparency, depth, damage, bombs."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lsd_jax.data import pictures

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _halves(left, right, height=32, width=64) -> Image.Image:
    image = Image.new("RGB", (width, height), left)
    image.paste(right, (width // 2, 0, width, height))
    return image


def test_crops_the_centre_then_resizes(tmp_path):
    image = Image.new("RGB", (90, 30), RED)
    image.paste(BLUE, (30, 0, 60, 30))
    image.save(tmp_path / "a.png")
    picture = pictures.load_picture(tmp_path / "a.png", 16, 16)
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    assert (picture[:, 1:-1] == BLUE).all()


def test_honours_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    _halves(RED, BLUE).save(tmp_path / "a.png", exif=exif)
    assert pictures.read_image(tmp_path / "a.png").shape == (64, 32, 3)
    picture = pictures.load_picture(tmp_path / "a.png", 64, 32)
    assert tuple(picture[5, 16]) == RED and tuple(picture[-5, 16]) == BLUE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_flattens_transparency_on_white(tmp_path, mode):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    image.convert(mode).save(tmp_path / "a.png")
    picture = pictures.load_picture(tmp_path / "a.png", 16, 16)
    assert tuple(picture[8, 3]) == WHITE and tuple(picture[8, 12]) == (0, 0, 0)


@pytest.mark.parametrize("from_file", [True, False])
def test_a_mask_is_stretched_and_black_where_it_is_transparent(tmp_path, from_file):
    image = Image.new("RGBA", (64, 16), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 16, 16))  # the first quarter, which a crop would lose
    image.save(tmp_path / "a.png")
    given = tmp_path / "a.png" if from_file else (tmp_path / "a.png").read_bytes()
    mask = pictures.load_mask(given, 16, 16)
    assert (mask[:, :4] >= 128).all() and not (mask[:, 4:] >= 128).any()


def test_sixteen_bits_scale_and_animations_give_their_first_frame(tmp_path):
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert abs(int(pictures.read_image(tmp_path / "deep.png")[0, 0, 0]) - 128) <= 1
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert tuple(pictures.load_picture(tmp_path / "a.gif", 8, 8)[4, 4]) == GREEN


def test_numbers_that_are_none_are_black(tmp_path):
    """As in pictures of depth; nothing is said of them by NumPy."""
    deep = np.array([[0, 1], [np.nan, np.inf]], np.float32).repeat(4, 0).repeat(4, 1)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    picture = pictures.read_image(tmp_path / "deep.tif")[..., 0]
    assert (picture[:4, 4:] == 255).all() and not picture[4:].any()


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data = zlib.compress(b"\0" * 1000)
    idat = b"IDAT" + data
    return (
        b"\x89PNG\r\n\x1a\n" + chunk
        + struct.pack(">I", len(data)) + idat + struct.pack(">I", zlib.crc32(idat))
    )  # fmt: skip


@pytest.mark.parametrize("side", [7_200, 12_000, 60_000])
def test_refuses_decompression_bombs(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(_png_header(side, side))
    with pytest.raises(ValueError, match="more than 50 million pixels; give a smaller") as caught:
        pictures.load_picture(tmp_path / "bomb.png", 64, 64)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_picture(tmp_path):
    _halves(RED, BLUE, 200, 200).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    cases = {
        "text.png": (b"hello, this is text", "no picture"),
        "empty.png": (b"", "is empty"),
        "cut.jpg": (whole[: len(whole) // 2], "damaged or no picture"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            pictures.load_picture(tmp_path / name, 16, 16)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for missing in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ValueError, match="no picture"):
            pictures.load_picture(missing, 16, 16)


def test_natural_order_and_lossless_writing(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    for name in ("f10.png", "f2.png", "f1.png", "g0.png"):
        pictures.write_image(tmp_path / name, image)
    (tmp_path / "notes.txt").write_text("not a picture")
    assert [p.name for p in pictures.image_files(tmp_path)] == [
        "f1.png", "f2.png", "f10.png", "g0.png",
    ]  # fmt: skip
    np.testing.assert_array_equal(pictures.read_image(tmp_path / "f2.png"), image)
    assert pictures.resize(image, 3, 4).shape == (3, 4, 3)
