"""The step's process: loads a model, hosts its sessions, speaks to the front over a local socket.

python -m lsd_jax.serve.engine SOCKET, or an actor on a Ray cluster, started by the front, which
sends the settings first.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from lsd_jax.heap import give_back, share_arenas
from lsd_jax.runtime import (
    Frame,
    InputError,
    Limits,
    LoadContext,
    Model,
    OutputSpec,
    SessionHost,
    State,
    build_model_definition,
)
from lsd_jax.serve.link import Link, TooLarge

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def find_model(path: str) -> type[Model]:
    """The class at `package.module:Class`. Raises ValueError, with what to do."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a model in the directory that one works in
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"model {path!r} does not import: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ValueError(
            f"{path!r} is no class of lsd_jax.runtime.Model; give package.module:Class"
        )
    return found


def configure(model: type[Model], values: dict[str, Any]) -> Any:
    """An instance of the model's `config_cls`. Raises ValueError for fields it does not have."""
    if model.config_cls is None:
        if values:
            raise ValueError(
                f"model {model.name!r} takes no settings; leave out {', '.join(values)}"
            )
        return None
    try:
        return model.config_cls(**values)
    except TypeError as error:
        raise ValueError(f"settings of model {model.name!r}: {error}") from error


class Engine:
    """A loaded model and its sessions, driven by messages."""

    def __init__(self, link: Link):
        self._link = link
        self._hosts: dict[str, SessionHost] = {}
        self._tasks: set[asyncio.Task] = set()
        self._unsent: dict[str, int] = {}  # pictures that found the one before still on its way
        self._recompiles = 0

    async def run(self) -> None:
        """Serves until the front is gone or asks to stop."""
        start, _ = await self._link.receive()
        cls = find_model(start["model"])
        self._model = cls()
        config, log = configure(cls, start["config"]), logging.getLogger(f"lsd.{cls.name}")
        self._model.bind_runtime(config, log)
        self._limits = Limits(**start["limits"])
        await self._model.load(LoadContext(config, log))
        self._definition = build_model_definition(self._model)
        self._count_compiles()
        self._link.send(
            {
                "type": "ready",
                "manifest": self._definition.to_dict(),
                "slots": self._model.slots,
                "backend": _backend(),
                "pid": os.getpid(),
            }
        )
        beside = [asyncio.create_task(work) for work in (self._report(), give_back())]
        try:
            await self._serve()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*(host.end("drained") for host in list(self._hosts.values())))
            await self._model.unload()

    async def _serve(self) -> None:
        while True:
            try:
                header, body = await self._link.receive()
            except EOFError:
                return
            if header["type"] == "stop":
                return
            if header["type"] == "ping":
                self._link.send({"type": "pong"})
            elif header["type"] == "open":
                self._open(header)
            elif header["type"] == "frame":
                self._frame(header, body)
            else:
                task = asyncio.create_task(self._request(header, body))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _open(self, header: dict[str, Any]) -> None:
        id = header["session"]

        def wanted(name: str, in_s: float) -> None:
            told = {"type": "want", "session": id, "input": name, "in_ms": 1e3 * in_s}
            self._link.send(told)

        try:
            host = SessionHost(
                self._model,
                self._definition,
                id,
                self._sender(id),
                lambda state, reason: self._over(id, state, reason),
                wanted,
                self._limits,
                header["seed"],
            )
        except Exception as error:  # whatever a model's constructor may raise
            logging.getLogger("lsd.engine").exception("opening a session failed")
            reason = f"{type(error).__name__}: {error}"[:1000]
            self._link.send({"type": "ended", "session": id, "state": "FAILED", "reason": reason})
            return
        self._hosts[id] = host
        host.start()
        self._link.send({"type": "opened", "session": id})

    def _sender(self, id: str) -> Callable[[OutputSpec, Any, float], None]:
        places: dict[str, int] = {}  # of each video output's sample before

        def send(spec: OutputSpec, sample: Any, ts_ms: float) -> None:
            video = spec.kind == "video"
            if video and not self._link.has_sent(places.get(spec.name, 0)):
                self._unsent[id] = self._unsent.get(id, 0) + 1  # the next will be newer
                return
            header = {"type": "output", "session": id, "output": spec.name, "ts_ms": ts_ms}
            place = self._link.send(header, sample)
            if video:
                places[spec.name] = place

        return send

    def _over(self, id: str, state: State, reason: str) -> None:
        host = self._hosts.pop(id, None)
        told = {"type": "ended", "session": id, "state": state.value, "reason": reason}
        if host:
            told |= self._counts(id, host)
        self._unsent.pop(id, None)
        self._link.send(told)

    def _counts(self, id: str, host: SessionHost) -> dict[str, Any]:
        """What a session's frames came to that were not shown, ever."""
        untaken = sum(box.dropped for box in host.ctx.video_inputs.values())
        dropped = {"model": untaken, "link": self._unsent.get(id, 0)}
        return {"nonfinite": host.ctx.nonfinite, "dropped": dropped}

    def _frame(self, header: dict[str, Any], body: bytes) -> None:
        host = self._hosts.get(header["session"])
        if host is None or host.over:
            return
        width, height = self._definition.video_inputs[header["input"]]
        image = np.frombuffer(body, np.uint8).reshape(height, width, 3)
        host.offer(header["input"], Frame(image, header["ts_ms"], header["seq"]))

    async def _request(self, header: dict[str, Any], body: bytes) -> None:
        """Answers one of a session's requests, well or by a typed refusal."""
        answer: dict[str, Any] = {"type": "answer", "request": header.get("request"), "ok": True}
        data = b""
        try:
            host = self._hosts.get(header["session"])
            if host is None:
                raise InputError("ended", "the session is over; open another")
            match header["type"]:
                case "input":
                    await host.call(header["name"], header["args"])
                case "upload":
                    sha256 = header.get("sha256")
                    filename, mime_type = header["filename"], header["mime_type"]
                    upload = host.upload(filename, mime_type, body, sha256)
                    answer["upload_id"] = await upload
                case "pause":
                    host.pause()
                case "resume":
                    host.resume()
                case "end":
                    await host.end(header.get("reason", "ended"))
                case "snapshot":
                    data = await host.snapshot()
                case "restore":
                    await host.restore(body)
                case other:
                    raise InputError("unknown_input", f"no request {other!r}")
        except InputError as error:
            answer |= {"ok": False, "code": error.code, "message": str(error)}
        except (ValueError, NotImplementedError) as error:
            answer |= {"ok": False, "code": "invalid_args", "message": " ".join(str(error).split())}
        except Exception as error:
            logging.getLogger("lsd.engine").exception("a request failed")
            words = f"{type(error).__name__}; try again, or open another session"
            answer |= {"ok": False, "code": "model_error", "message": words}
        try:
            self._link.send(answer, data)
        except TooLarge as error:
            refusal = {"type": "answer", "request": header.get("request"), "ok": False}
            self._link.send({**refusal, "code": "too_large", "message": f"the answer: {error}"})

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1)
            sessions = {
                id: {
                    "inference_ms_p50": host.ctx.inference_ms(50),
                    "inference_ms_p99": host.ctx.inference_ms(99),
                    "outputs": host.ctx.output_metrics(),
                    **self._counts(id, host),
                }
                for id, host in self._hosts.items()
            }
            report = {"type": "report", "sessions": sessions, "recompiles": self._recompiles}
            self._link.send({**report, "step_ms": self._new_steps()})

    def _new_steps(self) -> list[float]:
        """Durations of the steps since the last report, in ms."""
        new: list[float] = []
        for host in self._hosts.values():
            new += host.ctx.take_inference_ms()
        return new

    def _count_compiles(self) -> None:
        """Whatever XLA compiles from now on should not have been left to do."""
        if "jax" not in sys.modules:
            return
        import jax

        def note(event: str, duration_secs: float, **_: str | int) -> None:
            self._recompiles += event == _COMPILE_EVENT

        jax.monitoring.register_event_duration_secs_listener(note)


def _backend() -> str:
    if "jax" not in sys.modules:
        return "none"
    import jax

    return jax.default_backend()


async def call(address: str, secret: str = "") -> None:
    """Serves the front that listens at `address`, a socket's path or HOST:PORT, until it is gone.

    `secret` is said first, where there is one. Raises SystemExit where the model does not load.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    share_arenas()
    if address.startswith("/"):
        link = Link(*await asyncio.open_unix_connection(address, limit=1 << 22))
    else:
        host, _, port = address.rpartition(":")
        link = Link(*await asyncio.open_connection(host, int(port), limit=1 << 22))
    if secret:
        link.send({"secret": secret})
    try:
        await Engine(link).run()
    except Exception as error:
        logging.getLogger("lsd.engine").exception("the engine failed")
        link.send(
            {"type": "failed", "message": " ".join(f"{error}".split())[:2000] or repr(error)[:2000]}
        )
        await asyncio.sleep(0.2)  # lets the front read it
        raise SystemExit(2) from None


if __name__ == "__main__":
    asyncio.run(call(sys.argv[1]))
