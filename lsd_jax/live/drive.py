"""A car on an endless plain, steered by keys: a world model's shape without a world model.

It shares nothing with the diffusion stream; the runtime and the server do not know which runs.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from lsd_jax.runtime import (
    LoadContext,
    Model,
    Session,
    axis,
    hold,
    input,
    output,
    pointer,
    press,
    publish,
    wheel,
)

WIDTH, HEIGHT, FPS = 320, 180, 30.0
HORIZON = HEIGHT * 2 // 5
CAMERA_HEIGHT = 1.2
_ROAD, _VERGE = 3.0, 3.4


@dataclass
class Car:
    """Where the car is (metres), where it looks (radians), and what its driver does."""

    x: float = 0.0
    z: float = 0.0
    heading: float = 0.0
    look: float = 0.0
    speed: float = 6.0
    zoom: float = 1.0
    steer: float = 0.0
    throttle: float = 0.0
    braking: bool = False
    night: bool = False

    def drive(self, seconds: float) -> None:
        """Moves on, by simple dynamics: thrust, drag and brakes; the wheels turn the heading."""
        drag = 0.25 * self.speed + (8.0 if self.braking else 0.0)
        self.speed = min(max(self.speed + (7 * self.throttle - drag) * seconds, 0.0), 25.0)
        self.heading += self.steer * min(self.speed, 8.0) * 0.12 * seconds
        self.x += math.sin(self.heading) * self.speed * seconds
        self.z += math.cos(self.heading) * self.speed * seconds


def view(car: Car) -> UInt8[np.ndarray, "180 320 3"]:
    """What the driver sees: the plain in perspective, one ray a pixel, and a sky."""
    rows = np.arange(HORIZON + 1, HEIGHT, dtype=np.float32)
    distance = CAMERA_HEIGHT * HEIGHT * car.zoom / (rows - HORIZON)[:, None]
    columns = (np.arange(WIDTH, dtype=np.float32) - WIDTH / 2) / (HEIGHT * car.zoom)
    across = distance * columns
    angle = car.heading + car.look
    sin, cos = math.sin(angle), math.cos(angle)
    ground = _ground(car.x + cos * across + sin * distance, car.z - sin * across + cos * distance)
    fog = np.exp(-distance / 60)[..., None]
    sky = np.array([24, 28, 60] if car.night else [150, 190, 235], np.float32)
    height = np.linspace(0.55, 1, HORIZON + 1, dtype=np.float32)[::-1, None, None]
    picture = np.empty((HEIGHT, WIDTH, 3), np.float32)
    picture[: HORIZON + 1] = 255 - (255 - sky) * height if not car.night else sky * height
    picture[HORIZON + 1 :] = ground * fog + picture[HORIZON, 0] * (1 - fog)
    if car.night:  # headlights
        lit = np.exp(-((columns / 0.5) ** 2)) * np.exp(-distance / 14)
        picture[HORIZON + 1 :] *= (0.12 + 0.88 * lit)[..., None]
    return picture.astype(np.uint8)


def _ground(x: Float[np.ndarray, "h w"], z: Float[np.ndarray, "h w"]) -> np.ndarray:
    """Colours `[H, W, 3]` of the plain at world positions: a winding road across checked fields."""
    from_road = np.abs(x - 14 * np.sin(z / 45))
    fields = (np.floor(x / 6) + np.floor(z / 6)) % 2
    colour = np.where(fields[..., None] > 0, (86, 148, 66), (104, 164, 78)).astype(np.float32)
    colour[from_road < _VERGE] = (225, 225, 220)
    colour[from_road < _ROAD] = (70, 72, 78)
    colour[(from_road < 0.12) & (z % 5 < 2.5)] = (240, 220, 90)
    return colour


class DriveSession(Session["DriveModel"]):
    """One driver."""

    telemetry = output.json()

    def __init__(self, model, ctx):
        super().__init__(model, ctx)
        self.car = Car()

    @input(description="Steer", binding=axis(("KeyD", "ArrowRight"), ("KeyA", "ArrowLeft")))
    def steer(self, value: float) -> None:
        self.car.steer = max(-1.0, min(1.0, value))

    @input(description="Throttle", binding=axis(("KeyW", "ArrowUp"), ("KeyS", "ArrowDown")))
    def throttle(self, value: float) -> None:
        self.car.throttle = max(-1.0, min(1.0, value))

    @input(description="Brake", binding=hold(("Space",)))
    def brake(self, pressed: bool) -> None:
        self.car.braking = pressed

    @input(description="Night and day", binding=press(("KeyN",)))
    def night(self) -> None:
        self.car.night = not self.car.night

    @input(description="Look around", binding=pointer())
    def look(self, dx: float, dy: float) -> None:
        self.car.look = max(-1.2, min(1.2, self.car.look + dx / 300))

    @input(description="Zoom", binding=wheel())
    def zoom(self, delta: float) -> None:
        self.car.zoom = max(0.5, min(3.0, self.car.zoom * 1.1 ** max(-10.0, min(10.0, -delta))))

    async def run(self) -> None:
        due, shown = time.monotonic(), 0
        while self.ctx.running:
            await self.ctx.wait_if_paused()
            started = time.perf_counter()
            self.car.drive(1 / FPS)
            picture = view(self.car)
            self.ctx.record_inference_ms((time.perf_counter() - started) * 1e3)
            await self.ctx.publish("main_video", picture)
            shown += 1
            if shown % 15 == 0:
                await self.telemetry({"speed_m_s": self.car.speed, "heading_rad": self.car.heading})
            due = max(
                due + 1 / FPS, time.monotonic() - 1 / FPS
            )  # catches up with one frame at most
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def reset(self) -> None:
        self.car = Car()


class DriveModel(Model[None]):
    """A plain, a road and a car."""

    name = "drive"
    description = "A car on an endless plain: W A S D, space, N, pointer and wheel"
    session_cls = DriveSession
    outputs = (publish.video("main_video", width=WIDTH, height=HEIGHT, fps=FPS),)
    slots = 8

    async def load(self, context: LoadContext) -> None:
        """Nothing to load."""
