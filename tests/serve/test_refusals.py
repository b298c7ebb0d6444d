"""Every refusal says what is wrong and, after a semicolon, what to do; in one line."""

import asyncio

import aiohttp
import numpy as np
import pytest
from harness import connected, jpeg, scenario, serving
from test_security import KEY

from lsd_jax.live.passthrough import PassThroughModel
from lsd_jax.runtime import Frame, InputError, SessionHost, build_model_definition
from lsd_jax.serve import protocol
from lsd_jax.serve.protocol import ProtocolError


def says_what_to_do(words):
    wrong, semicolon, remedy = words.partition("; ")
    return bool(wrong and semicolon and len(remedy.split()) > 1) and "\n" not in words


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 9999, '{"type":"no"}', '{"type":"input","id":1,"name":3}',
     '{"type":"start","media":"mp3"}', '{"type":"ping","client_ts_ms":"x"}'],
)  # fmt: skip
def test_messages_of_no_client(text):
    with pytest.raises(ProtocolError) as refused:
        protocol.parse(text)
    assert says_what_to_do(str(refused.value))


@pytest.mark.parametrize("data", [b"", b"\x01" * 8, protocol.pack(1, b"", 0, float("nan"))])
def test_binary_messages_of_no_client(data):
    with pytest.raises(ProtocolError) as refused:
        protocol.unpack(data)
    assert says_what_to_do(str(refused.value))


def test_a_host():
    async def run():
        model = PassThroughModel()
        await model.load(type("Context", (), {"config": None})())
        definition = build_model_definition(model)
        host = SessionHost(model, definition, "s", lambda *_: None, lambda *_: None)
        refused = []
        picture = np.zeros((2, 2, 3), np.uint8)
        for name in ("x", "camera"):
            with pytest.raises(InputError) as error:
                host.offer(name, Frame(picture))
            refused.append(str(error.value))
        for args in ({}, {"prompt": 3}, {"prompt": "x", "y": 1}, "x"):
            with pytest.raises(InputError) as error:
                await host.call("set_prompt", args)
            refused.append(str(error.value))
        with pytest.raises(NotImplementedError) as error:
            await host.snapshot()
        refused.append(str(error.value))
        host.start()
        await host.end()
        with pytest.raises(InputError) as error:
            await host.call("set_prompt", {"prompt": "x"})
        refused.append(str(error.value))
        with pytest.raises(InputError) as error:
            await host.snapshot()
        refused.append(str(error.value))
        assert [words for words in refused if not says_what_to_do(words)] == []

    scenario(run(), 20)


def test_requests_over_http():
    async def run():
        async with serving(api_key=KEY) as server, aiohttp.ClientSession() as http:
            key = {"X-API-Key": KEY}
            refused = []
            for method, path, body in (
                ("GET", "/nothing", None), ("DELETE", "/healthz", None), ("GET", "/v1/live", None),
                ("POST", "/sessions", {"seed": -1}), ("POST", "/sessions", {"model_name": "x"}),
                ("GET", "/sessions/x", None), ("POST", "/sessions/x:end", None),
                *(("POST", "/v1/client/tokens", body) for body in (
                    {"expiresIn": 0}, {"expiresIn": "x"}, [], {"constraints": 3},
                    {"constraints": {"realtime": {"maxSessionDuration": "x"}}},
                )),
            ):  # fmt: skip
                async with http.request(method, server.url + path, json=body, headers=key) as r:
                    assert 400 <= r.status < 500, path
                    refused.append((await r.json())["error"]["message"])
            assert [words for words in refused if not says_what_to_do(words)] == []

    scenario(run())


def test_a_live_picture_that_does_not_decode_is_told_once_a_second(smooth):
    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            for bad in (b"x" * 50, jpeg(smooth)[:100], b""):
                await client.socket.send_bytes(protocol.pack(protocol.PICTURE, bad))
                await client.until("want")
            assert (await client.show(smooth))[0] == 1
            told = [one for one in client.messages if one["type"] == "refused"]
            assert [one["code"] for one in told] == ["bad_picture"]
            assert says_what_to_do(told[0]["message"])
            await asyncio.sleep(1.1)
            await client.socket.send_bytes(protocol.pack(protocol.PICTURE, b"x"))
            await client.until("refused", code="bad_picture")

    scenario(run())
