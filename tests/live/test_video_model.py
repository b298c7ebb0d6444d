"""The diffusion stream as a model of the runtime: its inputs, its frames, its guards."""

import asyncio
import io
import logging
from concurrent.futures import Future
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lsd_jax.live.slot import Slot
from lsd_jax.live.slots import Shown
from lsd_jax.live.video import START, VideoConfig, VideoModel
from lsd_jax.live.yuv import yuv420
from lsd_jax.runtime import (
    Frame,
    InputError,
    LoadContext,
    SessionHost,
    build_model_definition,
    manifest,
)
from lsd_jax.session import Session


@pytest.fixture(scope="module")
def model(small_checkpoint):
    made = VideoModel()
    asyncio.run(made.load(LoadContext(VideoConfig(small_checkpoint, slots=2), logging.getLogger())))
    yield made
    asyncio.run(made.unload())


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def pictures(count):
    return np.random.default_rng(4).integers(0, 256, (count, 32, 32, 3), np.uint8)


def planes_of(picture):
    return np.asarray(yuv420(jnp.asarray(picture[None])))[0]


class Driver:
    """A host that is given one frame at a time."""

    def __init__(self, model, seed=0):
        self.sent: asyncio.Queue = asyncio.Queue()
        self.host = SessionHost(
            model, build_model_definition(model), "s", lambda *x: self.sent.put_nowait(x),
            lambda *_: None, seed=seed,
        )  # fmt: skip

    async def show(self, image):
        self.host.offer("camera", Frame(image, 1.0))
        return (await self.sent.get())[1]

    async def __aenter__(self):
        self.host.start()
        return self

    async def __aexit__(self, *_):
        await self.host.end()


def scenario(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def test_the_manifest_follows_the_loaded_checkpoint(model):
    found = manifest(model)
    assert found["video_inputs"] == [{"name": "camera", "width": 32, "height": 32}]
    assert found["outputs"][0]["pixel_format"] == "yuv420p"
    names = {one["name"] for one in found["inputs"]}
    assert names == {"set_prompt", "set_image", "clear_image", "set_mask", "clear_mask", "restart"}


def test_frames_are_those_of_a_solo_stream(model, small_model, small_config):
    """Luma of the hosted session against the pictures of `lsd stream`'s own, same seed."""
    frames = pictures(5)

    async def run():
        async with Driver(model, seed=3) as driver:
            first = [await driver.show(frames[0])]
            await driver.host.call("set_prompt", {"prompt": "make it night"})
            reference = await driver.host.upload("r.png", "image/png", png(frames[1]))
            await driver.host.call("set_image", {"image": reference})
            first += [await driver.show(image) for image in frames[1:]]
            return first

    session = Session(small_model, small_config, seed=3)
    session.condition(START, None)
    expected = [session.step(frames[0])]
    session.condition("make it night", frames[1])
    expected += [session.step(image) for image in frames[1:]]
    for ours, theirs in zip(scenario(run()), expected, strict=True):
        np.testing.assert_array_equal(ours, planes_of(theirs))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("set_prompt", {"prompt": ""}, "empty"),
        ("set_prompt", {"prompt": "x" * 200}, "shorten"),
        ("set_prompt", {"prompt": "a\0b"}, "NUL"),
        ("set_prompt", {"prompt": "\ud800"}, "prompt"),
        ("set_prompt", {}, "required"),
        ("set_image", {"image": "nothing"}, "upload first"),
    ],
)
def test_inputs_that_the_model_cannot_take_are_refused(model, name, args, words):
    async def run():
        async with Driver(model) as driver:
            with pytest.raises(InputError, match=words):
                await driver.host.call(name, args)
            assert (await driver.show(pictures(1)[0])).shape == (48, 32)

    scenario(run())


def test_slots_are_freed_however_a_session_ends(model):
    async def run():
        async with Driver(model), Driver(model):
            assert model.stream.free == 0
            with pytest.raises(RuntimeError, match="slots are taken"):
                Driver(model)
        assert model.stream.free == 2

    scenario(run())


def test_who_leaves_takes_no_other_of_the_batch_along(model, monkeypatch):
    """On accelerators sessions are stepped together, and wait for one future."""
    image, remembered = pictures(1)[0], Future()

    async def step(self, image):
        return Shown(image, planes_of(image), True, 1.0, remembered)

    monkeypatch.setattr(Slot, "step", step)

    async def run():
        async with Driver(model) as stays:
            await stays.show(image)
            async with Driver(model) as leaves:
                await leaves.show(image)
            assert not remembered.cancelled()
            remembered.set_result(np.ones(2, bool))
            await stays.show(image)

    scenario(run())


def test_what_is_not_finite_is_never_shown(model):
    async def run():
        async with Driver(model) as driver:
            good = await driver.show(pictures(1)[0])
            slots, slot = model.stream, driver.host._session._slot._index

            def poison():
                kv = slots._state.kv
                bad = kv.k.at[:, slot].set(np.nan)
                slots._state = slots._state.replace(kv=replace(kv, k=bad))

            await asyncio.wrap_future(slots.change(poison))
            shown = await driver.show(pictures(2)[1])
            np.testing.assert_array_equal(shown, good)
            assert driver.host.ctx.nonfinite == 1
            np.testing.assert_array_equal(await driver.show(pictures(1)[0]), good)
            assert driver.host.ctx.nonfinite == 1

    scenario(run())


def test_masks_and_restarts(model):
    image = pictures(1)[0]
    left = np.full((32, 96, 4), 255, np.uint8)  # as wide as a camera's frames, which are stretched
    left[:, 24:, 3] = 0

    async def run():
        async with Driver(model) as driver:
            whole = await driver.show(image)
            mask = await driver.host.upload("m.png", "image/png", png(left))
            await driver.host.call("set_mask", {"mask": mask})
            await driver.host.call("restart", {})
            masked = await driver.show(image)
            await driver.host.call("clear_mask", {})
            await driver.host.call("restart", {})
            return whole, masked, await driver.show(image)

    whole, masked, again = scenario(run())
    np.testing.assert_array_equal(whole, again)
    same = planes_of(image)[:32]
    np.testing.assert_array_equal(masked[:32, 8:], same[:, 8:])
    assert np.any(whole[:32, 8:] != same[:, 8:])
    assert np.any(masked[:32, :8] != same[:, :8])


def test_a_snapshot_of_a_hosted_session(model):
    frames = pictures(4)

    async def run():
        async with Driver(model, seed=1) as driver:
            await driver.host.call("set_prompt", {"prompt": "snow"})
            for image in frames[:3]:
                await driver.show(image)
            kept = await driver.host.snapshot()
            expected = await driver.show(frames[3])
        async with Driver(model, seed=2) as driver:
            await driver.host.restore(kept)
            np.testing.assert_array_equal(await driver.show(frames[3]), expected)

    scenario(run())
