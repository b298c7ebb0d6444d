"""Our own protocol over a WebSocket: pictures, inputs, uploads, refusals, endings."""

import asyncio
import io
import json

import aiohttp
import numpy as np
import pytest
from harness import Client, connected, jpeg, scenario, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lsd_jax.serve import convert, live, protocol
from lsd_jax.serve.link import MAX_HEADER
from lsd_jax.serve.protocol import ProtocolError
from lsd_jax.serve.sessions import MAX_JPEG

DRIVE = "lsd_jax.live.drive:DriveModel"


def test_a_session_from_start_to_end(smooth):
    async def run():
        async with serving() as server, connected(server) as client:
            started = await client.start()
            assert started["manifest"]["model"]["name"] == "pass-through"
            seq, ts_ms, image = await client.show(smooth, 123.5)
            assert (seq, ts_ms) == (1, 123.5)
            assert np.abs(image.astype(int) - smooth).mean() < 3
            big = np.asarray(Image.fromarray(smooth).resize((320, 200)))
            _, _, image = await client.show(big)
            assert image.shape == smooth.shape and np.abs(image.astype(int) - smooth).mean() < 4
            assert (await client.ask("input", name="set_prompt", args={"prompt": "x"}))["ok"]
            metrics = await client.until("metrics")
            assert metrics["frames_out"] == 2 and metrics["input_size"] == [320, 200]
            await client.socket.send_json({"type": "ping", "client_ts_ms": 7.0})
            assert (await client.until("pong"))["client_ts_ms"] == 7
            assert (await client.ask("end"))["ok"]
            assert (await client.until("ended"))["reason"] == "ended"
            assert server.registry.free == 2

    scenario(run())


def test_each_refusal_has_its_code(smooth):
    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            for name, args, code in (
                ("nothing", {}, "unknown_input"),
                ("set_prompt", {}, "invalid_args"),
                ("set_prompt", {"prompt": 3}, "invalid_args"),
                ("set_prompt", {"prompt": " "}, "invalid_args"),
            ):
                ack = await client.ask("input", name=name, args=args)
                assert not ack["ok"] and ack["code"] == code and ack["message"]
            ack = await client.ask("snapshot")
            assert ack["code"] == "invalid_args" and "no snapshots" in ack["message"]
            ack = await client.upload(bytes(100), sha256="0" * 64)
            assert ack["code"] == "bad_upload"
            assert (await client.upload(bytes(100)))["upload_id"]
            assert (await client.show(smooth))[0] == 1  # and it lives on

    scenario(run())


def test_a_pause_stops_the_pictures(smooth):
    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            await client.show(smooth)
            assert (await client.ask("pause"))["ok"]
            await client.socket.send_bytes(protocol.pack(protocol.PICTURE, jpeg(smooth)))
            await asyncio.sleep(0.3)
            assert (await client.ask("resume"))["ok"]
            assert len(client.pictures) == 1
            wants = [m for m in client.messages if m["type"] == "want"]
            assert len(wants) <= 2  # while paused, nothing is asked for again and again
            assert (await client.show(smooth))[0] == 2

    scenario(run())


def test_damaged_pictures_are_counted_and_the_stream_goes_on(smooth):
    good = jpeg(smooth)
    png = io.BytesIO()
    Image.fromarray(smooth).save(png, "PNG")
    bomb = bytearray(good)
    at = good.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\xff\xff\xff"  # 65,535 x 65,535 pixels

    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            for bad in (b"", b"x" * 50, good[:100], png.getvalue(), bytes(bomb), good[:-400]):
                await client.socket.send_bytes(protocol.pack(protocol.PICTURE, bad))
                await client.until("want")
            assert (await client.show(smooth))[2].shape == smooth.shape
            assert "lsd_frames_refused_total 6.0" in server.metrics.text().decode()

    scenario(run())


@pytest.mark.parametrize(
    "message",
    [
        "", "{", "[]", "null", "{}", '{"type":"no"}', '{"type":"input","id":1,"name":"x"}',
        '{"type":"start","media":"mp3"}', '{"type":"start","seed":-1}', '{"type":"start","x":1}',
        "[" * 3_000, "[" * 100_000, b"", b"short", b"\x01" * 20,
    ],
)  # fmt: skip
def test_what_no_client_sends_closes_that_client_alone(message, smooth):
    async def run():
        async with serving() as server, connected(server) as good, connected(server) as bad:
            await good.start()
            send = bad.socket.send_str if isinstance(message, str) else bad.socket.send_bytes
            await send(message)
            told = await bad.until("error")
            assert told["code"] == "bad_message" and told["message"] and "\n" not in told["message"]
            assert await bad.receive() == 1008
            assert (await good.show(smooth))[0] == 1

    scenario(run())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=200) | st.dictionaries(st.text(max_size=9), st.floats()).map(json.dumps))
def test_any_text_parses_or_is_refused_in_a_line(text):
    try:
        protocol.parse(text)
    except ProtocolError as error:
        assert str(error) and "\n" not in str(error)


@given(st.binary(max_size=64))
def test_any_bytes_unpack_or_are_refused(data):
    try:
        kind, seq, ts_ms, content = protocol.unpack(data)
    except ProtocolError:
        return
    assert protocol.pack(kind, content, seq, ts_ms)[16:] == data[16:]


def test_when_all_slots_are_taken_the_next_is_refused_at_once_or_waits(smooth):
    async def run():
        async with serving(config={**SMALL_ONE}) as server, connected(server) as first:
            await first.start()
            async with connected(server) as second:
                await second.socket.send_json({"type": "start"})
                assert (await second.until("error"))["code"] == "full"
                assert await second.receive() == 1013
            async with connected(server) as third, connected(server) as fourth:
                await third.socket.send_json({"type": "start", "wait": True})
                told = await third.until("queue_position")
                assert (told["position"], told["queue_size"]) == (1, 1)
                await fourth.socket.send_json({"type": "start", "wait": True})
                assert (await fourth.until("queue_position"))["position"] == 2
                await first.ask("end")
                await third.until("started")
                assert (await fourth.until("queue_position", position=1))["queue_size"] == 1
                await third.show(smooth)
                await third.socket.close()
                await fourth.until("started")
                await fourth.show(smooth)

    scenario(run())


def test_a_large_input_is_refused_and_harms_nobody(smooth):
    async def run():
        async with serving() as server, connected(server) as client, connected(server) as other:
            await asyncio.gather(client.start(), other.start())
            engine = server.registry.engines[0]
            large = {"prompt": "x" * 100_000}
            assert (await client.ask("input", name="set_prompt", args=large))["code"] == "too_large"
            answer, _ = await engine.ask({"type": "input", "args": "x" * MAX_HEADER})
            assert answer["code"] == "too_large" and not engine._answers
            assert (await client.show(smooth))[0] == (await other.show(smooth))[0] == 1
            assert engine.starts == 1

    scenario(run())


@pytest.mark.parametrize("message", ["{", '{"type":"pause","id":1}', b"x", "ping"])
def test_who_waits_and_sends_what_no_client_sends_leaves_no_slot_taken(message):
    async def run():
        rate = {"messages_per_s": 2} if message == "ping" else {}
        async with serving(config=SMALL_ONE, **rate) as server, connected(server) as first:
            await first.start()
            async with connected(server) as second:
                await second.socket.send_json({"type": "start", "wait": True})
                await second.until("queue_position")
                if message == "ping":
                    for _ in range(20):
                        await second.socket.send_json({"type": "ping", "client_ts_ms": 0.0})
                elif isinstance(message, str):
                    await second.socket.send_str(message)
                else:
                    await second.socket.send_bytes(message)
                code = "too_many" if message == "ping" else "bad_message"
                assert (await second.until("error"))["code"] == code
                assert server.registry.waiting == 0
            await first.socket.close()
            async with connected(server) as third:
                await third.start(wait=True)

    scenario(run())


def test_a_picture_too_large_or_for_a_model_without_video_is_no_message(smooth):
    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            large = jpeg(smooth) + bytes(MAX_JPEG)
            await client.socket.send_bytes(protocol.pack(protocol.PICTURE, large))
            assert (await client.until("error"))["code"] == "bad_message"
        async with serving(DRIVE, {}) as server, connected(server) as client:
            await client.start()
            await client.socket.send_bytes(protocol.pack(protocol.PICTURE, jpeg(smooth)))
            assert (await client.until("error"))["code"] == "bad_message"

    scenario(run())


def test_a_decoder_that_raises_anything_stops_no_stream(smooth, monkeypatch):
    to_rgb, calls = convert.to_rgb, []

    def fails_once(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no memory")
        return to_rgb(*arguments)

    monkeypatch.setattr(convert, "to_rgb", fails_once)

    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            await client.socket.send_bytes(protocol.pack(protocol.PICTURE, jpeg(smooth)))
            await client.until("want")
            assert (await client.show(smooth))[0] == 1

    scenario(run())


def test_uploads_wait_for_no_engine_that_does_not_keep_up(monkeypatch):
    async def run():
        async with serving() as server, connected(server) as client:
            await client.start()
            monkeypatch.setattr(type(server.registry.engines[0]), "congested", True)
            assert (await client.upload(bytes(100)))["code"] == "queue_full"
            monkeypatch.undo()
            assert (await client.upload(bytes(100)))["ok"]

    scenario(run())


def test_a_client_that_never_starts_is_sent_away(monkeypatch):
    monkeypatch.setattr(live, "START_S", 0.2)

    async def run():
        async with serving() as server, connected(server) as idle, connected(server) as client:
            await client.start()
            assert "send start" in (await idle.until("error"))["message"]
            assert await idle.receive() == 1008
            assert (await client.ask("pause"))["ok"]

    scenario(run())


def test_who_only_listens_is_told_when_the_server_stops():
    async def run():
        async with serving() as server, connected(server) as idle:
            await asyncio.gather(server.app.shutdown(), idle.receive())
            assert idle.socket.close_code == 1001

    scenario(run())


SMALL_ONE = {"width": 64, "height": 48, "slots": 1}


def test_a_client_that_leaves_the_queue_is_forgotten():
    async def run():
        async with serving(config=SMALL_ONE, queue=1) as server, connected(server) as first:
            await first.start()
            async with connected(server) as second:
                await second.socket.send_json({"type": "start", "wait": True})
                await second.until("queue_position")
                async with connected(server) as third:
                    await third.socket.send_json({"type": "start", "wait": True})
                    assert (await third.until("error"))["code"] == "full"  # the queue is
            while server.registry.waiting:
                await asyncio.sleep(0.01)
            await first.socket.close()
            async with connected(server) as fourth:
                await fourth.start(wait=True)

    scenario(run())


def test_a_vanished_client_frees_its_slot():
    """It answers no ping any more, and closes nothing."""

    async def run():
        async with serving(heartbeat_s=0.4) as server:
            async with aiohttp.ClientSession() as http:
                socket = await http.ws_connect(f"{server.url}/v1/live", autoping=False)
                await Client(socket).start()
                assert server.registry.free == 1
                while server.registry.free == 1:
                    await asyncio.sleep(0.05)
                await socket.close()

    scenario(run(), 20)


def test_a_slow_model_sees_the_newest_picture_only(smooth):
    """Ten pictures at once, a step of 100 ms: the first is shown, then the last."""

    async def run():
        config = {**SMALL_ONE, "step_ms": 100.0}
        async with serving(config=config) as server, connected(server) as client:
            await client.start()
            await client.show(smooth, 0.0)
            for n in range(1, 11):
                packed = protocol.pack(protocol.PICTURE, jpeg(smooth), 0, float(n))
                await client.socket.send_bytes(packed)
            metrics = await client.until("metrics")
            stamps = [ts_ms for _, ts_ms, _ in client.pictures]
            assert stamps[-1] == 10.0 and len(stamps) < 11
            assert metrics["dropped"] == 11 - len(stamps)

    scenario(run())


def test_a_client_that_sends_too_much_is_sent_away(smooth):
    async def run():
        async with serving(messages_per_s=20) as server:
            async with connected(server) as good, connected(server) as client:
                await good.start()
                await client.start()
                for _ in range(100):
                    await client.socket.send_json({"type": "ping", "client_ts_ms": 0.0})
                assert (await client.until("error"))["code"] == "too_many"
                assert (await good.show(smooth))[0] == 1

    scenario(run())


def test_another_model_is_served_without_a_change():
    """The scene: no camera, keys, telemetry."""

    async def run():
        async with serving(DRIVE, {}) as server, connected(server) as client:
            started = await client.start()
            assert started["manifest"]["video_inputs"] == []
            await client.ask("input", name="throttle", args={"value": 1.0})
            found = await client.until("output", name="telemetry")
            assert found["value"]["speed_m_s"] > 0
            assert client.pictures[-1][2].shape == (180, 320, 3)

    scenario(run())


def test_two_clients_see_only_their_own(smooth):
    async def run():
        async with serving() as server, connected(server) as a, connected(server) as b:
            await asyncio.gather(a.start(), b.start())
            dark, light = np.zeros_like(smooth), np.full_like(smooth, 255)
            for n in range(10):
                shown = await asyncio.gather(a.show(dark, n), b.show(light, 100.0 + n))
                assert shown[0][2].max() < 20 and shown[0][1] == n
                assert shown[1][2].min() > 235 and shown[1][1] == 100 + n

    scenario(run())
