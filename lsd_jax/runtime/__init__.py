"""Declarative sessions: a world model in a page of code, with no transport in sight.

    class Painter(Session):
        camera = input.video()

        @input(description="What to make of it")
        def set_prompt(self, prompt: str): ...

        async def run(self):
            async for frame in self.camera:
                await self.ctx.publish("main_video", paint(frame.image))

    class PainterModel(Model):
        name = "painter"
        session_cls = Painter
        outputs = (publish.video("main_video", width=128, height=128),)

The names `LucidModel` and `LucidSession` are kept for code written for the Lucid runtime's API.
"""

from lsd_jax.runtime.bindings import (
    AxisBinding,
    HoldBinding,
    PointerBinding,
    PressBinding,
    WheelBinding,
    axis,
    hold,
    pointer,
    press,
    wheel,
)
from lsd_jax.runtime.context import SessionContext
from lsd_jax.runtime.errors import (
    InputError,
    LucidError,
    ManifestGenerationError,
    OutputValidationError,
)
from lsd_jax.runtime.host import Limits, SessionHost, State
from lsd_jax.runtime.inputs import InputDefinition, VideoInput, input
from lsd_jax.runtime.mailbox import Frame, Mailbox
from lsd_jax.runtime.manifest import ModelDefinition, build_model_definition, manifest
from lsd_jax.runtime.model import LoadContext, Model, Session
from lsd_jax.runtime.outputs import Output, OutputSpec, output, publish
from lsd_jax.runtime.uploads import InputFile, file_input, image_input

LucidModel, LucidSession = Model, Session

__all__ = [
    "AxisBinding", "Frame", "HoldBinding", "InputDefinition", "InputError", "InputFile", "Limits",
    "LoadContext", "LucidError", "LucidModel", "LucidSession", "Mailbox",
    "ManifestGenerationError", "Model", "ModelDefinition", "Output", "OutputSpec",
    "OutputValidationError", "PointerBinding", "PressBinding", "Session", "SessionContext",
    "SessionHost", "State", "VideoInput", "WheelBinding", "axis", "build_model_definition",
    "file_input", "hold", "image_input", "input", "manifest", "output", "pointer", "press",
    "publish", "wheel",
]  # fmt: skip
