"""The benchmark's short forms: its clock is read, junk harms nobody, a crowd is refused."""

import asyncio
import os
import time

import aiohttp
import numpy as np
import pytest
from browser import find, needed
from harness import scenario, serving

from benchmarks import serve as benchmark
from benchmarks import serve_faults, serve_fuzz, serve_load

SIZE = {"width": 320, "height": 180}
SLOW = {"recompiles": 0, "seconds": 600, "latency_bound_ms": 127}


@needed
def test_the_clock_in_the_pixels_is_read():
    async def run():
        async with serving(config={**SIZE, "slots": 1}) as server:
            return await asyncio.to_thread(
                benchmark.glass_to_glass, server.url, find(), 3.0, 320, 180
            )

    found = scenario(run())
    assert found["fps"] > 3 and found["unreadable_stamps"] <= 0.1 * 3 * 30
    assert 1 < found["glass_to_glass_ms"]["p50"] < 1000
    assert 0 < found["time_to_first_frame_ms"] < 10_000


def test_a_slow_model_does_not_fall_behind():
    """Steps of 100 ms for pictures every 33: each answer is of a picture that was new."""

    async def run():
        config = {**SIZE, "slots": 1, "step_ms": 100.0}
        async with serving(config=config) as server, aiohttp.ClientSession() as http:
            data = serve_load.picture(320, 180)
            (client,) = await serve_load.admitted(http, server.url, 1, data)
            await client.play(3.0)
            third = len(client.latency_ms) // 3
            first, last = client.latency_ms[:third], client.latency_ms[-third:]
            assert sorted(last)[third // 2] < 5 * sorted(first)[third // 2]

    scenario(run())


def test_a_picture_does_not_grow_old_while_the_model_is_busy():
    """A camera of 100 pictures a second before steps of 100 ms: what is stepped next was taken when
    the step before had nearly ended, and not when it began."""

    async def run():
        config = {**SIZE, "slots": 1, "step_ms": 100.0}
        async with serving(config=config) as server:
            session, data = await server.registry.open(), serve_load.picture(320, 180)
            ages_ms = []

            async def film():
                while True:
                    session.offer(data, 0.0)
                    await asyncio.sleep(0.01)

            filming = asyncio.create_task(film())
            for _ in range(25):
                sample = await session.video.take()
                ages_ms.append(1e3 * (time.perf_counter() - sample.received_s))
            filming.cancel()
            await session.end("ended")
            assert 100 <= np.median(ages_ms[5:]) < 160

    scenario(run())


def test_junk_harms_nobody_and_too_many_are_refused():
    async def run():
        async with serving(config={**SIZE, "slots": 2}, opens_per_minute=100_000) as server:
            fuzz = await serve_fuzz.fuzz(server.url, os.getpid(), 0.002, 320, 180)
            assert fuzz["engine_restarts"] == 0 and fuzz["bystander_frames"] > 10
            assert fuzz["bystander_lost"] == fuzz["untyped_refusals"] == 0
            assert 0 < fuzz["images"]["refused"] <= 20
            assert set(fuzz["sdp"]) <= {"bad_offer", "answer", "bad_message", "ended"}
            assert fuzz["datagrams"]["ports"] > 0 and fuzz["datagrams"]["fps_during"] > 0
            crowd = await serve_load.overload(server.url, 2, 320, 180, seconds=2.0)
            assert (
                crowd["clients"] == 3 * crowd["slots"]
                and crowd["refused"] == 8
                and crowd["refused_ms"]["p50"] < 1000
            )

    scenario(run())


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        ({"recompiles": 0}, False),
        ({"recompiles": 1}, True),
        ({"recompiles": 0, "fuzz": {"engine_restarts": 1}}, True),
        ({"recompiles": 0, "soak_s": 3600, "rss_growth_mib_per_hour_session": 1.1}, True),
        ({"recompiles": 0, "soak_s": 3600, "rss_growth_mib_per_hour_session": 0.9}, False),
        ({"recompiles": 0, "fuzz": {"bystander_lost": 1}}, True),
        ({**SLOW, "glass_to_glass_ms": {"p99": 130}}, True),
        ({**SLOW, "glass_to_glass_ms": {"p99": 120}}, False),
        ({"recompiles": 0, "engine_killed": {"slot_back_s": 6.0}}, True),
        ({"recompiles": 0, "vanished": {"slot_free_after_s": 6.0}}, False),
        (
            {"recompiles": 0, "nonfinite": {"state": {"last_good_shown_again": 0, "counted": 1}}},
            True,
        ),
        ({"recompiles": 0, "soak_s": 20, "rss_growth_mib_per_hour_session": 90.0}, False),
    ],
)
def test_what_must_not_be_fails_the_benchmark(found, broken):
    assert bool(benchmark.broken(found)) == broken


def test_an_engine_killed_by_the_benchmark_costs_the_others_nothing():
    async def run():
        async with serving(config={**SIZE, "slots": 1}, engines=2) as server:
            found = await serve_faults.recovery(server.url, os.getpid(), 1, 320, 180)
            assert found["sessions_ended"] == found["others"] == 1
            assert found["others_lost"] == 0 and found["others_frames"] > 5
            assert 0 < found["slot_back_s"] <= found["first_picture_s"]

    scenario(run())
