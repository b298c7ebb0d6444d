"""How the process of an engine is started, and how it finds its way back to the front."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

from lsd_jax.serve.link import Link
from lsd_jax.serve.settings import Settings


@runtime_checkable
class Process(Protocol):
    """A started engine, wherever it runs."""

    async def wait(self) -> None:
        """Returns when it has ended, well or not."""
        ...

    def kill(self) -> None:
        """Ends it at once; without effect where it has ended."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """Starts engines of one handle, one after the other."""

    async def listen(self, accept: Callable[[Link], None]) -> tuple[asyncio.Server, str]:
        """Waits for an engine to call at the address that it gives; `accept` gets its link."""
        ...

    async def start(self, address: str) -> Process:
        """An engine that will call at `address`."""
        ...

    def close(self) -> None:
        """Lets go of what it holds."""
        ...


def launcher(settings: Settings, number: int = 0) -> Launcher:
    """The launcher of engine `number`, as the settings ask for it. Raises ValueError where its
    package is absent."""
    if settings.engine == "process":
        return LocalLauncher(device(number) if settings.engines > 1 else {})
    try:
        from lsd_jax.serve.on_ray import RayLauncher
    except ModuleNotFoundError as error:
        raise ValueError(f"no {error.name}; install it by pip install -e '.[ray]'") from error
    return RayLauncher(dict(settings.resources))


class LocalProcess:
    """A process of this machine."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process

    async def wait(self) -> None:
        """Returns when it has ended."""
        await self._process.wait()

    def kill(self) -> None:
        """Kills it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


class LocalLauncher:
    """Engines as processes of this machine, on sockets in a folder of this user alone. Each has
    `environment` beside ours, which says which device is its own."""

    def __init__(self, environment: dict[str, str] | None = None):
        self._environment = environment or {}
        self._folder, self._started = TemporaryDirectory(prefix="lsd-engine-"), 0

    async def listen(self, accept: Callable[[Link], None]) -> tuple[asyncio.Server, str]:
        """On a socket in that folder."""
        self._started += 1
        path = str(Path(self._folder.name) / f"{self._started}.sock")

        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accept(Link(reader, writer))

        return await asyncio.start_unix_server(called, path, limit=1 << 22), path

    async def start(self, address: str) -> LocalProcess:
        """Starts `python -m lsd_jax.serve.engine`, without the front's secrets."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LSD_")}
        variables = cache() | self._environment | kept
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lsd_jax.serve.engine", address, env=variables,
            start_new_session=True,  # Ctrl-C is the front's to handle
        )  # fmt: skip
        return LocalProcess(process)

    def close(self) -> None:
        """Removes the folder."""
        self._folder.cleanup()


def device(number: int) -> dict[str, str]:
    """Environment variables by which engine `number` has one accelerator to itself: a GPU, a TPU
    chip or a NeuronCore; none of a kind that the user has shared out already.

    Those of TPUs also say that the process is a slice of its own, and a port that no other uses.
    """
    n, port = str(number), str(8476 + number)
    kinds = (
        (("CUDA_VISIBLE_DEVICES",), {"CUDA_VISIBLE_DEVICES": n}),
        (
            ("TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES"),
            {
                "TPU_VISIBLE_CHIPS": n,
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
                "TPU_MESH_CONTROLLER_ADDRESS": f"localhost:{port}",
                "TPU_MESH_CONTROLLER_PORT": port,
            },
        ),
        (("NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES"), {"NEURON_RT_VISIBLE_CORES": n}),
    )
    given: dict[str, str] = {}
    for shared, variables in kinds:
        if not set(shared) & set(os.environ):
            given |= variables
    return given


def cache() -> dict[str, str]:
    """Environment variables by which an engine keeps what it compiles, also what takes no time: a
    hundred such things take a second, each time that an engine is replaced."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return {
        "JAX_COMPILATION_CACHE_DIR": str(home / "lsd-jax" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
