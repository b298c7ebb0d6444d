"""A server with a pass-through model, and a client of our own protocol for it."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager, suppress

import aiohttp
import numpy as np
from aiohttp import web
from PIL import Image

from lsd_jax.serve import protocol
from lsd_jax.serve.app import Server
from lsd_jax.serve.settings import Settings

PASS = "lsd_jax.live.passthrough:PassThroughModel"
SMALL = {"width": 64, "height": 48, "slots": 2}


@asynccontextmanager
async def serving(model=PASS, config=SMALL, ready=True, **settings):
    """A running server, `.url` its address; stopped at the end."""
    server = Server(Settings(model=model, config=config, port=0, **settings))
    runner = web.AppRunner(server.app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        if ready:
            await asyncio.wait_for(server.registry.wait_ready(), 60)
        yield server
    finally:
        await runner.cleanup()


class Client:
    """A client of `/v1/live`."""

    def __init__(self, socket):
        self.socket, self.ids = socket, 0
        self.pictures, self.messages, self.binaries = [], [], []

    async def receive(self):
        """The next message: a dict, a picture, or the close code."""
        message = await asyncio.wait_for(self.socket.receive(), 20)
        if message.type is aiohttp.WSMsgType.TEXT:
            self.messages.append(json.loads(message.data))
            return self.messages[-1]
        if message.type is aiohttp.WSMsgType.BINARY:
            kind, seq, ts_ms, content = protocol.unpack(message.data)
            if kind == protocol.PICTURE:
                image = np.array(Image.open(io.BytesIO(content)))
                self.pictures.append((seq, ts_ms, image))
                with suppress(ConnectionError):  # the server may be closing
                    await self.socket.send_json({"type": "shown", "seq": seq})
                return self.pictures[-1]
            self.binaries.append((kind, content))
            return self.binaries[-1]
        closed = message.type is aiohttp.WSMsgType.CLOSE
        return message.data if closed else self.socket.close_code

    async def until(self, type, **fields):
        """The next JSON message of `type` with these fields."""
        while True:
            message = await self.receive()
            if isinstance(message, dict) and message["type"] == type:
                if all(message.get(key) == value for key, value in fields.items()):
                    return message
            assert not isinstance(message, int | None), f"closed by {message} before {type}"

    async def start(self, **fields):
        await self.socket.send_json({"type": "start", **fields})
        return await self.until("started")

    def vanish(self):
        """Its connection is lost, without a word."""
        self.socket._writer.transport.abort()

    async def ask(self, type, **fields):
        """A request's ack."""
        self.ids += 1
        await self.socket.send_json({"type": type, "id": self.ids, **fields})
        return await self.until("ack", id=self.ids)

    async def upload(self, data, mime_type="image/png", **fields):
        self.ids += 1
        head = {"type": "upload", "id": self.ids, "mime_type": mime_type, **fields}
        await self.socket.send_json(head)
        await self.socket.send_bytes(protocol.pack(protocol.FILE, data))
        return await self.until("ack", id=self.ids)

    async def show(self, image, ts_ms=0.0):
        """Sends a picture, and gives what comes back."""
        await self.socket.send_bytes(protocol.pack(protocol.PICTURE, jpeg(image), 0, float(ts_ms)))
        while not isinstance(found := await self.receive(), tuple) or len(found) != 3:
            assert isinstance(found, dict), f"closed by {found}"
        return found


@asynccontextmanager
async def connected(server, query="", headers=None):
    """A client of `server`, not started yet."""
    async with aiohttp.ClientSession() as http:
        url = f"{server.url}/v1/live{query}"
        async with http.ws_connect(url, headers=headers, max_msg_size=0) as socket:
            yield Client(socket)


def jpeg(image, quality=95):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def scenario(coroutine, seconds=90):
    return asyncio.run(asyncio.wait_for(coroutine, seconds))
