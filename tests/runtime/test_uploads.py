"""Files for inputs: checked, bounded, and looked into beside the loop."""

import asyncio
import hashlib
import io
import threading

import pytest
from PIL import Image
from test_host import hosted, refused, scenario

from lsd_jax.runtime import InputError, InputFile, uploads


def picture(kind="PNG", size=(30, 20)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


def test_uploads_are_checked_and_bounded():
    async def run():
        async with hosted(held_uploads=2, upload_bytes=50_000) as (host, session):
            good = picture()
            digest = hashlib.sha256(good).hexdigest()
            id = await host.upload("a.png", "image/png", good, digest)
            await host.call("picture", {"image": id})
            assert session.seen == [(8, 8, 3)]
            await refused(host.call("picture", {"image": id}), "unknown_upload")  # taken already
            bad = {
                "bad_upload": [
                    ("image/jpeg", good), ("image/png", b""), ("image/png", good[:20]),
                    ("text/plain", good), ("image/png", bomb()), ("image/png", b"%!PS-Adobe-3.0"),
                ],
                "too_large": [("image/png", bytes(20_001))],
            }  # fmt: skip
            for code, uploads in bad.items():
                for mime, data in uploads:
                    id = await host.upload("x", mime, data)
                    await refused(host.call("picture", {"image": id}), code)
            with pytest.raises(InputError, match="sha256"):
                await host.upload("a", "image/png", good, "0" * 64)
            with pytest.raises(InputError, match="at most 50,000"):
                await host.upload("a", "image/png", bytes(50_001))
            ids = [await host.upload("a", "image/png", good) for _ in range(5)]
            await refused(host.call("picture", {"image": ids[2]}), "unknown_upload")
            await host.call("picture", {"image": ids[3]})

    scenario(run())


def test_a_large_upload_is_hashed_beside_the_loop():
    """Sixteen megabytes take tens of milliseconds, in which other streams go on."""

    async def run():
        async with hosted() as (host, _):
            data, turns = bytes(16_000_000), 0
            digest = hashlib.sha256(data).hexdigest()
            adding = asyncio.create_task(host.upload("a", "application/x", data, digest))
            while not adding.done():
                turns += 1
                await asyncio.sleep(0)
            assert turns > 10 and await adding

    scenario(run())


def test_a_picture_is_looked_into_beside_the_loop_and_in_its_turn(monkeypatch):
    look, where = uploads.picture_kind, []

    def noted(*arguments):
        where.append(threading.get_ident())
        return look(*arguments)

    monkeypatch.setattr(uploads, "picture_kind", noted)

    async def run():
        async with hosted() as (host, session):
            id = await host.upload("a.png", "image/png", picture())
            later = host.call("number", {"value": 1})
            await asyncio.gather(host.call("picture", {"image": id}), later)
            assert session.seen == [(8, 8, 3), (1.0, 1)]
            assert where and threading.get_ident() not in where

    scenario(run())


def bomb():
    """A picture of 40,000 x 40,000 pixels in a kilobyte."""
    data = bytearray(picture())
    data[16:24] = (40_000).to_bytes(4) * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4)
    return bytes(data)


def test_files_of_uploads_are_on_disk_when_asked_for():
    file = InputFile("1", "a.txt", "text/plain", 2, "", b"hi")
    assert file.open().read() == b"hi" and file.path.read_bytes() == b"hi"
    assert file.path == file.path
