"""Slots: a session's frames are bit for bit those of a session alone, whatever the others do."""

import asyncio
import io
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from av import VideoFrame

from lsd_jax import placement, stream
from lsd_jax.live.slot import Slot
from lsd_jax.live.slots import Slots
from lsd_jax.live.steps import Asked, remember_masked, show_masked
from lsd_jax.live.yuv import yuv420
from lsd_jax.session import Clock, Session, count_compiles

SIZE = (32, 32)


@pytest.fixture(scope="module")
def prepared(small_config, small_model):
    return stream.prepare(small_model, small_config)


@pytest.fixture(scope="module")
def slots(small_config, prepared):
    made = Slots(prepared, small_config, 3)
    yield made
    made.close()


def pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, *SIZE, 3), np.uint8)


def scenario(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


async def play(slot, frames, prompts, pause_s=0.0):
    """The frames out; `prompts` are changes by the frame before which they come."""
    shown = []
    for n, image in enumerate(frames):
        if n in prompts:
            await slot.condition(prompts[n], None)
        shown.append((await slot.step(image)).image)
        await asyncio.sleep(pause_s)
    return np.stack(shown)


def alone(session, frames, prompts, seed):
    """The same by `lsd stream`'s own session."""
    session._state = stream.init_state(session.config, jnp.full(1, seed, jnp.int32))
    shown = []
    for n, image in enumerate(frames):
        if n in prompts:
            session.condition(prompts[n], None)
        shown.append(session.step(image))
    return np.stack(shown)


SCRIPTS = [({0: "night"}, 1), ({0: "snow", 4: "film noir"}, 2), ({0: "fog", 6: "night"}, 3)]


@pytest.fixture(scope="module")
def solo(small_config, small_model):
    session = Session(small_model, small_config)
    return [alone(session, pictures(9, seed), prompts, seed) for prompts, seed in SCRIPTS]


def test_sessions_are_bit_equal_to_solo_runs(slots, solo):
    """Three at a time, of different pace; one leaves midway and another takes its slot; nothing
    compiles."""

    async def run():
        async def session(number, pace):
            prompts, seed = SCRIPTS[number]
            slot = Slot(slots, seed)
            try:
                return await play(slot, pictures(9, seed), prompts, pace)
            finally:
                slot.close()

        async def leaves_then_another():
            slot = Slot(slots, 9)
            await play(slot, pictures(4, 77), {0: "make it rain"})
            slot.close()
            return await session(0, 0.0)

        return await asyncio.gather(session(1, 0.0), session(2, 0.013), leaves_then_another())

    clock = Clock()
    with count_compiles(clock):
        found = scenario(run())
    for ours, theirs in zip(found, [solo[1], solo[2], solo[0]], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert clock.compiles == 0 and slots.free == 3


def test_state_and_weights_may_lie_as_the_compiler_chooses(
    monkeypatch, small_config, prepared, solo
):
    """As on a TPU: all executables of the slots agree on how."""
    monkeypatch.setattr(placement, "CHOOSING", ("cpu",))
    made = Slots(prepared, small_config, 2)

    async def run():
        prompts, seed = SCRIPTS[0]
        slot = Slot(made, seed)
        shown = await play(slot, pictures(9, seed), prompts)
        await slot.restore(await slot.snapshot())
        slot.close()
        return shown

    found = scenario(run())
    made.close()
    assert np.abs(np.asarray(found, np.int32) - np.asarray(solo[0], np.int32)).max() <= 1


def test_a_stalled_session_delays_nobody(slots, solo):
    async def run():
        stalled = Slot(slots, 5)
        await stalled.step(pictures(1, 5)[0])  # and never again
        prompts, seed = SCRIPTS[0]
        slot = Slot(slots, seed)
        found = await play(slot, pictures(9, seed), prompts)
        slot.close(), stalled.close()
        return found

    np.testing.assert_array_equal(scenario(run()), solo[0])


def test_a_step_of_all_slots_leaves_those_that_wait_as_they_are(small_config, prepared):
    """The form for accelerators, on a CPU: slots that are not listed keep their state."""
    state = stream.init_state(small_config, jnp.arange(3))
    controls = jnp.full((3, *SIZE, 1), 255, np.uint8)
    frames, before = jnp.asarray(pictures(3, 0)), jax.tree.map(np.asarray, state)
    asked = Asked(frames, controls, np.array([2, 0, 1], np.int32), np.int32(2))
    images, planes, finite = jax.jit(show_masked)(prepared, state, asked)
    after, kept = jax.jit(remember_masked)(prepared, state, asked, images)
    assert after.frame.tolist() == [1, 0, 1] and finite.all() and kept.all()
    np.testing.assert_array_equal(after.kv.k[:, 1], before.kv.k[:, 1])
    np.testing.assert_array_equal(after.key[1], before.key[1])
    assert np.any(np.asarray(after.kv.k[:, 0]) != before.kv.k[:, 0])
    np.testing.assert_array_equal(planes, yuv420(images))


def test_when_all_slots_are_taken_another_is_refused(slots):
    async def run():
        held = [Slot(slots, n) for n in range(3)]
        with pytest.raises(RuntimeError, match="all 3 slots are taken"):
            Slot(slots, 4)
        held[0].close(), held[0].close()  # twice is once
        Slot(slots, 5).close()
        for slot in held[1:]:
            slot.close()

    scenario(run())
    assert slots.free == 3


def test_a_frame_of_a_session_that_left_never_reaches_the_next_one(slots, solo):
    async def run():
        first = Slot(slots, 8)
        waiting = [asyncio.create_task(first.step(image)) for image in pictures(5, 8)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        first.close()
        prompts, seed = SCRIPTS[2]
        second = Slot(slots, seed)
        found = await play(second, pictures(9, seed), prompts)
        second.close()
        return found

    np.testing.assert_array_equal(scenario(run()), solo[2])


def test_a_snapshot_goes_on_bit_for_bit(slots, solo):
    async def run():
        prompts, seed = SCRIPTS[1]
        frames = pictures(9, seed)
        slot = Slot(slots, seed)
        await play(slot, frames[:6], prompts)
        kept = await slot.snapshot()
        await play(slot, frames[:3], {})  # another future
        slot.close()
        blocker, other = Slot(slots, 1), Slot(slots, 99)  # another slot
        await other.restore(kept)
        assert (other.prompt, other.seed) == ("film noir", seed)
        found = await play(other, frames[6:], {})
        for broken in (b"", b"PK", kept[:-100], kept[:5000] + b"x" + kept[5001:]):
            with pytest.raises(ValueError, match="snapshot"):
                await other.restore(broken)
        blocker.close(), other.close()
        return found

    np.testing.assert_array_equal(scenario(run()), solo[1][6:])


def poison_state(slots, slot):
    kv = slots._state.kv
    slots._state = slots._state.replace(kv=replace(kv, k=kv.k.at[:, slot].set(np.nan)))


def test_a_state_that_is_not_finite_is_seen_at_once_and_healed(slots, solo):
    """Another session goes on, bit for bit; after a reset this one is as good as new."""

    async def run():
        prompts, seed = SCRIPTS[0]
        bad, good = Slot(slots, seed), Slot(slots, seed)
        frames = pictures(9, seed)
        await play(bad, frames[:3], prompts)
        first = await play(good, frames[:3], prompts)
        await asyncio.wrap_future(slots.change(lambda: poison_state(slots, bad._index)))
        shown = await bad.step(frames[3])
        assert not shown.finite
        await bad.reset()
        again = await play(bad, frames, {})
        rest = await play(good, frames[3:], {})
        bad.close(), good.close()
        return again, np.concatenate([first, rest])

    again, other = scenario(run())
    np.testing.assert_array_equal(again, solo[0])
    np.testing.assert_array_equal(other, solo[0])


def test_weights_that_are_not_finite_are_loaded_again(slots, prepared, monkeypatch):
    reloads = []

    def reload():
        reloads.append(1)
        if len(reloads) == 1:
            raise OSError("the disk is away")
        return prepared

    monkeypatch.setattr(slots, "_reload", reload)

    async def run():
        slot = Slot(slots, 1)
        image = pictures(1, 1)[0]
        await slot.condition("night", None)
        expected = (await slot.step(image)).image
        broken = jax.tree.map(lambda x: x * np.float32(np.nan), slots._model)
        await asyncio.wrap_future(slots.change(lambda: setattr(slots, "_model", broken)))
        finite = []
        for _ in range(6):
            shown = await slot.step(image)
            finite.append(shown.finite)
            if not shown.finite:
                await slot.reset()
        assert finite == [False, False, False, True, True, True] and len(reloads) == 2
        await slot.reset()
        np.testing.assert_array_equal((await slot.step(image)).image, expected)
        slot.close()

    scenario(run())


def test_another_client_in_a_slot_is_not_suspected_of_what_was_there(slots, monkeypatch):
    monkeypatch.setattr(slots, "_reload", lambda: pytest.fail("the weights are well"))

    async def run():
        for _ in range(2):  # poisoned twice, and between them another client
            slot = Slot(slots, 1)
            await slot.condition("night", None)
            await asyncio.wrap_future(slots.change(lambda s=slot: poison_state(slots, s._index)))
            assert not (await slot.step(pictures(1, 1)[0])).finite
            slot.close()

    scenario(run())


def test_a_change_after_leaving_reaches_nobody(slots, solo):
    async def run():
        held_by_others = [Slot(slots, n) for n in range(2)]  # so that one slot is left
        first = Slot(slots, 8)
        kept = await first.snapshot()
        held = slots.change(lambda: time.sleep(0.2))  # the thread is busy
        late = [first._change(lambda: slots.begin(first._index, 5))]
        first.close()
        prompts, seed = SCRIPTS[2]
        second = Slot(slots, seed)
        assert second._index == first._index
        late.append(asyncio.create_task(first.restore(kept)))
        found = await play(second, pictures(9, seed), prompts)
        for refused in late:
            with pytest.raises(RuntimeError, match="session is over"):
                await refused
        for slot in (second, *held_by_others):
            slot.close()
        held.result()
        return found

    np.testing.assert_array_equal(scenario(run()), solo[2])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", np.array([255, 254], np.uint8)),
        ("prompt", np.zeros((2, 2), np.uint8)),
        ("seed", np.int64(-1)),
        ("seed", np.int64(2**40)),
        ("seed", np.zeros(3, np.int64)),
        ("reference", np.zeros((*SIZE, 3), np.float32)),
        ("reference", np.zeros((1, 1, 3), np.uint8)),
    ],
)
def test_a_snapshot_of_nonsense_changes_nothing(slots, name, value):
    async def run():
        slot = Slot(slots, 4)
        try:
            await slot.condition("night", None)
            before = await slot.snapshot()
            with np.load(io.BytesIO(before)) as found:
                leaves = dict(found)
            other = Slot(slots, 5)
            leaves |= {k: v for k, v in np.load(io.BytesIO(await other.snapshot())).items()}
            other.close()
            file = io.BytesIO()
            np.savez(file, **{**leaves, name: value})
            with pytest.raises(ValueError, match="snapshot"):
                await slot.restore(file.getvalue())
            assert await slot.snapshot() == before
        finally:
            slot.close()

    scenario(run())


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_raises_ends_its_sessions_and_no_others(slots, solo, monkeypatch, late):
    """Whether what takes the state raises, or what it gives does when the next frame reads it."""
    whole = slots._remember

    def broken(model, state, *rest):
        after, kept = whole(model, state, *rest)  # takes the state with it
        if not late:
            raise MemoryError("no memory")
        jax.tree.map(lambda x: x.delete(), after)
        return after, kept

    async def run():
        slot, other = Slot(slots, 1), Slot(slots, 2)
        await slot.condition("night", None)
        monkeypatch.setattr(slots, "_remember", broken)
        if late:
            await slot.step(pictures(1, 1)[0])
        with pytest.raises(RuntimeError if late else MemoryError):
            await slot.step(pictures(1, 1)[0])
        monkeypatch.setattr(slots, "_remember", whole)
        for work in (slot.step(pictures(1, 1)[0]), other.snapshot(), other.condition("fog", None)):
            with pytest.raises(RuntimeError, match="state was lost"):
                await work
        slot.close(), other.close()
        prompts, seed = SCRIPTS[0]
        fresh = Slot(slots, seed)
        found = await play(fresh, pictures(9, seed), prompts)
        fresh.close()
        return found

    np.testing.assert_array_equal(scenario(run()), solo[0])


def test_a_picture_that_cannot_be_made_harms_no_state(slots, solo, monkeypatch):
    whole, prompts = slots._show, SCRIPTS[0][0]

    async def run():
        slot = Slot(slots, SCRIPTS[0][1])
        frames = pictures(9, SCRIPTS[0][1])
        first = await play(slot, frames[:4], prompts)
        monkeypatch.setattr(slots, "_show", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await slot.step(frames[4])
        monkeypatch.setattr(slots, "_show", whole)
        rest = [(await slot.step(image)).image for image in frames[4:]]
        slot.close()
        return np.concatenate([first, rest])

    assert not any(n >= 4 for n in prompts)
    np.testing.assert_array_equal(scenario(run()), solo[0])


def test_a_frame_is_remembered_behind_its_picture(slots, monkeypatch):
    """Whoever waits for the picture gets it before; what is not finite is said of the next."""
    whole, ended = slots._remember, threading.Event()

    class Late:
        def __array__(self, dtype=None, copy=None):
            assert ended.wait(60)
            return np.zeros(slots.count, bool)

    def remember(model, state, asked, images):
        frames = np.asarray(asked.frames)
        assert not np.shares_memory(frames, slots._frames)  # it may change meanwhile
        return whole(model, state, asked, images)[0], Late()

    async def run():
        slot, images = Slot(slots, 1), pictures(3, 1)
        monkeypatch.setattr(slots, "_remember", remember)
        first = await slot.step(images[0])
        assert first.finite and not first.remembered.done()
        ended.set()
        assert not (await slot.step(images[1])).finite
        await slot.reset()
        assert (await slot.step(images[2])).finite
        slot.close()

    scenario(run())


def test_a_session_that_could_not_begin_says_so(slots, monkeypatch):
    async def run():
        monkeypatch.setattr(slots, "_cold", lambda seed: 1 / 0)
        slot = Slot(slots, 1)
        with pytest.raises(ZeroDivisionError):
            await slot.step(pictures(1, 1)[0])
        slot.close()

    scenario(run())


def test_a_mask_confines_one_session(slots):
    async def run():
        slot, image = Slot(slots, 1), pictures(1, 1)[0]
        mask = np.zeros(SIZE, np.uint8)
        mask[:, :16] = 255
        await slot.condition("night", None)
        await slot.set_mask(mask)
        shown = (await slot.step(image)).image
        slot.close()
        whole = Slot(slots, 1)  # in the same slot
        await whole.condition("night", None)
        other = (await whole.step(image)).image
        whole.close()
        return image, shown, other

    image, shown, other = scenario(run())
    np.testing.assert_array_equal(shown[:, 16:], image[:, 16:])
    assert np.any(other[:, 16:] != image[:, 16:]) and np.any(shown[:, :16] != image[:, :16])


def test_planes_are_those_of_a_video_encoder():
    """Against FFmpeg's own conversion, on smooth pictures, to two levels of 255."""
    ramp = np.linspace(0, 255, 64)
    image = np.stack(np.broadcast_arrays(ramp[None], ramp[:, None], ramp[None, ::-1]), -1)
    image = image.astype(np.uint8)
    theirs = VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG"
    )
    ours = np.asarray(yuv420(jnp.asarray(image[None])))[0]
    assert ours.shape == (96, 64)
    assert np.abs(ours.astype(int) - theirs.to_ndarray()).max() <= 2


def test_a_closed_model_refuses(slots):
    """The last but one: it closes the slots that the others share."""

    async def run():
        slot = Slot(slots, 1)
        slots.close()
        with pytest.raises((RuntimeError, CancelledError)):
            await slot.step(pictures(1, 1)[0])

    scenario(run())


def test_a_thread_that_fails_tells_and_refuses(small_config, prepared, monkeypatch):
    told = []
    slots = Slots(prepared, small_config, 1, died=lambda: told.append(1))

    async def run():
        slot = Slot(slots, 1)
        await slot.step(pictures(1, 1)[0])
        monkeypatch.setattr(slots, "_next_batch", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await slot.step(pictures(1, 1)[0])
        with pytest.raises(RuntimeError, match="unloaded"):
            await slot.step(pictures(1, 1)[0])

    scenario(run())
    slots.close()
    assert told == [1]
