"""What a session sees of the world outside."""

import asyncio
import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lsd_jax.runtime import context, publish


def test_metrics_of_a_session(monkeypatch):
    """By a clock of the test's own, as nobody knows when a busy machine runs what."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.01 * next(ticks), time=time.time)

    async def run():
        sent = []
        ctx = context.SessionContext(
            "s",
            {"v": publish.video("v", width=6, height=4)},
            lambda *sample: sent.append(sample),
            asyncio.sleep,
        )
        assert ctx.inference_ms_p50() is None and ctx.output_metrics() == {}
        for ms in (1, 2, 30):
            ctx.record_inference_ms(ms)
        assert ctx.inference_ms_p50() == 2
        monkeypatch.setattr(context, "time", clock)  # read twice for each sample: 20 ms
        for _ in range(5):
            await ctx.publish("v", np.zeros((4, 6, 3), np.uint8))
        assert len(sent) == 5
        assert ctx.output_metrics()["v"]["effective_fps"] == pytest.approx(50)

    asyncio.run(run())
