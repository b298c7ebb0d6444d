"""Sessions by id: opened and ended over HTTP, gone on with after a lost socket, by nobody else."""

import asyncio
import gc
import time
import weakref

import aiohttp
import pytest
from harness import PASS, SMALL, connected, scenario, serving
from test_engines import HERE
from test_rtc import SIZE, Source, call
from test_security import KEY

from lsd_jax.serve import rest
from lsd_jax.serve.settings import Settings
from lsd_jax.serve.tokens import Grant, mint

ONE = {**SMALL, "slots": 1}


async def ask(server, method, path, token="", **options):
    """Status, JSON and headers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as http:
        async with http.request(method, server.url + path, **options) as response:
            return response.status, await response.json(), response.headers


async def until_state(server, id, secret, state):
    async with asyncio.timeout(10):
        while True:
            code, told, _ = await ask(server, "GET", f"/sessions/{id}", secret)
            assert code == 200
            if told["session"]["state"] == state:
                return told["session"]
            await asyncio.sleep(0.02)


def test_a_session_from_opened_to_ended_over_http(smooth):
    async def run():
        async with serving(config=ONE) as server:
            code, told, _ = await ask(server, "POST", "/sessions", json={"model_name": None})
            assert code == 202 and told["session"]["state"] in ("STARTING", "READY")
            id, secret = told["session"]["session_id"], told["client_access_token"]
            assert len(secret) >= 32
            can = told["capabilities"]
            assert (can["control_topic"], can["status_topic"]) == ("wm.control", "wm.status")
            video = {"name": "main_video", "kind": "video", "track_name": "main_video"}
            assert can["output_bindings"] == [video] and can["video_inputs"]
            assert not (await until_state(server, id, secret, "READY"))["connected"]
            code, full, headers = await ask(server, "POST", "/sessions")
            assert code == 503 and full["error"]["queue_size"] == 0 and headers["Retry-After"]
            assert full["error"]["code"] == "full"
            async with connected(server) as client:
                started = await client.start(session=id, secret=secret)
                assert (started["session_id"], started["reclaimed"]) == (id, True)
                assert (await client.show(smooth))[0] == 1
                assert (await until_state(server, id, secret, "RUNNING"))["connected"]
                await client.ask("pause")
                await until_state(server, id, secret, "PAUSED")
                await client.ask("resume")
                code, told, _ = await ask(server, "POST", f"/sessions/{id}:end", secret)
                assert (code, told["session"]["state"]) == (200, "ENDED")
                assert (await client.until("ended"))["reason"] == "ended"
            assert server.registry.free == 1
            code, told, _ = await ask(server, "GET", f"/sessions/{id}", secret)
            assert (code, told["session"]["reason"]) == (200, "ended")
            code, told, _ = await ask(server, "POST", f"/sessions/{id}:end", secret)
            assert (code, told["session"]["state"]) == (200, "ENDED")

    scenario(run())


def test_a_session_that_is_over_has_no_client_and_keeps_none_in_memory(smooth):
    async def run():
        async with serving(config=ONE) as server:
            _, told, _ = await ask(server, "POST", "/sessions")
            id, secret = told["session"]["session_id"], told["client_access_token"]
            async with connected(server) as client:
                await client.start(session=id, secret=secret)
                await client.show(smooth)
                session = server.registry.sessions[id]
                session.sounds = True
                served = weakref.ref(session.let_go.__self__)
                await client.ask("end")
                await client.until("ended")
            assert not (await until_state(server, id, secret, "ENDED"))["connected"]
            assert not session.sounds
            async with asyncio.timeout(10):
                while served() is not None:
                    gc.collect()
                    await asyncio.sleep(0.01)

    scenario(run())


def test_a_session_whose_client_does_not_come_ends(monkeypatch):
    monkeypatch.setattr(rest, "CLAIM_S", 0.2)

    async def run():
        async with serving(config=ONE) as server:
            _, told, _ = await ask(server, "POST", "/sessions")
            id, secret = told["session"]["session_id"], told["client_access_token"]
            assert (await until_state(server, id, secret, "ENDED"))["reason"] == "client_left"
            assert server.registry.free == 1

    scenario(run())


def test_a_session_that_cannot_be_meant_is_refused():
    async def run():
        async with serving(config=ONE) as server:
            for body, status, words in (
                ({"model_name": "other"}, 404, "ask for 'pass-through'"),
                ({"model_name": 3}, 400, "model_name"),
                ({"seed": -1}, 400, "seed"),
                ({"colour": "red"}, 400, "colour"),
                ([], 400, "openapi.json"),
            ):
                code, told, _ = await ask(server, "POST", "/sessions", json=body)
                assert code == status and words in told["error"]["message"]
                assert server.registry.free == 1

    scenario(run())


def test_a_lost_socket_and_back_to_the_same_session(monkeypatch, smooth):
    """Prompt, picture and the number of the next picture are those that were left."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    async def run():
        async with serving("sticky_models:CountingModel", ONE) as server:
            async with connected(server) as first:
                started = await first.start()
                await first.ask("input", name="set_prompt", args={"prompt": "make it night"})
                for _ in range(3):
                    await first.show(smooth)
                first.vanish()
            key = {"session": started["session_id"], "secret": started["secret"]}
            async with asyncio.timeout(5):
                while server.registry.sessions[key["session"]].let_go is not None:
                    await asyncio.sleep(0.01)
            assert server.registry.free == 0
            for wrong in ({"secret": ""}, {"secret": "x"}, {"session": "0" * 32}):
                async with connected(server) as stranger:
                    await stranger.socket.send_json({"type": "start", **key, **wrong})
                    assert (await stranger.until("error"))["code"] == "unknown_session"
                    assert await stranger.receive() == 4404
            async with connected(server) as second:
                again = await second.start(**key)
                assert again["session_id"] == key["session"] and again["reclaimed"]
                _, _, image = await second.show(smooth)
                assert abs(int(image.mean()) - 4 * 10) < 3  # the fourth it has seen
                told = [one for one in second.messages if one["type"] == "output"][-1]
                assert told["value"] == {"prompt": "make it night", "count": 4}
                assert server.registry.engines[0].sessions == {key["session"]}
                await second.socket.close()  # it says goodbye: nothing to come back to
            async with asyncio.timeout(2):
                while server.registry.free == 0:
                    await asyncio.sleep(0.01)
            async with connected(server) as third:
                await third.socket.send_json({"type": "start", **key})
                assert (await third.until("error"))["code"] == "unknown_session"

    scenario(run())


def test_who_comes_back_before_the_loss_is_noticed_takes_over(smooth):
    async def run():
        async with serving(config=ONE) as server, connected(server) as old:
            started = await old.start()
            await old.show(smooth)
            key = {"session": started["session_id"], "secret": started["secret"]}
            async with connected(server) as new:
                await new.start(**key)
                assert (await old.until("error"))["code"] == "taken_over"
                assert await old.receive() == 4409
                assert (await new.show(smooth))[0] == 2
                await asyncio.sleep(0.1)
                assert (await new.show(smooth))[0] == 3  # the old one's end ended nothing

    scenario(run())


def test_nobody_comes_back_and_the_slot_is_free_in_time(smooth):
    settings = Settings(model=PASS)
    assert 1.5 * settings.heartbeat_s + settings.keep_s < 10  # noticed, and waited for
    with pytest.raises(ValueError, match="keep_s"):
        Settings(model=PASS, keep_s=10.0)

    async def run():
        async with serving(config=ONE, keep_s=0.4, heartbeat_s=0.4) as server:
            async with aiohttp.ClientSession() as http:
                url = f"{server.url}/v1/live"
                async with http.ws_connect(url, autoping=False) as socket:
                    await socket.send_json({"type": "start"})
                    assert (await socket.receive_json())["type"] == "started"
                    began = time.monotonic()
                    async with asyncio.timeout(5):
                        while server.registry.free == 0:
                            await asyncio.sleep(0.01)
                    assert 0.9 < time.monotonic() - began < 4

    scenario(run())


def test_a_call_is_lost_and_another_takes_the_same_session():
    async def run():
        async with serving(config={**SIZE, "slots": 1}) as server:
            async with connected(server) as first:
                started = await first.start(media="webrtc")
                connection, track, _ = await call(first, "VP8", Source(level=150))
                await asyncio.wait_for(track.recv(), 20)
                first.vanish()
                await connection.close()
            key = {"session": started["session_id"], "secret": started["secret"]}
            async with connected(server) as second:
                await second.start(media="webrtc", **key)
                connection, track, _ = await call(second, "VP8", Source(level=60))
                async with asyncio.timeout(20):
                    level = 150.0
                    while abs(level - 60) > 8:
                        level = (await track.recv()).to_ndarray(format="rgb24").mean()
                assert server.registry.engines[0].sessions == {key["session"]}
                await connection.close()

    scenario(run())


def test_a_token_that_is_over_is_told_and_a_secret_needs_none(smooth):
    async def run():
        async with serving(config=ONE, api_key=KEY) as server:
            for query, code in (("", 4401), ("?api_key=wrong", 4401)):
                async with connected(server, query) as client:
                    await client.socket.send_json({"type": "start"})
                    told = await client.until("error")
                    assert told["code"] == "unauthorized" and "give" in told["message"]
                    assert await client.receive() == code
            other = mint(KEY, Grant(("another",)), 60)
            async with connected(server, f"?api_key={other}") as client:
                await client.socket.send_json({"type": "start"})
                assert (await client.until("error"))["code"] == "forbidden"
                assert await client.receive() == 4403
            token = mint(KEY, Grant(max_session_s=2.0), 60)
            async with connected(server, f"?api_key={token}") as client:
                began = time.monotonic()
                started = await client.start()
                client.vanish()
            key = {"session": started["session_id"], "secret": started["secret"]}
            async with connected(server) as client:  # without a token
                await client.start(**key)
                await client.show(smooth)
                assert "token's time" in (await client.until("ended"))["reason"]
                assert 1 < time.monotonic() - began < 5  # of the first start, not the second
            for method, verb in (("GET", ""), ("POST", ":end")):
                for wrong in ("", "x", token):
                    path = f"/sessions/{key['session']}{verb}"
                    code, told, _ = await ask(server, method, path, wrong)
                    assert code == 404 and "open another" in told["error"]["message"]
            code, told, _ = await ask(server, "GET", f"/sessions/{key['session']}", KEY)
            assert (code, told["session"]["state"]) == (200, "ENDED")
            assert (await ask(server, "POST", "/sessions"))[0] == 401
            text = server.metrics.text().decode()
            assert 'lsd_sessions_rejected_total{reason="unauthorized"} 3.0' in text
            assert 'lsd_sessions_rejected_total{reason="forbidden"} 1.0' in text

    scenario(run())


def test_while_the_model_loads_that_is_what_is_said(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))

    async def run():
        async with serving("sticky_models:SlowModel", ONE, ready=False, queue=1) as server:
            async with connected(server) as client:
                await client.socket.send_json({"type": "start"})
                told = await client.until("error")
                assert told["code"] == "loading" and "wait" in told["message"]
                assert await client.receive() == 1013
            code, told, _ = await ask(server, "POST", "/sessions")
            assert (code, told["error"]["code"]) == (503, "loading")
            code, _, _ = await ask(server, "GET", "/readyz")
            assert code == 503
            async with connected(server) as client, aiohttp.ClientSession() as http:
                await client.socket.send_json({"type": "start", "wait": True})
                assert (await client.until("queue_position"))["loading"]
                async with http.ws_connect(f"{server.url}/v1/stream?model=any") as sdk:
                    told = await sdk.receive_json()
                    assert told["type"] == "error" and told["error"].startswith("loading: ")
                    await sdk.receive()
                    assert sdk.close_code == 1013
                await client.until("started")
            assert 'lsd_sessions_rejected_total{reason="loading"} 3.0' in (
                server.metrics.text().decode()
            )

    scenario(run())
