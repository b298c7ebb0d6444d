"""A hosted session: acknowledged inputs, newest frames, bounds, pauses, guards, endings."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsd_jax.live.drive import DriveModel
from lsd_jax.runtime import (
    Frame,
    InputError,
    InputFile,
    Limits,
    Mailbox,
    Model,
    OutputValidationError,
    Session,
    SessionHost,
    State,
    build_model_definition,
    image_input,
    input,
    mailbox,
    publish,
)

SIZE = (4, 6)


class Echo(Session):
    camera = input.video()

    def __init__(self, model, ctx):
        super().__init__(model, ctx)
        self.seen, self.closed, self.resets, self.taken = [], 0, 0, []
        self.gate, self.finite = asyncio.Event(), True
        self.gate.set()
        model.sessions.append(self)

    @input()
    async def number(self, value: float, times: int = 1) -> None:
        self.seen.append((value, times))

    @input()
    async def wait(self) -> None:
        await self.gate.wait()

    @input()
    def fail(self, kind: str) -> None:
        raise {"value": ValueError("say\nplease"), "other": OSError(), "time": TimeoutError()}[kind]

    @input(paused=True)
    def picture(self, image: InputFile = image_input(max_bytes=20_000)) -> None:
        self.seen.append(image.image(8, 8).shape)

    async def run(self):
        async for frame in self.camera:
            self.taken.append(frame.seq)
            await self.gate.wait()
            await self.ctx.publish("v", frame.image, frame.ts_ms, self.finite)

    async def reset(self):
        self.resets += 1

    async def close(self):
        self.closed += 1


class EchoModel(Model):
    name = "echo"
    session_cls = Echo
    outputs = (publish.video("v", width=SIZE[1], height=SIZE[0]), publish.json("j"))

    def __init__(self):
        self.sessions = []


def frame(seq):
    return Frame(np.full((*SIZE, 3), seq, np.uint8), float(seq), seq)


@asynccontextmanager
async def hosted(model=None, **limits):
    """A started host with its session, and what it sent and how it ended."""
    model = model or EchoModel()
    sent, ends, wanted = [], [], []
    host = SessionHost(
        model,
        build_model_definition(model),
        "s1",
        lambda spec, sample, ts: sent.append((spec.name, sample, ts)),
        lambda state, reason: ends.append((state, reason)),
        lambda name, in_s: wanted.append(name),
        Limits(**limits),
    )
    host.sent, host.ends, host.wanted = sent, ends, wanted
    host.start()
    try:
        yield host, getattr(model, "sessions", [None])[0]
    finally:
        await host.end()


def scenario(coroutine):
    """Runs it, and never for longer than twenty seconds."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def refused(awaitable, code):
    with pytest.raises(InputError) as caught:
        await awaitable
    assert caught.value.code == code
    return str(caught.value)


def test_the_newest_frame_wins_and_the_rest_are_counted():
    async def run():
        async with hosted() as (host, session):
            session.gate.clear()
            host.offer("camera", frame(0))
            await until(lambda: session.taken == [0])
            for seq in range(1, 10):
                host.offer("camera", frame(seq))
            session.gate.set()
            await until(lambda: len(host.sent) == 2)
            assert session.taken == [0, 9]
            assert host.ctx.video_inputs["camera"].dropped == 8
            assert [ts for *_, ts in host.sent] == [0.0, 9.0]
            assert host.wanted == ["camera"] * 3  # at the start, and whenever one was taken

    scenario(run())


def test_inputs_are_acknowledged_in_order():
    async def run():
        async with hosted() as (host, session):
            calls = [host.call("number", {"value": n, "times": n}) for n in range(20)]
            await asyncio.gather(*calls)
            assert session.seen == [(n, n) for n in range(20)]

    scenario(run())


@pytest.mark.parametrize(
    "args",
    [
        {}, {"value": "1"}, {"value": True}, {"value": None}, {"value": float("nan")},
        {"value": float("inf")}, {"value": 1, "more": 2}, {"value": 1, "times": 1.5}, [], None, "x",
        {"value": {"a": 1}},
    ],
)  # fmt: skip
def test_arguments_of_another_kind_are_refused(args):
    async def run():
        async with hosted() as (host, session):
            await refused(host.call("number", args), "invalid_args")
            await host.call("number", {"value": 2})
            assert session.seen == [(2.0, 1)]

    scenario(run())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(("number", "picture", "none", "fail")), args=JSON)
def test_whatever_comes_is_taken_or_refused_by_type(name, args):
    """Any JSON: the session lives on, and takes numbers only."""

    async def run():
        async with hosted() as (host, session):
            try:
                await host.call(name, args)
            except InputError as error:
                assert str(error) and "\n" not in str(error)
            assert host.state is State.RUNNING
            assert all(isinstance(value, float) for value, _ in session.seen)

    scenario(run())


def test_each_refusal_has_its_code():
    async def run():
        async with hosted(input_timeout_s=0.05) as (host, session):
            assert "number" in await refused(host.call("nothing", {}), "unknown_input")
            words = await refused(host.call("fail", {"kind": "value"}), "invalid_args")
            assert words == "say please"
            await refused(host.call("fail", {"kind": "other"}), "model_error")
            session.gate.clear()
            await refused(host.call("wait", {}), "timed_out")
            session.gate.set()
            await host.call("wait", {})
        await refused(host.call("wait", {}), "ended")

    scenario(run())


def test_the_queue_of_inputs_is_bounded():
    async def run():
        async with hosted(queued_inputs=4) as (host, session):
            session.gate.clear()
            first = asyncio.create_task(host.call("wait", {}))
            await asyncio.sleep(0.01)
            calls = [asyncio.create_task(host.call("number", {"value": n})) for n in range(20)]
            results = await asyncio.wait(calls, timeout=0.05)
            refusals = [task.exception() for task in results[0]]
            assert [error.code for error in refusals] == ["queue_full"] * 16
            session.gate.set()
            await asyncio.gather(first, *results[1])
            assert len(session.seen) == 4

    scenario(run())


def test_what_waits_at_the_end_is_refused():
    async def run():
        async with hosted() as (host, session):
            session.gate.clear()
            calls = [asyncio.create_task(host.call("wait", {})) for _ in range(3)]
            await asyncio.sleep(0.01)
            await host.end("left")
            for call in calls:
                await refused(call, "ended")
            assert session.closed == 1 and host.ends == [(State.ENDED, "left")]

    scenario(run())


def test_a_pause_holds_frames_and_inputs():
    async def run():
        async with hosted() as (host, session):
            host.pause()
            await refused(host.call("number", {"value": 1}), "paused")
            host.offer("camera", frame(1))
            await asyncio.sleep(0.02)
            assert not session.taken and host.ctx.video_inputs["camera"].dropped == 1
            host.resume()
            host.offer("camera", frame(2))
            await until(lambda: session.taken == [2])
            await host.call("number", {"value": 1})

    scenario(run())


def test_what_is_not_finite_is_never_shown():
    async def run():
        async with hosted() as (host, session):
            host.offer("camera", frame(1))
            await until(lambda: len(host.sent) == 1)
            session.finite = False
            host.offer("camera", frame(2))
            await until(lambda: len(host.sent) == 2)
            assert (host.sent[1][1] == 1).all()  # the last good one, again
            assert session.resets == 1 and host.ctx.nonfinite == 1

    scenario(run())


def test_a_session_that_hangs_is_ended():
    async def run():
        async with hosted(step_timeout_s=0.1) as (host, session):
            await asyncio.sleep(0.3)  # no frame came: nothing hangs
            assert host.state is State.RUNNING
            session.gate.clear()
            host.offer("camera", frame(1))
            await until(lambda: host.ends)
            assert host.ends[0][0] is State.FAILED and "timed_out" in host.ends[0][1]
            assert session.closed == 1

    scenario(run())


def test_a_session_that_fails_is_ended_and_closed():
    class Broken(Echo):
        async def run(self):
            await self.ctx.publish("v", np.zeros(3))

    async def run():
        model = EchoModel()
        model.session_cls = Broken
        async with hosted(model) as (host, session):
            await until(lambda: host.ends)
            assert host.ends == [(State.FAILED, "model_error: OutputValidationError")]
            await host.end()
            assert session.closed == 1 and len(host.ends) == 1

    scenario(run())


def test_unknown_outputs_and_frames_of_another_size_are_refused():
    async def run():
        async with hosted() as (host, session):
            with pytest.raises(OutputValidationError, match="declared: v, j"):
                await session.ctx.publish("w", {})
            with pytest.raises(InputError, match="6x4"):
                host.offer("camera", Frame(np.zeros((6, 4, 3), np.uint8)))
            with pytest.raises(InputError, match="no video input"):
                host.offer("screen", frame(1))
            with pytest.raises(NotImplementedError, match="no snapshots"):
                await host.snapshot()

    scenario(run())


def test_the_end_cancels_a_restore_that_is_under_way(monkeypatch):
    async def forever(self, state):
        await asyncio.Event().wait()

    monkeypatch.setattr(EchoModel.session_cls, "restore", forever)

    async def run():
        async with hosted() as (host, _):
            waiting = asyncio.create_task(host.restore(b""))
            await asyncio.sleep(0)
            await host.end("ended")
            for late in (waiting, host.restore(b"")):
                await refused(late, "ended")

    scenario(run())


def test_the_scene_is_driven_by_its_inputs():
    """Another model on the same runtime: outputs without a camera, telemetry beside them."""

    async def run():
        async with hosted(DriveModel()) as (host, _):
            await host.call("throttle", {"value": 1.0})
            await host.call("steer", {"value": 1})
            await until(lambda: any(name == "telemetry" for name, *_ in host.sent))
            pictures = [sample for name, sample, _ in host.sent if name == "main_video"]
            assert pictures[0].shape == (180, 320, 3) and pictures[0].std() > 20
            assert np.any(pictures[0] != pictures[-1])
            before = pictures[-1].mean()
            await host.call("night", {})
            await until(lambda: host.sent[-1][1] is not None and _mean(host.sent) < 0.6 * before)
            await refused(host.call("steer", {"value": "left"}), "invalid_args")
            host.pause()
            await host.call("steer", {"value": 0.0})  # an axis is taken while paused
            await refused(host.call("night", {}), "paused")

    def _mean(sent):
        return next(sample for name, sample, _ in reversed(sent) if name == "main_video").mean()

    scenario(run())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(("put", "take")), max_size=30))
def test_a_mailbox_holds_the_newest_and_counts_the_rest(actions):
    async def run():
        box, held, dropped, put = Mailbox(), None, 0, 0
        for action in actions:
            if action == "put":
                dropped += held is not None
                held = put = put + 1
                box.put(put)
            else:
                assert box.take_nowait() == held
                held = None
            assert (box.dropped, box.received) == (dropped, put)
        box.close()
        box.put(1)
        assert [item async for item in box] == []
        with pytest.raises(EOFError):
            await box.take()

    scenario(run())


def test_a_mailbox_knows_how_long_its_taker_is_busy(monkeypatch):
    clock = iter([0.0, 3.0, 3.0, 5.0, 5.0, 50.0])  # taken, asked, and so on
    monkeypatch.setattr(mailbox.time, "monotonic", lambda: next(clock))
    box = Mailbox()
    for item, busy_s in ((1, 0.0), (2, 3.0), (3, 2.0)):
        box.put(item)
        assert box.take_nowait() == item
        assert box.busy_s == busy_s
    assert box.take_nowait() is None and box.take_nowait() is None  # asked twice, busy once
    assert box.busy_s == 2.0


def test_limits_without_sense_are_refused():
    with pytest.raises(ValueError, match="queued_inputs=0"):
        Limits(queued_inputs=0)


def test_threads_do_not_outlive_a_session():
    before = threading.active_count()

    async def run():
        async with hosted() as (host, _):
            host.offer("camera", frame(1))
            await until(lambda: host.sent)

    scenario(run())
    time.sleep(0.05)
    assert threading.active_count() <= before
