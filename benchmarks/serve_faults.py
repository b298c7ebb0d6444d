"""Faults on a running `lsd serve`: a killed engine, a vanished client, numbers that are none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import aiohttp
import jax
import numpy as np

from benchmarks.serve_load import Client, admitted, percentiles, picture
from benchmarks.serve_rtc import entered
from lsd_jax.live.video import VideoModel, VideoSession
from lsd_jax.runtime import input

PLACES = ("state", "weights", "frame")
POISONED = "benchmarks.serve_faults:PoisonedModel"


class PoisonedSession(VideoSession):
    """A session that can be poisoned on request."""

    @input(description="Puts numbers that are none into state, weights or the next frame")
    async def poison(self, where: str) -> None:
        if where not in PLACES:
            raise ValueError(f"where={where!r}; known: {', '.join(PLACES)}")
        slots, slot = self.model.stream, self._slot._index
        bad = lambda tree: jax.tree.map(lambda x: x * np.float32(np.nan), tree)  # noqa: E731

        def spoil() -> None:
            if where == "state":
                kv = slots._state.kv
                kv = replace(kv, k=kv.k.at[:, slot].set(np.nan))
                slots._state = slots._state.replace(kv=kv)
            elif where == "weights":
                slots._model = bad(slots._model)
            else:  # what comes of one frame alone
                show = slots._show

                def once(model, *arguments):
                    slots._show = show
                    return show(bad(model), *arguments)

                slots._show = once

        await asyncio.wrap_future(slots.change(spoil))


class PoisonedModel(VideoModel):
    """The diffusion stream, for injecting faults."""

    name = "poisoned"
    session_cls = PoisonedSession


async def nonfinite(url: str, width: int, height: int) -> dict:
    """By place: how many pictures from the poisoned one on were the last good one again, and how
    many frames were counted as not finite, by the metric, when pictures were new again."""
    found = {}
    async with aiohttp.ClientSession() as http:
        for where in PLACES:
            async with entered(http, url) as door:
                client = Client(door, picture(width, height))
                for _ in range(3):
                    last = await client.show()
                before, free = await _counted(url), await _free(url)
                await client.ask("poison", {"where": where})
                repeated = 0
                while await client.show() == last and repeated < 20:
                    repeated += 1
            while await _free(url) <= free:  # ended, and all that it did counted
                await asyncio.sleep(0.01)
            counted = await _counted(url) - before
            found[where] = {"last_good_shown_again": repeated, "counted": counted}
    return found


async def _counted(url: str) -> float:
    lines = (await _get(f"{url}/metrics")).decode().splitlines()
    return next(float(x.split()[-1]) for x in lines if x.startswith("lsd_nonfinite_total "))


async def vanish(url: str, width: int, height: int) -> dict:
    """How long the slot of a client that answers nothing any more, and closes nothing, is held."""
    async with aiohttp.ClientSession() as http:
        door = await http.ws_connect(f"{url}/v1/live", autoping=False)
        client = Client(door, picture(width, height))
        if not await client.start():
            raise RuntimeError("no slot is free")
        await client.show()
        began, held = time.perf_counter(), await _free(url)
        while await _free(url) <= held:
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - began
        await door.close()
    return {"slot_free_after_s": seconds}


async def recovery(url: str, pid: int, slots: int, width: int, height: int) -> dict:
    """One of two engines is killed: what the sessions of the other notice of it, and how long until
    a newcomer has a slot and a picture."""
    data = picture(width, height)
    async with aiohttp.ClientSession() as http:
        clients = await admitted(http, url, 2 * slots, data)
        playing = [asyncio.create_task(client.play(600.0)) for client in clients]
        await asyncio.sleep(2)
        for client in clients:
            client.latency_ms.clear()
            client.sent = 0
        began = time.perf_counter()
        os.kill(_engines(pid)[0], signal.SIGKILL)
        async with entered(http, url) as door:
            slot_s = time.perf_counter() - began
            newcomer = Client(door, data)
            await newcomer.show()
            picture_s = time.perf_counter() - began
            await newcomer.play(1.0)
        ended = [client for client, task in zip(clients, playing, strict=True) if task.done()]
        others = [client for client in clients if client not in ended]
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
    latency = [ms for client in others for ms in client.latency_ms]
    lost = sum(max(0, client.lost - 1) for client in others)  # one each was under way at the end
    return {
        "sessions_ended": len(ended),
        "others": len(others),
        "others_frames": len(latency),
        "others_lost": lost,
        "others_ms": {**percentiles(latency), "max": max(latency)},
        "slot_back_s": slot_s,
        "first_picture_s": picture_s,
    }


def _engines(pid: int) -> list[int]:
    """Process ids of a server's engines. Linux."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"lsd_jax.serve.engine" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


async def _free(url: str) -> int:
    return json.loads(await _get(f"{url}/readyz"))["free_slots"]


async def _get(url: str) -> bytes:
    def ask() -> bytes:
        try:
            return urllib.request.urlopen(url).read()
        except urllib.error.HTTPError as full:
            return full.read()

    return await asyncio.to_thread(ask)
