"""Junk for a running `lsd serve`, on loopback, beside a session that must lose nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.serve_load import admitted, percentiles, picture
from benchmarks.serve_rtc import Stamped, calling, entered, number, receive
from benchmarks.serve_uploads import fuzz_uploads
from lsd_jax.serve import protocol

COUNTS = {
    "json": 100_000,
    "images": 10_000,
    "uploads": 10_000,
    "sdp": 10_000,
    "datagrams": 1_000_000,
}
"""At scale 1."""


async def fuzz(
    url: str,
    pid: int,
    scale: float,
    width: int,
    height: int,
    kinds: Collection[str] = tuple(COUNTS),
) -> dict:
    """`COUNTS` pieces of junk of these kinds, times `scale`, beside a session that must lose no
    picture. The server must admit many sockets a minute from one address."""
    rng = random.Random(0)
    counts = {name: max(1, int(count * scale)) for name, count in COUNTS.items() if name in kinds}
    starts, seconds = await _engine_starts(url), {}
    async with aiohttp.ClientSession() as http:
        data = picture(width, height)
        (good,) = await admitted(http, url, 1, data)
        done = asyncio.Event()

        async def bystander() -> None:
            while not done.is_set():
                await good.play(0.5)

        standing = asyncio.create_task(bystander())
        found = {}
        for name, work in (
            ("json", lambda: _fuzz_json(http, url, rng, counts["json"])),
            ("images", lambda: _fuzz_images(http, url, rng, counts["images"], data)),
            ("uploads", lambda: fuzz_uploads(http, url, rng, counts["uploads"])),
            ("sdp", lambda: _fuzz_sdp(http, url, rng, counts["sdp"])),
            ("datagrams", lambda: _fuzz_datagrams(http, url, pid, rng, counts["datagrams"])),
        ):
            if name in kinds:
                began = time.perf_counter()
                found[name] = await work()
                seconds[name] = time.perf_counter() - began
        done.set()
        await standing
    return {
        "sent": counts,
        "seconds": seconds,
        **found,
        "untyped_refusals": sum(found.get(name, {}).get("closed", 0) for name in COUNTS),
        "bystander_frames": len(good.latency_ms),
        "bystander_lost": good.lost,
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


async def _fuzz_json(http: aiohttp.ClientSession, url: str, rng: random.Random, count: int) -> dict:
    """Mutated messages; a client that is closed for one comes back. Counts answers by code."""
    seeds = [
        '{"type":"input","id":1,"name":"set_prompt","args":{"prompt":"x"}}',
        '{"type":"upload","id":2,"mime_type":"image/png"}', '{"type":"pause","id":3}',
        '{"type":"restore","id":4}', '{"type":"candidate","candidate":{"candidate":"x"}}',
        '{"type":"ping","client_ts_ms":0.5}', '{"type":"shown","seq":1}',
    ]  # fmt: skip
    codes: Counter[str] = Counter()
    sent = 0
    while sent < count:
        async with entered(http, url) as door:
            refused = False
            while sent < count and not refused:
                sent += 1
                await door.send_str(mutate(rng, rng.choice(seeds)))
                try:
                    async with asyncio.timeout(0.004):
                        message = await door.receive()
                except TimeoutError:
                    continue
                if message.type is aiohttp.WSMsgType.TEXT:
                    told = json.loads(message.data)
                    codes[told.get("code", told["type"])] += 1
                    refused = told["type"] == "error"
                else:
                    codes["closed"] += 1
                    break
    return dict(codes)


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
    """JPEGs cut short or with bytes changed; each is decoded or counted as refused."""
    before = await _metric(url, "lsd_frames_refused_total")
    async with entered(http, url) as door:
        for n in range(count):
            broken = bytearray(data[: rng.randrange(len(data))] if n % 2 else data)
            for _ in range(rng.randint(1, 20)):
                if broken:
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
            await door.send_bytes(protocol.pack(protocol.PICTURE, bytes(broken)))
            while not await _wanted(door):
                continue
    return {"refused": await _metric(url, "lsd_frames_refused_total") - before}


async def _wanted(door: aiohttp.ClientWebSocketResponse) -> bool:
    """Whether the next message says that the picture was taken. Raises RuntimeError at the end."""
    message = await asyncio.wait_for(door.receive(), 30)
    if message.type is aiohttp.WSMsgType.BINARY:
        _, seq, _, _ = protocol.unpack(message.data)
        await door.send_json({"type": "shown", "seq": seq})
        return False
    told = json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else {}
    if told.get("type") in (None, "error", "ended"):
        raise RuntimeError(f"a session was ended for its pictures: {told or message.extra}")
    return told["type"] == "want"


async def _metric(url: str, name: str) -> float:
    def ask() -> float:
        with urllib.request.urlopen(f"{url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.startswith((name + "{", name + " ")))

    return await asyncio.to_thread(ask)


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


async def _fuzz_sdp(http: aiohttp.ClientSession, url: str, rng: random.Random, count: int) -> dict:
    """Mutated offers; each is answered or refused. One that is answered ends the connection."""
    codes: Counter[str] = Counter()
    sent = 0
    while sent < count:
        async with entered(http, url, media="webrtc") as door:
            while sent < count:
                sent += 1
                await door.send_json({"type": "offer", "sdp": mutate(rng, SDP)})
                code = await _answer(door)
                codes[code] += 1
                if code != "bad_offer":
                    break
    return dict(codes)


async def _answer(door: aiohttp.ClientWebSocketResponse) -> str:
    while True:
        message = await asyncio.wait_for(door.receive(), 30)
        if message.type is not aiohttp.WSMsgType.TEXT:
            return "closed"
        told = json.loads(message.data)
        if told["type"] in ("answer", "error", "ended"):
            return told.get("code", told["type"])


async def _fuzz_datagrams(
    http: aiohttp.ClientSession, url: str, pid: int, rng: random.Random, count: int
) -> dict:
    """Junk from a stranger to the UDP ports of a WebRTC session. Of its pictures: how many come
    back before and during, and, by the numbers in them, how many come out of order, and the most
    that are missing between two."""
    source = Stamped(320, 180)
    async with calling(http, url, source) as track:
        before = await receive(track, 3)
        targets = udp_sockets(pid)
        junk = [rng.randbytes(rng.choice([0, 1, 12, 20, 100, 1400])) for _ in range(1000)]
        began = time.perf_counter()

        async def shoot() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for n in range(count):
                    out.sendto(junk[n % 1000], targets[n % len(targets)])
                    if n % 100 == 0:
                        await asyncio.sleep(0.005)

        shooting, numbers = asyncio.create_task(shoot()), []
        while not shooting.done():
            numbers.append(number(await asyncio.wait_for(track.recv(), 20)))
        seconds = time.perf_counter() - began
        await shooting
    steps = np.diff(numbers)
    return {
        "ports": len(targets),
        "seconds": seconds,
        "fps_before": before / 3,
        "fps_during": len(numbers) / seconds,
        "out_of_order": int((steps < 0).sum()),
        "longest_gap_pictures": int(max(steps.max(initial=1) - 1, 0)),
    }


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
