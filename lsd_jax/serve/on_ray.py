"""Engines as actors of a Ray cluster: each where the accelerator that it asks for is free.

An actor calls the front back over TCP, and its first message is a secret that it was given when it
was started; whoever says another is hung up on. The link is not encrypted: it is meant for the
network inside of a cluster.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import Callable
from typing import Any

import ray

from lsd_jax.serve.launch import cache
from lsd_jax.serve.link import Link

_log = logging.getLogger("lsd.serve")
_connecting = threading.Lock()
CALL_S = 10.0
"""In which a caller must have said the secret."""


def connect() -> None:
    """Joins the cluster at `RAY_ADDRESS`, or starts one on this machine."""
    with _connecting:
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        alone: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(namespace="lsd", logging_level=logging.WARNING, **alone)


class EngineActor:
    """An engine in an actor's process."""

    def run(self, address: str, secret: str) -> None:
        """Serves the front at `address` until it is gone."""
        for name, value in cache().items():
            os.environ.setdefault(name, value)
        from lsd_jax.serve import engine  # here: a model's JAX reads the environment

        asyncio.run(engine.call(address, secret))


class RayProcess:
    """An actor that runs an engine."""

    def __init__(self, actor: Any, running: Any):
        self._actor, self._running = actor, running

    async def wait(self) -> None:
        """Returns when the actor has ended or was lost."""
        try:
            await asyncio.wrap_future(self._running.future())
        except Exception as error:  # of the actor, its node or the cluster: it is gone
            _log.warning("an engine's actor ended: %s", type(error).__name__)

    def kill(self) -> None:
        """Kills the actor."""
        ray.kill(self._actor)


class RayLauncher:
    """Engines as actors that ask for `resources`, such as `{"CPU": 1, "GPU": 1}`."""

    def __init__(self, resources: dict[str, float]):
        asked = {"CPU": 1.0, **resources}
        self._options: dict[str, Any] = {"num_cpus": asked.pop("CPU"), "max_restarts": 0}
        self._options |= {"num_gpus": asked.pop("GPU", 0.0), "resources": asked}
        self._secret = secrets.token_hex(32)

    async def listen(self, accept: Callable[[Link], None]) -> tuple[asyncio.Server, str]:
        """On a port of this node's address in the cluster."""
        await asyncio.to_thread(connect)

        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = Link(reader, writer)
            try:
                async with asyncio.timeout(CALL_S):
                    said, _ = await link.receive()
            except (EOFError, TimeoutError, ValueError):
                said = {}
            if secrets.compare_digest(str(said.get("secret")).encode(), self._secret.encode()):
                accept(link)
            else:
                _log.warning("a caller who is no engine was hung up on")
                link.close()

        host = ray.util.get_node_ip_address()
        server = await asyncio.start_server(called, host, 0, limit=1 << 22)
        return server, f"{host}:{server.sockets[0].getsockname()[1]}"

    async def start(self, address: str) -> RayProcess:
        """An actor; it waits until the cluster has what it asks for."""
        actor = ray.remote(EngineActor).options(**self._options).remote()
        return RayProcess(actor, actor.run.remote(address, self._secret))

    def close(self) -> None:
        """Nothing: the cluster outlives an engine."""
