"""Broken pictures as uploads to a running `lsd serve`, and a model that takes pictures."""

from __future__ import annotations

import asyncio
import io
import json
import random
import struct
import zlib
from collections import Counter

import aiohttp
import numpy as np
from PIL import Image

from benchmarks.serve_rtc import entered
from lsd_jax.live.passthrough import PassThroughModel, PassThroughSession
from lsd_jax.runtime import InputFile, image_input, input
from lsd_jax.serve import protocol

MODEL = "benchmarks.serve_uploads:PicturesModel"
KINDS = ("PNG", "WEBP", "JPEG")
PAUSE_S = 0.01  # more messages a second than 400 are refused for their number alone
SIDE = 12_000
"""Of a picture that is small as a file, and 432 MB when decoded."""


class PicturesSession(PassThroughSession):
    """Passes pictures through, and decodes a reference, of which it makes nothing."""

    @input
    def set_image(self, image: InputFile = image_input(max_bytes=8_000_000)) -> None:
        image.image(128, 128)


class PicturesModel(PassThroughModel):
    """No model at all, but one that takes reference pictures."""

    name = "pictures"
    session_cls = PicturesSession


async def fuzz_uploads(
    http: aiohttp.ClientSession, url: str, rng: random.Random, count: int
) -> dict:
    """PNG, WebP and JPEG cut short or with bytes changed, under right and wrong names, and
    decompression bombs, each given to `set_image`. Counts answers by code; `ok` are those that
    could be decoded all the same."""
    seeds, bombs = {kind: _encoded(kind) for kind in KINDS}, [_bomb(), _claims(2**31 - 1), b""]
    codes: Counter[str] = Counter()
    async with entered(http, url) as door:
        for n in range(count):
            kind = KINDS[n % len(KINDS)]
            content = bombs[n // 50 % len(bombs)] if n % 50 == 0 else _broken(rng, seeds[kind])
            named = rng.choice(KINDS) if n % 10 == 5 else kind
            told = await _ask(door, content, type="upload", mime_type=f"image/{named.lower()}")
            if told.get("ok"):
                args = {"image": told["upload_id"]}
                told = await _ask(door, type="input", name="set_image", args=args)
            codes[told.get("code", "ok")] += 1
            await asyncio.sleep(PAUSE_S)
    return dict(codes)


def _encoded(kind: str) -> bytes:
    ramp = np.linspace(0, 255, 96)[None, :, None] * np.ones((64, 1, 3))
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def _broken(rng: random.Random, data: bytes) -> bytes:
    """Cut short, or with some bytes changed; now and then as it was."""
    broken = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.4 else data)
    for _ in range(rng.randint(0, 8)):
        if broken:
            broken[rng.randrange(len(broken))] = rng.randrange(256)
    return bytes(broken)


def _bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (SIDE, SIDE)).save(file, "PNG")
    return file.getvalue()


def _claims(side: int) -> bytes:
    """A PNG that says that it is so large, with a right checksum and hardly anything behind it."""
    head = b"IHDR" + struct.pack("!IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    framed = [
        struct.pack("!I", len(one) - 4) + one + struct.pack("!I", zlib.crc32(one)) for one in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


async def _ask(door: aiohttp.ClientWebSocketResponse, content: bytes | None = None, **message):
    """The answer to a message and the content after it. Raises RuntimeError where the session
    is ended."""
    await door.send_json({"id": 1, **message})
    if content is not None:
        await door.send_bytes(protocol.pack(protocol.FILE, content))
    while True:
        heard = await door.receive(30)
        if heard.type is aiohttp.WSMsgType.BINARY:
            continue
        told = json.loads(heard.data) if heard.type is aiohttp.WSMsgType.TEXT else None
        if told is None or told["type"] in ("error", "ended"):
            raise RuntimeError(f"a session was ended for its uploads: {told or heard.extra}")
        if told["type"] == "ack":
            return told
