"""Gives every picture back as it came: what transport costs, without a model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from lsd_jax.runtime import LoadContext, Model, Session, input, publish


@dataclass(frozen=True)
class PassThroughConfig:
    """Size of the picture, how many sessions, and how long a step pretends to take."""

    width: int = 640
    height: int = 360
    slots: int = 4
    step_ms: float = 0.0


class PassThroughSession(Session["PassThroughModel"]):
    """One camera, as it is."""

    camera = input.video(description="the picture to give back")

    def __init__(self, model, ctx):
        super().__init__(model, ctx)
        self.prompt = ""

    @input(description="Changes nothing; there to be acknowledged")
    def set_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise ValueError("the prompt is empty; say what to do")
        self.prompt = prompt

    async def run(self) -> None:
        async for frame in self.camera:
            if self.model.step_ms:
                await asyncio.sleep(self.model.step_ms / 1e3)
            self.ctx.record_inference_ms(self.model.step_ms)
            await self.ctx.publish("main_video", frame.image, frame.ts_ms)


class PassThroughModel(Model[PassThroughConfig]):
    """No model at all."""

    name = "pass-through"
    description = "Gives every picture back as it came"
    config_cls = PassThroughConfig
    session_cls = PassThroughSession

    async def load(self, context: LoadContext) -> None:
        config = context.config or PassThroughConfig()
        self.slots, self.step_ms = config.slots, config.step_ms
        self.outputs = (publish.video("main_video", width=config.width, height=config.height),)
