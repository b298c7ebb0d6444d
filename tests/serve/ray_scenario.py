"""What `test_ray.py` runs in a process of its own: Ray forks, which JAX in its parent forbids."""

import asyncio
import logging
import os
import signal

import numpy as np
import ray
from harness import connected, scenario, serving

from lsd_jax.serve.link import Link
from lsd_jax.serve.on_ray import RayLauncher

PICTURE = np.full((48, 64, 3), 120, np.uint8)


async def a_killed_actor_takes_only_its_own_sessions_and_is_replaced():
    async with serving(engine="ray", engines=2) as server:
        engines = server.registry.engines
        assert len({os.getpid(), *(engine.pid for engine in engines)}) == 3
        async with connected(server) as a, connected(server) as b:
            started = [(await client.start())["session_id"] for client in (a, b)]
            first, second = engines
            lost, kept = (a, b) if first.sessions == {started[0]} else (b, a)
            assert (await lost.show(PICTURE))[0] == 1
            os.kill(first.pid, signal.SIGKILL)
            for n in range(20):
                assert (await kept.show(PICTURE))[0] == n + 1
            assert (await lost.until("ended"))["reason"].startswith("engine_lost")
            await asyncio.wait_for(first.ready.wait(), 60)
            async with connected(server) as again:
                started = await again.start()
                assert (await again.show(PICTURE))[0] == 1
                again.vanish()
            async with connected(server) as back:  # to the same session of the same actor
                await back.start(session=started["session_id"], secret=started["secret"])
                assert (await back.show(PICTURE))[0] == 2
            assert (first.starts, second.starts) == (2, 1)


async def who_does_not_know_the_secret_is_no_engine():
    accepted = []
    server, address = await RayLauncher({}).listen(accepted.append)
    host, _, port = address.rpartition(":")
    async with server:
        link = Link(*await asyncio.open_connection(host, int(port)))
        link.send({"secret": "a guess"})
        try:
            raise AssertionError(f"it was answered: {await link.receive()}")
        except EOFError:
            link.close()
    assert not accepted


if __name__ == "__main__":
    logging.basicConfig()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="lsd")
    scenario(a_killed_actor_takes_only_its_own_sessions_and_is_replaced(), 150)
    scenario(who_does_not_know_the_secret_is_no_engine(), 30)
    ray.shutdown()
