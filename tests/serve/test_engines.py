"""Engines: separate processes that may die, hang or not load, without harm to the others."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness import PASS, SMALL, connected, scenario, serving

from lsd_jax.cli.main import main
from lsd_jax.runtime.outputs import VideoOutput
from lsd_jax.serve import launch
from lsd_jax.serve.engine import Engine
from lsd_jax.serve.engines import EngineFailed, EngineHandle
from lsd_jax.serve.link import Link
from lsd_jax.serve.settings import Settings

HERE = Path(__file__).parent


@pytest.fixture
def here(monkeypatch):
    """Engines find the broken models."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def test_a_killed_engine_takes_only_its_own_sessions_and_comes_back(smooth):
    async def run():
        async with serving(engines=2) as server:
            async with connected(server) as a, connected(server) as b:
                await a.start()
                await b.start()
                first, second = server.registry.engines
                assert len(first.sessions) == len(second.sessions) == 1
                on_first = a if first.sessions == {a.messages[0]["session_id"]} else b
                on_second = b if on_first is a else a
                await on_first.show(smooth)
                os.kill(first.pid, signal.SIGKILL)
                for n in range(20):
                    assert (await on_second.show(smooth))[0] == n + 1
                ended = await on_first.until("ended")
                assert ended["reason"].startswith("engine_lost")
                await asyncio.wait_for(first.ready.wait(), 60)
                async with connected(server) as again:
                    await again.start()
                    assert (await again.show(smooth))[0] == 1
                assert server.registry.engines[0].starts == 2

    scenario(run())


def test_an_engine_that_hangs_is_replaced(here):
    async def run():
        model = "broken_models:TroubledModel"
        async with serving(model, SMALL, engine_timeout_s=3.0) as server:
            engine = server.registry.engines[0]
            async with connected(server) as client:
                await client.start()
                await client.socket.send_json({"type": "input", "id": 1, "name": "hang"})
                await client.until("ended")
            while engine.starts < 2:
                await asyncio.sleep(0.05)
            await asyncio.wait_for(engine.ready.wait(), 60)
            async with connected(server) as client:
                await client.start()

    scenario(run())


def test_a_front_that_was_late_blames_no_engine(monkeypatch):
    """A clock that jumps is a front that was held up: nothing was read meanwhile."""
    jumped, monotonic = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + jumped)

    async def run():
        nonlocal jumped
        settings = Settings(model=PASS, engine_timeout_s=15.0)
        engine = EngineHandle(0, settings, lambda *_: None, lambda _: None)
        engine.ready.set()
        watch = asyncio.create_task(engine._watch())
        for seconds, over in ((20.0, False), (3.01, True)):
            await asyncio.sleep(0.01)
            jumped += seconds
            await asyncio.sleep(0.01)
            assert watch.done() is over
        await engine.stop()

    scenario(run())


def test_a_session_that_fails_ends_alone(here, smooth):
    async def run():
        async with serving("broken_models:TroubledModel", SMALL) as server:
            async with connected(server) as bad, connected(server) as good:
                await bad.start()
                await good.start()
                ack = await bad.ask("input", name="wrong")
                assert ack["code"] == "invalid_args" and "publish a contiguous" in ack["message"]
                assert (await good.show(smooth))[0] == 1
                assert (await bad.show(smooth))[0] == 1

    scenario(run())


def test_a_session_that_cannot_be_opened_is_told_why(here):
    async def run():
        async with serving("broken_models:Unopenable", SMALL) as server:
            async with connected(server) as client:
                await client.start()
                assert "not today" in (await client.until("ended"))["reason"]
            assert server.registry.free == 2

    scenario(run())


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        ("broken_models:Unloadable", {}, "no checkpoint here"),
        ("broken_models:Dying", {}, "ended while it loaded"),
        ("broken_models:Nothing", {}, "no class of lsd_jax.runtime.Model"),
        ("no_such_module:X", {}, "does not import"),
        ("lsd_jax.live.drive:DriveModel", {"slots": 3}, "takes no settings"),
        ("lsd_jax.live.passthrough:PassThroughModel", {"depth": 3}, "depth"),
    ],
)
def test_a_model_that_does_not_load_is_told_why(here, model, config, words):
    async def run():
        async with serving(model, config, ready=False) as server:
            with pytest.raises(EngineFailed, match=words):
                await asyncio.wait_for(server.registry.wait_ready(), 80)

    scenario(run())


def test_the_command_serves_drains_and_ends(tmp_path):
    """SIGTERM: the client is told, the process ends by itself and well."""
    report = tmp_path / "r.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lsd_jax.cli.main", "serve"]
    command += ["lsd_jax.live.drive:DriveModel", "--port", str(port), "--json", str(report)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        assert f"http://localhost:{port} is up" in lines[0] and "8 slots" in lines[1]

        async def run():
            class At:
                url = f"http://127.0.0.1:{port}"

            async with connected(At) as client:
                await client.start()
                process.send_signal(signal.SIGTERM)
                assert (await client.until("ended"))["reason"] == "draining"

        scenario(run())
        assert process.wait(60) == 0
        assert '"ready_s"' in report.read_text()
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_is_told(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "lsd_jax.live.drive:DriveModel", "--port", str(port)]) == 2
    error = capsys.readouterr().err.strip()
    assert "--port 0" in error and "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "LSD_API_KEY"),
        (["nonsense"], "package.module:Class"),
        (["--option", "x"], "name=value"),
        (["--opens-per-minute", "0"], "opens_per_minute=0"),
        (["--max-session-s", "nan"], "max_session_s=nan"),
        (["--resource", "GPU"], "NAME=AMOUNT"),
        (["--resource", "GPU=1"], "--engine ray"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words, capsys, monkeypatch):
    monkeypatch.delenv("LSD_API_KEY", raising=False)
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error


def test_each_engine_has_a_device_of_its_own(monkeypatch):
    """Where there are several, and the user has not shared the devices out."""
    names = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES",
             "NEURON_RT_VISIBLE_CORES", "NEURON_RT_NUM_CORES")  # fmt: skip
    for name in names:
        monkeypatch.delenv(name, raising=False)
    first, second = launch.device(0), launch.device(1)
    for name in ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "NEURON_RT_VISIBLE_CORES"):
        assert (first[name], second[name]) == ("0", "1")
    assert second["TPU_PROCESS_BOUNDS"] == second["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,1,1"
    assert first["TPU_MESH_CONTROLLER_PORT"] != second["TPU_MESH_CONTROLLER_PORT"]
    monkeypatch.setenv("TPU_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("NEURON_RT_NUM_CORES", "2")
    assert launch.device(1) == {"CUDA_VISIBLE_DEVICES": "1"}
    one, two = (Settings(model=PASS, engines=count) for count in (1, 2))
    launchers = [launch.launcher(settings, 1) for settings in (one, two)]
    assert [found._environment for found in launchers] == [{}, {"CUDA_VISIBLE_DEVICES": "1"}]
    for found in launchers:
        found.close()


def test_an_engine_finds_that_device_in_its_environment(here, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "0-7")

    async def run():
        async with serving("sticky_models:DeviceModel", SMALL, engines=2) as server:
            found = [e.manifest["model"]["description"] for e in server.registry.engines]
            assert found == ["0 0-7", "1 0-7"]

    scenario(run())


def test_a_picture_waits_for_the_one_before_and_is_counted():
    """Of each video output, one at a time is on its way to the front."""

    async def run():
        ours, theirs = socket.socketpair()
        link = Link(*await asyncio.open_unix_connection(sock=ours))
        engine = Engine(link)
        spec = VideoOutput("v", 640, 360)
        send = engine._sender("s")
        for n in range(10):
            send(spec, np.full(spec.shape, n, np.uint8), float(n))
        assert engine._unsent == {"s": 9}  # nobody reads, and a picture is more than a socket holds
        other = Link(*await asyncio.open_unix_connection(sock=theirs))
        assert (await other.receive())[0]["ts_ms"] == 0.0
        await asyncio.sleep(0.05)
        send(spec, np.full(spec.shape, 11, np.uint8), 11.0)
        assert (await other.receive())[0]["ts_ms"] == 11.0 and engine._unsent == {"s": 9}
        other.close()
        link.close()

    scenario(run(), 20)


def test_drops_are_exported_where_they_happen():
    async def run():
        async with serving(config=SMALL) as server:
            session = await server.registry.open()
            for model in (3, 5):
                counts = {"nonfinite": 1, "dropped": {"model": model, "link": 2}}
                report = {"step_ms": [], "sessions": {session.id: counts}}
                server.registry._note(server.registry.engines[0], report)
            text = server.metrics.text().decode()
            assert 'lsd_frames_dropped_total{where="model"} 5.0' in text
            assert 'lsd_frames_dropped_total{where="link"} 2.0' in text
            assert "lsd_nonfinite_total 1.0" in text

    scenario(run())
