"""Decart's realtime messages, in the orders in which its SDKs send them."""

import asyncio
import base64
import io
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from harness import SMALL, Client, scenario, serving
from PIL import Image
from test_rtc import SIZE, Source

from lsd_jax.serve import decart

IMAGES = "image_models:ImagesModel"
MANY = '{"type":"prompt","prompt":[' + "[]," * 100_000 + "[]]}"


@asynccontextmanager
async def streaming(server, query="api_key=x&model=any"):
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(f"{server.url}/v1/stream?{query}") as socket:
            yield Client(socket)


async def say(client, answer, **message):
    await client.socket.send_json(message)
    return await client.until(answer)


def test_prompt_before_the_offer_then_pictures_then_the_end():
    async def run():
        async with serving(config=SIZE) as server, streaming(server) as client:
            assert (await client.until("session_id"))["session_id"]
            ack = await say(client, "prompt_ack", type="prompt", prompt=" Ünïcode ")
            assert (ack["prompt"], ack["success"], ack["error"]) == (" Ünïcode ", True, None)
            connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
            connection.addTransceiver(Source(level=90), "sendrecv")
            await connection.setLocalDescription(await connection.createOffer())
            answer = await say(client, "answer", type="offer", sdp=connection.localDescription.sdp)
            await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
            await client.socket.send_json({"type": "ice-candidate", "candidate": None})
            await client.until("generation_started")
            assert (await client.until("generation_tick"))["seconds"] >= 1
            await connection.close()
            ended = await client.until("generation_ended")
            assert ended["reason"].startswith("connection_") and ended["seconds"] >= 1

    scenario(run())


def test_what_is_wrong_is_acknowledged_as_such(monkeypatch):
    from test_engines import HERE

    monkeypatch.setenv("PYTHONPATH", str(HERE))
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()

    async def run():
        async with serving(IMAGES, SMALL) as server, streaming(server) as client:
            for prompt in ("", None, 3, [1]):
                ack = await say(client, "prompt_ack", type="prompt", prompt=prompt)
                assert not ack["success"] and ack["error"] and ack["prompt"] == prompt
            for data, prompt, good in (
                (picture, "night", True), ("data:image/png;base64," + picture, None, True),
                (None, None, True), ("%%%", None, False), (picture[:40], "x", False),
                (base64.b64encode(b"no picture").decode(), None, False), (picture, "", False),
            ):  # fmt: skip
                message = {"type": "set_image", "image_data": data, "prompt": prompt}
                ack = await say(client, "set_image_ack", **message)
                assert ack["success"] is good and (ack["error"] is None) is good, message
            ack = await say(client, "set_image_ack", type="set_image", image_ref="file_1")
            assert "image_data" in ack["error"]
            assert "unknown" in (await say(client, "error", type="nonsense"))["error"]
            for sdp in ("x", "a=x\r\n" * 50_000):
                assert "offer" in (await say(client, "error", type="offer", sdp=sdp))["error"]

    scenario(run())


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "[" * 9999, MANY])
def test_what_no_sdk_sends_closes_that_client(text):
    async def run():
        async with serving(config=SMALL) as server, streaming(server) as client:
            await client.until("session_id")
            await client.socket.send_str(text)
            await client.until("error")
            assert await client.receive() == 1008

    scenario(run())


def test_the_queue_and_its_end():
    async def run():
        one = {**SMALL, "slots": 1}
        async with serving(config=one, queue=1) as server:
            async with streaming(server) as first:
                await first.until("session_id")
                async with streaming(server) as second, streaming(server) as third:
                    assert (await second.until("queue_position"))["position"] == 1
                    await second.socket.send_json({"type": "prompt", "prompt": "night"})
                    assert (await third.until("error"))["error"].startswith("Concurrent session")
                    assert await third.receive() == 1013
                    await first.socket.close()
                    await second.until("session_id")
                    assert (await second.until("prompt_ack"))["prompt"] == "night"

    scenario(run())


@pytest.mark.parametrize("says", [0, decart.EARLY + 1, b"x" * 60_000])
def test_who_leaves_the_queue_or_floods_it_has_no_place_there(says):
    async def run():
        one = {**SMALL, "slots": 1}
        async with serving(config=one, queue=1, max_message_bytes=100_000) as server:
            async with streaming(server) as first, streaming(server) as second:
                await first.until("session_id")
                await second.until("queue_position")
                if not says:
                    await second.socket.close()
                elif isinstance(says, int):
                    for _ in range(says):
                        await second.socket.send_json({"type": "ice-candidate"})
                else:
                    for _ in range(2):
                        await second.socket.send_bytes(says)
                if says:
                    assert "wait for session_id" in (await second.until("error"))["error"]
                    assert await second.receive() == 1008
                while server.registry.waiting:
                    await asyncio.sleep(0.01)
                async with streaming(server) as third:
                    await third.until("queue_position")
                    await first.socket.close()
                    await third.until("session_id")

    scenario(run(), 30)


def test_a_client_with_sdp_learns_of_turn_by_an_ice_restart():
    """It then makes another connection and offers anew, as the SDK does."""

    async def run():
        turn = {"turn": ("turn:a:3478",), "turn_secret": "s"}
        async with serving(config=SIZE, **turn) as server, streaming(server) as client:
            await client.until("session_id")
            for answer in ("ice-restart", "answer"):
                connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
                connection.addTransceiver(Source(level=90), "sendrecv")
                await connection.setLocalDescription(await connection.createOffer())
                sdp = connection.localDescription.sdp
                told = await say(client, answer, type="offer", sdp=sdp)
                if answer == "ice-restart":
                    given = told["turn_config"]
                    assert given["server_url"] == "turn:a:3478"
                    assert given["username"] and given["credential"]
                    await connection.close()
            described = RTCSessionDescription(told["sdp"], "answer")
            await connection.setRemoteDescription(described)
            await client.until("generation_started")
            await connection.close()

    scenario(run())
