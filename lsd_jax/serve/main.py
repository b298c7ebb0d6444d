"""Runs a server until it is told to stop: ready or refused in words, drained at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from aiohttp import web

from lsd_jax.heap import give_back, share_arenas
from lsd_jax.reports import provenance, write_json
from lsd_jax.serve.app import Server
from lsd_jax.serve.engines import EngineFailed
from lsd_jax.serve.settings import Settings


def serve(settings: Settings, report: str | None = None) -> None:
    """Serves until Ctrl-C or a termination, then drains. Raises ValueError where the model does not
    load or the port is taken."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    share_arenas()
    asyncio.run(_serve(settings, report))


async def _serve(settings: Settings, report: str | None) -> None:
    started = time.perf_counter()
    server = Server(settings)
    runner = web.AppRunner(
        server.app,
        access_log=None,  # no URL in a log: it may hold a token
        shutdown_timeout=settings.drain_s,
    )
    await runner.setup()
    giving_back = asyncio.create_task(give_back())
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        site = web.TCPSite(runner, settings.host, settings.port, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise ValueError(
                f"cannot listen on {where} ({error.strerror}); try --port 0"
            ) from error
        host, port = runner.addresses[0][:2]
        shown = "localhost" if settings.loopback else host
        print(f"loading {settings.model}; http://{shown}:{port} is up", flush=True)
        await _until_ready(server, stop)
        if not stop.is_set():
            ready_s = time.perf_counter() - started
            slots = sum(engine.slots for engine in server.registry.engines)
            print(f"ready after {ready_s:.1f} s: {slots} slots. Ctrl-C stops.", flush=True)
            write_json(report, {"ready_s": ready_s, "slots": slots, **provenance()})
            await stop.wait()
        print("draining", flush=True)
    finally:
        giving_back.cancel()
        await runner.cleanup()


async def _until_ready(server: Server, stop: asyncio.Event) -> None:
    ready = asyncio.create_task(server.registry.wait_ready())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([ready, stopping], return_when="FIRST_COMPLETED")
    stopping.cancel()
    if not ready.done():
        ready.cancel()
        return
    try:
        ready.result()
    except EngineFailed as failure:
        raise ValueError(f"the model did not load: {failure}") from None
