"""A model whose every picture tells how many it has seen, one that takes long to load, and one that
has a state."""

import asyncio
import os

import numpy as np

from lsd_jax.live.passthrough import PassThroughModel, PassThroughSession
from lsd_jax.runtime import input, output


class Counting(PassThroughSession):
    told = output.json()

    def __init__(self, model, ctx):
        super().__init__(model, ctx)
        self.count, self.prompt = 0, ""

    @input
    def set_prompt(self, prompt: str) -> None:
        self.prompt = prompt

    async def run(self):
        async for frame in self.camera:
            self.count += 1
            await self.told({"prompt": self.prompt, "count": self.count})
            grey = np.full_like(frame.image, 10 * self.count)
            await self.ctx.publish("main_video", grey, frame.ts_ms)


class CountingModel(PassThroughModel):
    name = "counting"
    session_cls = Counting


class Stateful(PassThroughSession):
    """Gives no snapshot before it is told of what size."""

    def __init__(self, model, ctx):
        super().__init__(model, ctx)
        self.size, self.told = 0, asyncio.Event()

    @input
    def give(self, size: int) -> None:
        self.size = size
        self.told.set()

    async def snapshot(self):
        await self.told.wait()
        return b"s" * self.size

    async def restore(self, state): ...


class StatefulModel(PassThroughModel):
    name = "stateful"
    session_cls = Stateful


class SlowModel(PassThroughModel):
    name = "slow"

    async def load(self, context):
        await asyncio.sleep(2)
        await super().load(context)


class DeviceModel(PassThroughModel):
    name = "device"

    async def load(self, context):
        await super().load(context)
        names = ("CUDA_VISIBLE_DEVICES", "NEURON_RT_VISIBLE_CORES")
        self.description = " ".join(os.environ.get(name, "-") for name in names)
