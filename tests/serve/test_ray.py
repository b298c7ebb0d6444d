"""Engines as actors of a Ray cluster on this machine: sessions, a killed actor, an intruder."""

import asyncio
import os
import signal

import pytest
from harness import connected, scenario, serving

from lsd_jax.serve.link import Link

ray = pytest.importorskip("ray", reason="Ray has no wheel for this Python")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two CPUs, which the server finds running."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="lsd")
    yield
    ray.shutdown()


def test_a_killed_actor_takes_only_its_own_sessions_and_is_replaced(cluster, smooth):
    async def run():
        async with serving(engine="ray", engines=2) as server:
            engines = server.registry.engines
            assert len({os.getpid(), *(engine.pid for engine in engines)}) == 3
            async with connected(server) as a, connected(server) as b:
                started = [(await client.start())["session_id"] for client in (a, b)]
                first, second = engines
                lost, kept = (a, b) if first.sessions == {started[0]} else (b, a)
                assert (await lost.show(smooth))[0] == 1
                os.kill(first.pid, signal.SIGKILL)
                for n in range(20):
                    assert (await kept.show(smooth))[0] == n + 1
                assert (await lost.until("ended"))["reason"].startswith("engine_lost")
                await asyncio.wait_for(first.ready.wait(), 60)
                async with connected(server) as again:
                    await again.start()
                    assert (await again.show(smooth))[0] == 1
                assert (first.starts, second.starts) == (2, 1)

    scenario(run(), 150)


def test_who_does_not_know_the_secret_is_no_engine(cluster, caplog):
    from lsd_jax.serve.on_ray import RayLauncher

    async def run():
        accepted = []
        server, address = await RayLauncher({}).listen(accepted.append)
        host, _, port = address.rpartition(":")
        async with server:
            link = Link(*await asyncio.open_connection(host, int(port)))
            link.send({"secret": "a guess"})
            with pytest.raises(EOFError):
                await link.receive()
            link.close()
        assert not accepted and "hung up" in caplog.text

    scenario(run(), 30)
