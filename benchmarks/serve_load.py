"""Load on a running `lsd serve`, on loopback and bounded: many sessions, too many, and junk."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import resource
import socket
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)
from av import VideoFrame
from PIL import Image

from lsd_jax.serve import protocol


class Client:
    """A JPEG client of `/v1/live` that sends a picture whenever one has come back."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, picture: bytes):
        self._socket, self._picture = socket, picture
        self.latency_ms: list[float] = []

    async def start(self) -> bool:
        """Whether it was admitted."""
        await self._socket.send_json({"type": "start"})
        return json.loads((await self._socket.receive()).data)["type"] == "started"

    async def play(self, seconds: float, fps: float = 30.0) -> None:
        """Pictures at `fps` at most, for so long; notes each one's way there and back."""
        until = time.perf_counter() + seconds
        while (sent := time.perf_counter()) < until:
            packed = protocol.pack(protocol.PICTURE, self._picture, 0, sent * 1e3)
            await self._socket.send_bytes(packed)
            if not await self._returned():
                raise RuntimeError("an admitted session was ended")
            self.latency_ms.append((time.perf_counter() - sent) * 1e3)
            await asyncio.sleep(max(0.0, sent + 1 / fps - time.perf_counter()))

    async def _returned(self) -> bool:
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                _, seq, _, _ = protocol.unpack(message.data)
                await self._socket.send_json({"type": "shown", "seq": seq})
                return True
            if message.type is not aiohttp.WSMsgType.TEXT:
                return False


@asynccontextmanager
async def entered(http: aiohttp.ClientSession, url: str, **start: str):
    """The socket of a started session, as soon as a slot is free."""
    async with http.ws_connect(f"{url}/v1/live") as door:
        await door.send_json({"type": "start", "wait": True, **start})
        while (told := json.loads((await door.receive()).data))["type"] != "started":
            if told["type"] != "queue_position":
                raise RuntimeError(f"no slot: {told}")
        yield door


def picture(width: int, height: int) -> bytes:
    """A JPEG of a smooth picture."""
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def tree_rss_mib(pid: int) -> float:
    """Resident memory of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    own = pages * resource.getpagesize() / 2**20
    return own + sum(tree_rss_mib(int(child)) for child in children)


def percentiles(latency_ms: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(latency_ms, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


async def admitted(http: aiohttp.ClientSession, url: str, count: int, data: bytes) -> list[Client]:
    clients = [Client(await http.ws_connect(f"{url}/v1/live"), data) for _ in range(count)]
    for client in clients:
        while not await client.start():
            raise RuntimeError("a slot that should be free was refused")
    return clients


async def soak(url: str, pid: int, sessions: int, seconds: float, width: int, height: int) -> dict:
    """Memory while all slots are in use: the slope after a first tenth, which warms up."""
    data, samples = picture(width, height), []
    async with aiohttp.ClientSession() as http:
        clients = await admitted(http, url, sessions, data)

        async def watch() -> None:
            while True:
                samples.append((time.perf_counter(), tree_rss_mib(pid)))
                await asyncio.sleep(max(seconds / 200, 0.1))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client.play(seconds) for client in clients))
        watching.cancel()
    kept = np.array(samples[len(samples) // 10 :])
    slope_per_s = np.polyfit(kept[:, 0] - kept[0, 0], kept[:, 1], 1)[0]
    latency = [ms for client in clients for ms in client.latency_ms]
    return {
        "soak_s": seconds,
        "soak_latency_ms": percentiles(latency),
        "soak_fps_of_a_session": len(latency) / sessions / seconds,
        "rss_mib": [float(kept[0, 1]), float(kept[-1, 1])],
        "rss_growth_mib_per_hour_session": float(slope_per_s * 3600 / sessions),
    }


async def overload(url: str, sessions: int, width: int, height: int, seconds: float = 8.0) -> dict:
    """Twice as many clients as there are slots, beside those that are admitted."""
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
        "refused": len(refused_ms),
        "refused_ms": percentiles(refused_ms),
        "alone_ms": alone,
        "crowded_ms": crowded,
        "p99_ratio": crowded["p99"] / alone["p99"],
    }


async def fuzz(
    url: str, pid: int, scale: float, width: int, height: int, pause_s: float = 0.51
) -> dict:
    """Junk of four kinds beside a session that must lose no picture. At scale 1: 10,000 SDPs,
    100,000 messages, 1,000,000 datagrams, 10,000 images. `pause_s` is between two sockets, of which
    a server admits two a second from one address."""
    rng = random.Random(0)
    counts = {"sdp": 10_000, "json": 100_000, "datagrams": 1_000_000, "images": 10_000}
    counts = {name: max(1, int(count * scale)) for name, count in counts.items()}
    starts = await _engine_starts(url)
    async with aiohttp.ClientSession() as http:
        data = picture(width, height)
        (good,) = await admitted(http, url, 1, data)
        done = asyncio.Event()

        async def bystander() -> None:
            while not done.is_set():
                await good.play(0.5)

        standing = asyncio.create_task(bystander())
        found = {
            "json": await _fuzz_json(http, url, rng, counts["json"], pause_s),
            "images": await _fuzz_images(http, url, rng, counts["images"], data),
            "sdp": await _fuzz_sdp(http, url, rng, counts["sdp"], pause_s),
            "datagrams": await _fuzz_datagrams(http, url, pid, rng, counts["datagrams"]),
        }
        done.set()
        await standing
    return {
        "sent": counts,
        **found,
        "bystander_frames": len(good.latency_ms),
        "bystander_ms": percentiles(good.latency_ms),
        "engine_restarts": await _engine_starts(url) - starts,
    }


async def _engine_starts(url: str) -> int:
    def ask() -> int:
        try:
            body = urllib.request.urlopen(f"{url}/readyz").read()
        except urllib.error.HTTPError as full:
            body = full.read()
        return sum(engine["starts"] for engine in json.loads(body)["engines"])

    return await asyncio.to_thread(ask)


async def _fuzz_json(
    http: aiohttp.ClientSession, url: str, rng: random.Random, count: int, pause_s: float
) -> dict:
    """Mutated messages; a client that is closed for one comes back. Counts answers by code."""
    seeds = [
        '{"type":"input","id":1,"name":"set_prompt","args":{"prompt":"x"}}',
        '{"type":"upload","id":2,"mime_type":"image/png"}', '{"type":"pause","id":3}',
        '{"type":"restore","id":4}', '{"type":"candidate","candidate":{"candidate":"x"}}',
        '{"type":"ping","client_ts_ms":0.5}', '{"type":"shown","seq":1}',
    ]  # fmt: skip
    codes: dict[str, int] = {}
    sent = 0
    while sent < count:
        async with entered(http, url) as door:
            while sent < count and not door.closed:
                sent += 1
                await door.send_str(mutate(rng, rng.choice(seeds)))
                try:
                    async with asyncio.timeout(0.004):
                        message = await door.receive()
                except TimeoutError:
                    continue
                if message.type is aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    code = told.get("code", told["type"])
                    codes[code] = codes.get(code, 0) + 1
        await asyncio.sleep(pause_s)
    return codes


def mutate(rng: random.Random, text: str) -> str:
    """One to four changes: characters cut, doubled, exchanged or made strange."""
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        part = rng.choice(["", text[at:to] * 2, "\0", "\ud7ff", "[", '"', "1e999", "-1", "null"])
        text = (text[:at] + part + text[to:])[:4000] or "{"
    return text


async def _fuzz_images(
    http: aiohttp.ClientSession, url: str, rng: random.Random, count: int, data: bytes
) -> dict:
    async with entered(http, url) as door:
        for n in range(count):
            broken = bytearray(data[: rng.randrange(len(data))] if n % 2 else data)
            for _ in range(rng.randint(1, 20)):
                if broken:
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
            await door.send_bytes(protocol.pack(protocol.PICTURE, bytes(broken)))
            try:
                async with asyncio.timeout(0.004):
                    await door.receive()
            except TimeoutError:
                continue
        return {"closed": int(door.closed)}


SDP = """v=0\r
o=- 1 2 IN IP4 127.0.0.1\r
s=-\r
t=0 0\r
a=group:BUNDLE 0\r
m=video 9 UDP/TLS/RTP/SAVPF 96\r
c=IN IP4 0.0.0.0\r
a=ice-ufrag:abcd\r
a=ice-pwd:abcdefghijklmnopqrstuvwx\r
a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:\
88:99:AA:BB:CC:DD:EE:FF\r
a=setup:actpass\r
a=mid:0\r
a=sendrecv\r
a=rtcp-mux\r
a=rtpmap:96 VP8/90000\r
"""


async def _fuzz_sdp(
    http: aiohttp.ClientSession, url: str, rng: random.Random, count: int, pause_s: float
) -> dict:
    """Mutated offers; each is answered or refused. One that is answered ends the connection."""
    codes: dict[str, int] = {}
    sent = 0
    while sent < count:
        async with entered(http, url, media="webrtc") as door:
            while sent < count:
                sent += 1
                await door.send_json({"type": "offer", "sdp": mutate(rng, SDP)})
                code = await _answer(door)
                codes[code] = codes.get(code, 0) + 1
                if code != "bad_offer":
                    break
        await asyncio.sleep(pause_s)
    return codes


async def _answer(door: aiohttp.ClientWebSocketResponse) -> str:
    while True:
        message = await asyncio.wait_for(door.receive(), 30)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return "closed"
        told = json.loads(message.data)
        if told["type"] in ("answer", "error", "ended"):
            return told.get("code", told["type"])


class Pictures(VideoStreamTrack):
    """Grey pictures, 30 a second."""

    async def recv(self) -> VideoFrame:
        frame = VideoFrame.from_ndarray(np.full((180, 320, 3), 120, np.uint8), format="rgb24")
        frame.pts, frame.time_base = await self.next_timestamp()
        return frame


async def _fuzz_datagrams(
    http: aiohttp.ClientSession, url: str, pid: int, rng: random.Random, count: int
) -> dict:
    """Junk from a stranger to the UDP ports of a WebRTC session, whose frames are counted."""
    async with entered(http, url, media="webrtc") as door:
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        connection.addTransceiver(Pictures(), "sendrecv")
        arrived: asyncio.Future = asyncio.get_running_loop().create_future()
        connection.on("track", arrived.set_result)
        await connection.setLocalDescription(await connection.createOffer())
        await door.send_json({"type": "offer", "sdp": connection.localDescription.sdp})
        while (told := json.loads((await door.receive()).data))["type"] != "answer":
            continue
        await connection.setRemoteDescription(RTCSessionDescription(told["sdp"], "answer"))
        track, before, during = await arrived, 0, 0
        until = time.perf_counter() + 3
        while time.perf_counter() < until:
            await asyncio.wait_for(track.recv(), 20)
            before += 1
        targets = udp_sockets(pid)
        junk = [rng.randbytes(rng.choice([0, 1, 12, 20, 100, 1400])) for _ in range(1000)]
        began = time.perf_counter()

        async def shoot() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for n in range(count):
                    out.sendto(junk[n % 1000], targets[n % len(targets)])
                    if n % 100 == 0:
                        await asyncio.sleep(0.005)

        shooting = asyncio.create_task(shoot())
        while not shooting.done():
            await asyncio.wait_for(track.recv(), 20)
            during += 1
        seconds = time.perf_counter() - began
        await shooting
        await connection.close()
    fps = {"fps_before": before / 3, "fps_during": during / seconds}
    return {"ports": len(targets), "seconds": seconds, **fps}


def udp_sockets(pid: int) -> list[tuple[str, int]]:
    """Addresses of the IPv4 UDP sockets that a process (not its children) has open. Linux."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    found = []
    for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]:
        parts = line.split()
        if f"socket:[{parts[9]}]" in links:
            address, _, port = parts[1].partition(":")
            found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found
