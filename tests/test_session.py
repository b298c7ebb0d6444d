"""What is kept of a running stream: right percentiles, in memory that does not grow with it."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsd_jax.session import Clock, Session, figures, play
from lsd_jax.times import Times


def timed(times_ms):
    found = Times()
    for ms in times_ms:
        found.add(ms)
    return found


@given(
    st.lists(st.floats(1e-3, 9e5), min_size=2, max_size=200),
    st.sampled_from((0, 1, 50, 99, 99.9, 100)) | st.floats(0, 100),
)
def test_percentiles_are_numpys_within_a_twentieth_of_a_percent(times_ms, percent):
    found = timed(times_ms)
    expected = np.percentile(times_ms[1:], percent)  # the first warms caches
    np.testing.assert_allclose(found.percentile(percent), expected, rtol=5.001e-4)
    assert found.max == max(times_ms) and found.count == len(times_ms)
    assert list(found.recent) == times_ms[-250:]


def test_times_beyond_all_sense_are_counted_too():
    found = timed([1.0, 0.0, -1.0, 1e-9, 1e9, 1e9])
    assert 0 < found.percentile(0) < 2e-3 and found.max == 1e9
    assert 9e5 < found.percentile(100) <= 1e9


def test_the_first_frame_counts_in_none_but_max():
    clock = Clock(launches=3)
    for latency_ms, host_ms in ((900.0, 80.0), (10.0, 2.0), (20.0, 4.0)):
        clock.latency_ms.add(latency_ms)
        clock.host_ms.add(host_ms)
    found = figures(clock, wall_s=0.5, dispatch_ms=1.0)
    assert (found["frames"], found["fps"], found["latency_ms"]["max"]) == (3, 4.0, 900.0)
    assert found["latency_ms"]["p50"] == pytest.approx(15, rel=5e-4)
    assert found["host_ms_p50"] == pytest.approx(4, rel=5e-4)  # 3, and the dispatch
    alone = Clock(timed([900.0]), timed([800.0]), timed([80.0]), launches=1)
    assert figures(alone, 0.5, 1.0)["latency_ms"] == {"p50": 900.0, "p99": 900.0, "max": 900.0}


class Echo(Session):
    """A session that gives back what it is given."""

    chips, backends = 1, {}

    def __init__(self):
        self.clock, self.config = Clock(), SimpleNamespace(name="none")

    def step(self, frame):
        self.clock.launches += 1
        self.clock.execute_ms.add(0.1)
        return frame

    def dispatch_ms(self, calls=50):
        return 0.0


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, image, time_s=None): ...

    def keep_partial(self): ...


def test_memory_does_not_grow_with_the_age_of_a_stream():
    frame, kept = np.zeros((2, 2, 3), np.uint8), []

    def source():
        for n in range(5_000):
            if n in (1_000, 4_999):
                kept.append(tracemalloc.get_traced_memory()[0])
            yield frame, n / 30

    tracemalloc.start()
    try:
        report = play(Echo(), source(), Nowhere(), [])
    finally:
        tracemalloc.stop()
    assert report["frames"] == 5_000 and report["launches_per_frame"] == 1
    assert kept[1] - kept[0] < 100_000  # three floats a frame would be 380,000
