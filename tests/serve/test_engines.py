"""Engines: separate processes that may die, hang or not load, without harm to the others."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import SMALL, connected, scenario, serving

from lsd_jax.cli.main import main
from lsd_jax.serve.engines import EngineFailed

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
