"""The diffusion stream on the runtime: a live picture in, the same picture transformed out."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lsd_jax.data.prompts import IDENTITY
from lsd_jax.live.journal import Journal
from lsd_jax.live.slot import Slot
from lsd_jax.live.slots import Slots
from lsd_jax.reports import provenance
from lsd_jax.runtime import (
    InputFile,
    LoadContext,
    Model,
    Session,
    SessionContext,
    image_input,
    input,
    publish,
)
from lsd_jax.runtime.uploads import IMAGES

START = IDENTITY[0][0]
"""The prompt of a session that has not been given one."""


@dataclass(frozen=True)
class VideoConfig:
    """Which checkpoint, how many sessions at a time, `section.field=value` overrides, and a folder
    to record every session in, if there is one."""

    checkpoint: str = ""
    slots: int = 4
    overrides: tuple[str, ...] = ()
    record: str = ""


class VideoSession(Session["VideoModel"]):
    """One camera, transformed."""

    camera = input.video(description="the picture to transform")

    def __init__(self, model: VideoModel, ctx: SessionContext):
        super().__init__(model, ctx)
        self._slot = Slot(model.stream, ctx.seed, model.journal(ctx.session_id))
        self._steering = asyncio.Lock()  # of prompt and reference, which change together

    @input(description="What to make of the picture, in words")
    async def set_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise ValueError("the prompt is empty; say what to do, e.g. 'make it night'")
        async with self._steering:
            await self._slot.condition(prompt, self._slot.reference)

    @input(description="A picture whose look or content the prompt refers to", paused=True)
    async def set_image(self, image: InputFile = image_input(IMAGES, 8_000_000)) -> None:
        reference = await asyncio.to_thread(image.image, *self.model.size)
        async with self._steering:
            await self._slot.condition(self._slot.prompt or START, reference)

    @input(description="Back to no reference picture", paused=True)
    async def clear_image(self) -> None:
        async with self._steering:
            await self._slot.condition(self._slot.prompt or START, None)

    @input(description="White where to edit; elsewhere the input stays as it is", paused=True)
    async def set_mask(self, mask: InputFile = image_input(IMAGES, 2_000_000)) -> None:
        await self._slot.set_mask(await asyncio.to_thread(mask.mask, *self.model.size))

    @input(description="Back to the whole picture", paused=True)
    async def clear_mask(self) -> None:
        await self._slot.set_mask(np.full(self.model.size, 255, np.uint8))

    @input(description="Forget what was shown, and begin anew", paused=True)
    async def restart(self) -> None:
        await self.reset()

    async def run(self) -> None:
        async with self._steering:
            if not self._slot.prompt:
                await self._slot.condition(START, None)
        async for frame in self.camera:
            shown = await self._slot.step(frame.image)
            self.ctx.record_inference_ms(shown.step_ms)
            await self.ctx.publish("main_video", shown.planes, frame.ts_ms, shown.finite)
            # A picture taken before would grow old. Others of the batch wait for the same.
            await asyncio.shield(asyncio.wrap_future(shown.remembered))

    async def reset(self) -> None:
        async with self._steering:
            await self._slot.reset()

    async def snapshot(self) -> bytes:
        return await self._slot.snapshot()

    async def restore(self, state: bytes) -> None:
        async with self._steering:
            await self._slot.restore(state)

    async def close(self) -> None:
        self._slot.close()


class VideoModel(Model[VideoConfig]):
    """A trained denoiser with as many slots as its config says."""

    name = "lsd"
    description = "Live video, transformed as you say: one frame in, one frame out"
    config_cls = VideoConfig
    session_cls = VideoSession

    async def load(self, context: LoadContext) -> None:
        """Loads the checkpoint and compiles the step of all slots."""
        config = self._config = context.config or VideoConfig()
        if config.record:
            Path(config.record).mkdir(parents=True, exist_ok=True)
            if not os.access(config.record, os.W_OK):
                raise ValueError(f"sessions cannot be recorded in {config.record}: not writable")
        self._provenance = provenance() if config.record else {}
        self.stream = await asyncio.to_thread(_load, config)
        model = self.stream.config.model
        self.size = model.height, model.width
        self.slots = config.slots
        self.outputs = (
            publish.video(
                "main_video", width=model.width, height=model.height, pixel_format="yuv420p"
            ),
        )

    def journal(self, session_id: str) -> Journal | None:
        """A record of a session, where sessions are recorded."""
        config = self._config
        if not config.record:
            return None
        asked = {"checkpoint": config.checkpoint, "overrides": list(config.overrides)}
        return Journal(Path(config.record) / session_id, asked | self._provenance)

    async def unload(self) -> None:
        await asyncio.to_thread(self.stream.close)


def _load(asked: VideoConfig) -> Slots:
    from lsd_jax.pretrained import load_model
    from lsd_jax.stream import prepare

    def load():
        model, config = load_model(asked.checkpoint or None, list(asked.overrides))
        return prepare(model, config), config

    model, config = load()
    if config.model.external_text_dim:
        raise ValueError("this model takes prompts as embeddings; stream it from Python")
    end = partial(os._exit, 70)  # the front starts another engine, which is whole again
    return Slots(model, config, asked.slots, lambda: load()[0], died=end)
