"""A WebRTC client of a running `lsd serve`, whose pictures bear their numbers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction

import aiohttp
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import MediaStreamTrack
from av import VideoFrame

BITS = 16
CLOCK_HZ = 90_000


class Stamped(VideoStreamTrack):
    """Grey pictures at `fps`; the number of each is in `BITS` columns, black or white."""

    def __init__(self, width: int, height: int, fps: float = 30.0):
        super().__init__()
        self._size, self._fps = (height, width), fps
        self._began_s = time.monotonic()
        self.sent = 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(self._began_s + self.sent / self._fps - time.monotonic())
        image = np.full((*self._size, 3), 120, np.uint8)
        columns = np.arange(self._size[1]) * BITS // self._size[1]
        bits = (self.sent >> np.arange(BITS)) & 1
        image[: self._size[0] // 2] = 255 * bits[columns].astype(np.uint8)[None, :, None]
        frame = VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts = int(self.sent * CLOCK_HZ / self._fps)
        frame.time_base = Fraction(1, CLOCK_HZ)
        self.sent += 1
        return frame


def number(frame: VideoFrame) -> int:
    """The number that a picture of `Stamped` bears, if nothing but transport changed it."""
    grey = frame.to_ndarray(format="gray")
    at = (2 * np.arange(BITS) + 1) * grey.shape[1] // (2 * BITS)
    return int(((grey[grey.shape[0] // 4, at] > 127) << np.arange(BITS)).sum())


@asynccontextmanager
async def entered(http: aiohttp.ClientSession, url: str, **start: str):
    """The socket of a started session, as soon as a slot is free."""
    async with http.ws_connect(f"{url}/v1/live") as door:
        await door.send_json({"type": "start", "wait": True, **start})
        while (told := json.loads((await door.receive()).data))["type"] != "started":
            if told["type"] != "queue_position":
                raise RuntimeError(f"no slot: {told}")
        yield door


@asynccontextmanager
async def calling(
    http: aiohttp.ClientSession, url: str, source: VideoStreamTrack
) -> AsyncIterator[MediaStreamTrack]:
    """A session that `source` is sent to by WebRTC: the track that comes back."""
    async with entered(http, url, media="webrtc") as door:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.addTransceiver(source, "sendrecv")
        arrived: asyncio.Future = asyncio.get_running_loop().create_future()
        connection.on("track", arrived.set_result)
        await connection.setLocalDescription(await connection.createOffer())
        await door.send_json({"type": "offer", "sdp": connection.localDescription.sdp})
        while (told := json.loads((await door.receive()).data))["type"] != "answer":
            continue
        await connection.setRemoteDescription(RTCSessionDescription(told["sdp"], "answer"))
        reading = asyncio.create_task(_read(door))  # whoever reads nothing answers no ping
        try:
            yield await arrived
        finally:
            reading.cancel()
            await connection.close()


async def receive(track: MediaStreamTrack | None, seconds: float) -> int:
    """How many pictures come in so long."""
    count, until = 0, time.monotonic() + seconds
    while track and time.monotonic() < until:
        await asyncio.wait_for(track.recv(), 20)
        count += 1
    return count


async def _read(door: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in door:
        continue
