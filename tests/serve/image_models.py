"""Pass-through models that take pictures, too, one that hums, and one that loads late."""

import asyncio
import os
from pathlib import Path

import numpy as np

from lsd_jax.live.passthrough import PassThroughModel, PassThroughSession
from lsd_jax.runtime import InputFile, image_input, input, publish


class Images(PassThroughSession):
    @input
    def set_image(self, image: InputFile = image_input()) -> None:
        image.image(8, 8)

    @input
    def clear_image(self) -> None: ...


class ImagesModel(PassThroughModel):
    name = "images"
    session_cls = Images


class LateModel(PassThroughModel):
    """Loads when the file that LATE_MODEL names exists."""

    async def load(self, context) -> None:
        while not Path(os.environ["LATE_MODEL"]).exists():
            await asyncio.sleep(0.02)
        await super().load(context)


class Humming(Images):
    @input
    def set_mask(self, mask: InputFile = image_input()) -> None:
        mask.image(8, 8)

    @input
    def clear_mask(self) -> None: ...

    async def run(self) -> None:
        """A tone of 440 Hz beside the pictures, 40 ms at a time."""
        humming = asyncio.create_task(self._hum())
        try:
            await super().run()
        finally:
            humming.cancel()

    async def _hum(self) -> None:
        count, loop = 0, asyncio.get_running_loop()
        began = loop.time()
        while True:
            times = np.arange(count, count + 640, dtype=np.float32) / 16_000
            tone = 0.5 * np.sin(2 * np.pi * 440 * times)
            await self.ctx.publish("hum", tone[:, None].astype(np.float32))
            count += 640
            await asyncio.sleep(began + count / 16_000 - loop.time())


class HummingModel(PassThroughModel):
    name = "humming"
    session_cls = Humming

    async def load(self, context) -> None:
        await super().load(context)
        self.outputs = (*self.outputs, publish.audio("hum", sample_rate_hz=16_000))
