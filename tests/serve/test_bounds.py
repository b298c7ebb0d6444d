"""What one client may ask of the front, which serves the others in the same process."""

import asyncio

import aiohttp
import pytest
from harness import SMALL, connected, scenario, serving
from test_engines import HERE

from lsd_jax.runtime import InputError
from lsd_jax.serve import protocol

STATEFUL = "sticky_models:StatefulModel"


def ping(characters):
    """A message of that many."""
    return '{"type":"ping","client_ts_ms":1.0}'.ljust(characters)


async def refused(client, text, code="bad_message"):
    await client.socket.send_str(text)
    assert (await client.until("error"))["code"] == code
    assert await client.receive() == 1008


async def restored(client, state):
    """A restore's ack."""
    client.ids += 1
    await client.socket.send_json({"type": "restore", "id": client.ids})
    await client.socket.send_bytes(protocol.pack(protocol.SNAPSHOT, state))
    return await client.until("ack", id=client.ids)


@pytest.fixture
def stateful(monkeypatch):
    """Engines find the model."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def test_no_message_is_inflated():
    async def run():
        async with serving() as server, aiohttp.ClientSession() as http:
            for path in ("/v1/live", "/v1/stream"):
                async with http.ws_connect(server.url + path, compress=15) as socket:
                    assert not socket.compress

    scenario(run())


def test_long_json_is_refused_before_it_is_read(smooth):
    async def run():
        config = {**SMALL, "slots": 1}
        async with serving(config=config) as server, connected(server) as client:
            async with connected(server) as stranger:
                await stranger.socket.send_str(ping(protocol.MAX_FIRST))
                await stranger.until("pong")
                await refused(stranger, ping(protocol.MAX_FIRST + 1))
            await client.start()
            async with connected(server) as waiting:
                await waiting.socket.send_json({"type": "start", "wait": True})
                await waiting.until("queue_position")
                await refused(waiting, ping(protocol.MAX_FIRST + 1))
            await client.socket.send_str(ping(protocol.MAX_TEXT))
            await client.until("pong")
            assert (await client.show(smooth))[0] == 1
            await refused(client, ping(protocol.MAX_TEXT + 1))

    scenario(run())


def test_long_json_counts_as_many_messages():
    async def run():
        async with serving(messages_per_s=20) as server, connected(server) as client:
            await client.start()
            await client.socket.send_str(ping(30_000))
            await client.until("pong")
            await refused(client, ping(100_000), "too_many")

    scenario(run())


def test_snapshots_and_restores_of_a_session_come_one_at_a_time(stateful, monkeypatch):
    async def run():
        async with serving(STATEFUL, SMALL) as server, connected(server) as client:
            await client.start()
            client.ids = 1
            await client.socket.send_json({"type": "snapshot", "id": 1})
            assert (await client.ask("snapshot"))["code"] == "queue_full"
            assert (await restored(client, b"s"))["code"] == "queue_full"
            await client.ask("input", name="give", args={"size": 100})
            while not client.binaries:
                await client.receive()
            assert (await client.until("ack", id=1))["ok"]
            assert client.binaries == [(protocol.SNAPSHOT, b"s" * 100)]
            assert (await restored(client, b"s" * 100))["ok"]
            monkeypatch.setattr(type(server.registry.engines[0]), "congested", True)
            assert (await restored(client, b"s"))["code"] == "queue_full"

    scenario(run())


def test_a_snapshot_that_nobody_reads_is_the_only_one(stateful):
    async def run():
        async with serving(STATEFUL, SMALL) as server:
            session = await server.registry.open()
            await session.call("give", {"size": 100})
            sending, read = asyncio.Event(), asyncio.Event()

            async def send(_):
                sending.set()
                await read.wait()

            first = asyncio.create_task(session.snapshot(send))
            await sending.wait()
            for another in (session.snapshot(send), session.restore(b"s")):
                with pytest.raises(InputError, match="await its ack"):
                    await another
            first.cancel()  # its client has gone
            await asyncio.wait([first])
            await session.restore(b"s")
            read.set()
            await session.snapshot(send)

    scenario(run())


def test_no_snapshot_is_given_that_could_not_be_restored(stateful, smooth):
    longest = 100_000 - 17  # a header of 16 bytes, and aiohttp takes less than its bound

    async def run():
        settings = {"max_message_bytes": 100_000}
        async with serving(STATEFUL, SMALL, **settings) as server, connected(server) as client:
            await client.start()
            await client.ask("input", name="give", args={"size": longest})
            assert (await client.ask("snapshot"))["ok"]
            assert (await restored(client, client.binaries.pop()[1]))["ok"]
            await client.ask("input", name="give", args={"size": longest + 1})
            ack = await client.ask("snapshot")
            assert ack["code"] == "too_large" and f"{longest:,}" in ack["message"]
            assert not client.binaries
            assert (await client.show(smooth))[0] == 1

    scenario(run())
