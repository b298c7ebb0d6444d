"""What is kept of a running stream: right percentiles, in memory that does not grow with it."""

import os
import queue
import signal
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
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
    found = figures(alone, 0.5, 1.0)
    assert found["latency_ms"] == {"p50": 900.0, "p99": 900.0, "max": 900.0}
    assert found["fps"] is None


class Echo(Session):
    """A session that gives back what it is given."""

    chips, backends = 1, {}

    def __init__(self):
        self.clock, self.config = Clock(), SimpleNamespace(name="none")

    def condition(self, prompt, reference): ...

    def step(self, frame):
        self.clock.launches += 1
        self.clock.execute_ms.add(0.1)
        return frame

    def dispatch_ms(self, calls=50):
        return 0.0


class Nowhere:
    """A sink that only counts."""

    frames, partial = 0, False

    def write(self, image, time_s=None):
        self.frames += 1

    def keep_partial(self):
        self.partial = True


def frames_of(count, size=2):
    for n in range(count):
        yield np.full((size, size, 3), n, np.uint8), n / 30


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


def test_a_prompt_whose_time_never_comes_is_warned_of(caplog):
    schedule = [(0.0, "snow"), (50.0, "film noir"), (0.1, "rain")]
    assert play(Echo(), frames_of(6), Nowhere(), schedule)["frames"] == 6
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "the input ended before 50 s, when 'film noir' was to come"


def test_a_stream_can_be_played_outside_the_main_thread():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(play, Echo(), frames_of(3), Nowhere(), []).result()["frames"] == 3


def test_one_interruption_ends_the_wait_for_a_frame_that_does_not_come():
    def stalls():
        yield from frames_of(2)
        os.kill(os.getpid(), signal.SIGINT)
        queue.Queue().get(timeout=20)  # Empty, where nobody ends it

    sink, before = Nowhere(), signal.getsignal(signal.SIGINT)
    report = play(Echo(), stalls(), sink, [])
    assert report["frames"] == 2 and report["interrupted"] and sink.partial
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_not_finite_ends_a_stream_and_is_not_shown(small_model, small_config):
    """Weights that predict it at once, then a state that turns so in the middle of a stream."""
    sink = Nowhere()
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), small_model.readout)
    small_model, whole = jax.tree.map(lambda x: x, small_model), small_model
    small_model.readout = broken
    with pytest.raises(ValueError, match="frame 1 is not a number in .*float32; set"):
        play(Session(small_model, small_config), frames_of(3, 32), sink, [(0.0, "snow")])
    assert not sink.frames and not sink.partial

    session = Session(whole, small_config)

    def poisoned():
        for n, item in enumerate(frames_of(4, 32)):
            if n == 2:
                kv = session._state.kv
                session._state = session._state.replace(kv=replace(kv, k=kv.k * jnp.nan))
            yield item

    with pytest.raises(ValueError, match="frame 3 is not .*the 2 frames before it are kept"):
        play(session, poisoned(), sink, [(0.0, "snow")])
    assert sink.frames == 2 and sink.partial
