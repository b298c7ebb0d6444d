"""Load on a running `lsd serve`, on loopback and bounded: many sessions, and too many."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import math
import re
import time
from contextlib import nullcontext
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image
from scipy.stats import theilslopes

from benchmarks.serve_rtc import Stamped, calling, receive
from lsd_jax.serve import protocol

PROMPTS = ("make it night", "film noir", "oil painting")
CHANGE_EVERY = 47
"""Pictures between two prompts of a client that changes its prompt."""
COMPARED = 500
"""Pictures of a session that are compared with those of the same session alone, at most."""
LOOKS = 10  # at memory, of which the least counts
LOST_S = 20.0
"""After which a picture that has not come back is lost."""


class Client:
    """A JPEG client of `/v1/live` that sends a picture whenever one has come back."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, picture: bytes):
        self._socket, self._picture = socket, picture
        self.latency_ms: list[float] = []
        self.digests: list[bytes] = []  # of what came back, the first COMPARED
        self.sent = 0

    async def start(self) -> bool:
        """Whether it was admitted."""
        await self._socket.send_json({"type": "start"})
        return json.loads((await self._socket.receive()).data)["type"] == "started"

    async def play(
        self, seconds: float, fps: float = 30.0, steer: bool = False, count: float = math.inf
    ) -> None:
        """Pictures at `fps` at most, for so long or so many; notes each one's way there and back.
        `steer` gives a prompt now and then, counted in pictures, so that a session can be had
        again."""
        until = time.perf_counter() + seconds
        while (sent := time.perf_counter()) < until and self.sent < count:
            if steer and self.sent % CHANGE_EVERY == 0:
                turn = self.sent // CHANGE_EVERY
                await self.ask("set_prompt", {"prompt": PROMPTS[turn % len(PROMPTS)]})
                sent = time.perf_counter()
            shown = await self.show()
            self.latency_ms.append((time.perf_counter() - sent) * 1e3)
            if len(self.digests) < COMPARED:
                self.digests.append(hashlib.sha256(shown).digest())
            await asyncio.sleep(max(0.0, sent + 1 / fps - time.perf_counter()))

    @property
    def lost(self) -> int:
        """Pictures sent that nothing came back for."""
        return self.sent - len(self.latency_ms)

    async def show(self) -> bytes:
        """Sends the picture, and gives what comes back. Raises RuntimeError where the session
        ended, TimeoutError where nothing comes."""
        self.sent += 1
        stamp = time.perf_counter() * 1e3
        await self._socket.send_bytes(protocol.pack(protocol.PICTURE, self._picture, 0, stamp))
        async with asyncio.timeout(LOST_S):
            while True:
                message = await self._socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    _, seq, _, content = protocol.unpack(message.data)
                    await self._socket.send_json({"type": "shown", "seq": seq})
                    return content
                if message.type is not aiohttp.WSMsgType.TEXT:
                    raise RuntimeError("an admitted session was ended")

    async def leave(self) -> None:
        """Ends the session, and waits until its slot is free."""
        await self._socket.send_json({"type": "end", "id": 2})
        async for _ in self._socket:
            continue

    async def ask(self, name: str, args: dict) -> None:
        """Gives an input. Raises RuntimeError where it is refused."""
        await self._socket.send_json({"type": "input", "id": 1, "name": name, "args": args})
        told = {"type": ""}
        while told["type"] != "ack":
            told = json.loads((await self._socket.receive()).data)
        if not told["ok"]:
            raise RuntimeError(told["message"])


def picture(width: int, height: int) -> bytes:
    """A JPEG of a smooth picture."""
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def rss_mib(pid: int) -> np.ndarray:
    """Resident memory of a server's front and of all its engines, but for pages of files: those the
    kernel drops and reads again as it likes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = sum(map(int, re.findall(r"(?:RssAnon|RssShmem|VmSwap):\s*(\d+) kB", status))) / 1024
    return np.array([own, sum(rss_mib(int(child)).sum() for child in children)])


def percentiles(latency_ms: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(latency_ms, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


async def admitted(http: aiohttp.ClientSession, url: str, count: int, data: bytes) -> list[Client]:
    """So many clients with a slot each. Slots that others have just left are kept for them for some
    seconds, so it asks again. Raises RuntimeError where one stays taken."""
    clients, until = [], time.perf_counter() + LOST_S
    while len(clients) < count:
        client = Client(await http.ws_connect(f"{url}/v1/live"), data)
        if await client.start():
            clients.append(client)
        elif time.perf_counter() > until:
            raise RuntimeError("a slot that should be free was refused")
        else:
            await asyncio.sleep(0.5)
    return clients


async def soak(
    url: str, pid: int, sessions: int, seconds: float, width: int, height: int, fps: float = 30.0
) -> dict:
    """Memory while all slots are in use, as the least of every ten looks at it, since what a step
    takes comes and goes: the slope after a first tenth, which warms up, as the median of those
    between any two samples (Theil-Sen), with its 95 % interval. One session is WebRTC's where there
    are several, the others change their prompts, and what the first is shown is compared with what
    it is shown alone."""
    data, samples = picture(width, height), []
    async with aiohttp.ClientSession() as http:
        (alone,) = await admitted(http, url, 1, data)
        await alone.play(seconds / 4, fps, steer=True, count=COMPARED)
        await alone.leave()
        called = calling(http, url, Stamped(width, height, fps)) if sessions > 1 else None
        async with called or nullcontext() as track:
            clients = await admitted(http, url, sessions - (track is not None), data)

            async def watch() -> None:
                while True:
                    looks = []
                    for _ in range(LOOKS):
                        looks.append(rss_mib(pid))
                        await asyncio.sleep(max(seconds / 200 / LOOKS, 0.01))
                    samples.append((time.perf_counter(), *np.min(looks, axis=0)))

            watching = asyncio.create_task(watch())
            work = [client.play(seconds, fps, steer=True) for client in clients]
            received, *_ = await asyncio.gather(receive(track, seconds), *work)
            watching.cancel()
    kept = np.array(samples[len(samples) // 10 :])
    hours, parts = (kept[:, 0] - kept[0, 0]) / 3600, kept[:, 1:]
    slope, _, least, most = theilslopes(parts.sum(axis=1), hours)
    front, engines = (theilslopes(part, hours).slope / sessions for part in parts.T)
    latency = [ms for client in clients for ms in client.latency_ms]
    pairs = list(zip(alone.digests, clients[0].digests, strict=False))
    return {
        "soak_s": seconds,
        "soak_latency_ms": percentiles(latency),
        "soak_fps_of_a_session": len(latency) / len(clients) / seconds,
        "soak_fps_of_all": (len(latency) + received) / seconds,
        "soak_webrtc_fps": received / seconds,
        "soak_prompts": sum(-(-len(client.latency_ms) // CHANGE_EVERY) for client in clients),
        "soak_as_alone": {"compared": len(pairs), "different": sum(a != b for a, b in pairs)},
        "rss_mib": kept[:: max(1, len(kept) // 20), 1:].tolist(),  # front, engines
        "rss_growth_mib_per_hour_session": float(slope / sessions),
        "rss_growth_interval": [float(least / sessions), float(most / sessions)],
        "rss_growth_of": {"front": float(front), "engines": float(engines)},
    }


async def overload(url: str, sessions: int, width: int, height: int, seconds: float = 8.0) -> dict:
    """Three clients for each slot: those that are admitted, and two for each who knock once a
    second."""
    data, refused_ms = picture(width, height), []
    async with aiohttp.ClientSession() as http:
        clients = await admitted(http, url, sessions, data)
        await asyncio.gather(*(client.play(seconds) for client in clients))
        alone = percentiles([ms for client in clients for ms in client.latency_ms])
        for client in clients:
            client.latency_ms.clear()

        async def knock() -> None:
            for _ in range(int(seconds)):
                began = time.perf_counter()
                async with http.ws_connect(f"{url}/v1/live") as door:
                    await door.send_json({"type": "start"})
                    if json.loads((await door.receive()).data).get("code") != "full":
                        raise RuntimeError("a client was admitted where no slot was free")
                refused_ms.append((time.perf_counter() - began) * 1e3)
                await asyncio.sleep(1)

        knocks = [knock() for _ in range(2 * sessions)]
        await asyncio.gather(*(client.play(seconds) for client in clients), *knocks)
        crowded = percentiles([ms for client in clients for ms in client.latency_ms])
    return {
        "slots": sessions,
        "clients": len(clients) + len(knocks),
        "refused": len(refused_ms),
        "refused_ms": percentiles(refused_ms),
        "alone_ms": alone,
        "crowded_ms": crowded,
        "p99_ratio": crowded["p99"] / alone["p99"],
    }
