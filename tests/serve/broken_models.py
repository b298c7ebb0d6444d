"""Models that do what models should not."""

import os
import time

import numpy as np

from lsd_jax.live.passthrough import PassThroughModel, PassThroughSession
from lsd_jax.runtime import Model, input


class Troubled(PassThroughSession):
    @input
    def hang(self) -> None:
        """Blocks the whole process."""
        time.sleep(60)

    @input
    async def wrong(self) -> None:
        """Publishes what it has not declared."""
        await self.ctx.publish("main_video", np.zeros(3))


class TroubledModel(PassThroughModel):
    name = "troubled"
    session_cls = Troubled


class Unloadable(Model):
    name = "unloadable"
    session_cls = Troubled

    async def load(self, context):
        raise ValueError("no checkpoint\nhere")


class Dying(Model):
    name = "dying"
    session_cls = Troubled

    async def load(self, context):
        os._exit(3)


class Unopenable(PassThroughModel):
    name = "unopenable"

    def create_session(self, ctx):
        raise RuntimeError("not today")
