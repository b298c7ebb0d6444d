"""What a scene is, as numbers, and the endless row of scenes that seeds number.

Coordinates: screen and world have y down, the origin in the middle, and 1 is half a frame's height.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from lsd_jax.data import textures
from lsd_jax.data.shapes import COLOURS, SHAPES

OBJECTS = 4
PICTURE = 128  # side of the reference pictures that a world can hold, texels
TAU = 2 * math.pi
_NAMED_SCALE = 0.375  # half a frame's height, in sides of a named background


@no_type_check  # in a batch each field has leading axes
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Wave:
    """A sum of sines over the last axis, with whole periods and phases in frames.

    The frame is wrapped as an integer before it becomes a float: frame 10^7 is as smooth as 10.
    """

    amplitude: Float[Array, "*s harmonics"]
    period: Int[Array, "*s harmonics"]
    phase: Int[Array, "*s harmonics"]

    def angle(self, frame: Int[Array, ""]) -> Float[Array, "*s harmonics"]:
        """Where in its period each harmonic is, in radians."""
        at = (frame % self.period + self.phase) % self.period
        return at.astype(jnp.float32) * (TAU / self.period.astype(jnp.float32))

    def at(self, frame: Int[Array, ""]) -> Float[Array, "*s"]:
        """The value at a frame."""
        return (self.amplitude * jnp.sin(self.angle(frame))).sum(-1)


@no_type_check  # in a batch each field has leading axes
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class World:
    """One scene. Of its four objects the first two to four are visible; later ones lie on top."""

    shape: Int[Array, " o"]  # into SHAPES, all different
    colour: Int[Array, " o"]  # into COLOURS, all different
    visible: Bool[Array, " o"]
    size: Float[Array, " o"]  # radius
    home: Float[Array, "o 2"]  # x as a share of half the frame's width
    motion: Wave  # [o, 4, harmonics] of x, y, angle and log size
    turns: Wave  # [o, 1] full turns: amplitude -1, 0 or 1
    bounce: Bool[Array, " o"]
    texture: Int[Array, " o"]
    crop: Float[Array, "o 3"]  # u, v and sides per radius
    contrast: Float[Array, " o"]
    object_from_reference: Bool[Array, " o"]
    object_picture: UInt32[Array, "p p"]
    background: Int[Array, ""]  # into the bank
    backdrop: Float[Array, "2 3"]  # world (x, y, 1) to sides of the picture
    grade: Float[Array, "3 3"]  # colours of the background, as a matrix
    ripple: Wave  # [2, 1] in radians of shift
    background_from_reference: Bool[Array, ""]
    background_picture: UInt32[Array, "p p"]
    camera: Wave  # [4, harmonics] of x, y, log zoom and roll
    light: Wave  # [5, harmonics] of log brightness, warmth, green, and the gradient along x and y
    shadow: Float[Array, " 3"]  # offset x, y and strength


class _Draws:
    """Random numbers cut one after another from a single vector: one quick kernel per world."""

    def __init__(self, key, count: int = 384):
        self.left = jax.random.uniform(key, (count,))

    def uniform(self, shape=(), low: float | Array = 0.0, high: float | Array = 1.0):
        taken, self.left = jnp.split(self.left, [math.prod(shape)])
        return low + (high - low) * taken.reshape(shape)

    def integers(self, shape, low, high):
        span = jnp.asarray(high - low, jnp.float32)
        return low + (self.uniform(shape) * span).astype(jnp.int32)

    def chance(self, probability, shape=()):
        return self.uniform(shape) < probability

    def order(self, count):
        return jnp.argsort(self.uniform((count,)))

    def wave(self, amplitude, shortest, longest, harmonics=2) -> Wave:
        """Periods and phases in frames; each further harmonic is faster and weaker."""
        amplitude = jnp.asarray(amplitude, jnp.float32)
        shape = (*amplitude.shape, harmonics)
        order = np.arange(1, harmonics + 1)
        weight = self.uniform(shape, 0.5, 1.0) * jnp.asarray(order**-1.5, jnp.float32)
        period = self.integers(shape, shortest, longest) // jnp.asarray(order, jnp.int32)
        phase = self.integers(shape, 0, period)
        return Wave(amplitude[..., None] * weight, period, phase)


def _random_grade(draw: _Draws) -> Float[Array, "3 3"]:
    """A turn of hue about the grey axis, with saturation and gains of the channels."""
    angle = draw.uniform((2,), -0.4, 0.4).sum()
    grey = jnp.full((3, 3), 1 / 3, jnp.float32)
    cross = jnp.asarray([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], jnp.float32) / math.sqrt(3)
    colourful = (jnp.eye(3) - grey) * jnp.cos(angle) + cross * jnp.sin(angle)
    return draw.uniform((3, 1), 0.85, 1.15) * (grey + draw.uniform((), 0.5, 1.1) * colourful)


def named_backdrop() -> Float[Array, "2 3"]:
    """Where named backgrounds and references lie: upright, the frame within the picture."""
    return jnp.asarray([[_NAMED_SCALE, 0, 0.5], [0, _NAMED_SCALE, 0.5]], jnp.float32)


def _random_backdrop(draw: _Draws, upright) -> Float[Array, "2 3"]:
    """A crop of a texture: scale, turn, flip and place; upright ones keep their up."""
    scale = draw.uniform((), 0.22, 0.42)
    turn = draw.uniform((), -math.pi, math.pi) * jnp.where(upright, 0.03, 1.0)
    flip = jnp.where(draw.chance(0.5), 1.0, -1.0)
    cos, sin = scale * jnp.cos(turn), scale * jnp.sin(turn)
    u, v = draw.uniform((2,), 0.0, 2.0)
    v = jnp.where(upright, 0.35 + 0.15 * v, v)
    return jnp.stack([cos * flip, -sin, u, sin * flip, cos, v]).reshape(2, 3)


@jax.jit
def sample_world(seed: Int[Array, ""] | int) -> World:
    """The world of a seed; the same on every device and in every batch."""
    draw = _Draws(jax.random.key(seed))
    corners = np.array([[-0.48, -0.42], [0.48, -0.42], [-0.48, 0.42], [0.48, 0.42]], np.float32)
    liveliness = draw.uniform((OBJECTS, 1), 0.35, 1.0)
    motion = draw.wave(jnp.asarray([0.46, 0.40, 0.30, 0.10]) * liveliness, 80, 400)
    # An orbit moves along x and y with one period, a quarter of it apart.
    orbits = draw.chance(0.3, (OBJECTS, 1))
    period, phase = motion.period, motion.phase
    quarter = (phase[:, 0] + period[:, 0] // 4) % period[:, 0]
    motion = replace(
        motion,
        period=period.at[:, 1].set(jnp.where(orbits, period[:, 0], period[:, 1])),
        phase=phase.at[:, 1].set(jnp.where(orbits, quarter, phase[:, 1])),
    )
    turning = draw.integers((OBJECTS, 1), -1, 2) * draw.chance(0.5, (OBJECTS, 1)).astype(jnp.int32)
    turns = replace(draw.wave(np.ones(OBJECTS), 120, 500, 1), amplitude=turning.astype(jnp.float32))

    named = draw.chance(0.1)
    background = jnp.where(
        named,
        draw.integers((), 0, textures.NAMED),
        draw.integers((), textures.NAMED, textures.COUNT),
    )
    upright = background < textures.NAMED + textures.UPRIGHT
    rippling = draw.chance(0.3) & ~named
    crop_low, crop_high = jnp.asarray([0.0, 0.0, 0.10]), jnp.asarray([2.0, 2.0, 0.22])
    no_picture = jnp.zeros((PICTURE, PICTURE), jnp.uint32)
    return World(
        shape=draw.order(len(SHAPES))[:OBJECTS],
        colour=draw.order(len(COLOURS))[:OBJECTS],
        visible=jnp.arange(OBJECTS) < draw.integers((), 2, OBJECTS + 1),
        size=draw.uniform((OBJECTS,), 0.25, 0.43),
        home=jnp.asarray(corners)[draw.order(OBJECTS)] + draw.uniform((OBJECTS, 2), -0.16, 0.16),
        motion=motion,
        turns=turns,
        bounce=draw.chance(0.2, (OBJECTS,)),
        texture=draw.integers((OBJECTS,), textures.NAMED, textures.COUNT),
        crop=draw.uniform((OBJECTS, 3), crop_low, crop_high),
        contrast=jnp.where(draw.chance(0.2, (OBJECTS,)), 0.15, draw.uniform((OBJECTS,), 0.7, 1.5)),
        object_from_reference=jnp.zeros(OBJECTS, bool),
        object_picture=no_picture,
        background=background,
        backdrop=jnp.where(named, named_backdrop(), _random_backdrop(draw, upright)),
        grade=jnp.where(named, jnp.eye(3), _random_grade(draw)),
        ripple=draw.wave(jnp.where(rippling, jnp.full(2, 1.5), 0.0), 60, 160, 1),
        background_from_reference=jnp.zeros((), bool),
        background_picture=no_picture,
        camera=draw.wave([0.22, 0.16, 0.12, 0.12], 150, 700),
        light=draw.wave([0.13, 0.06, 0.025, 0.16, 0.16], 150, 900),
        shadow=draw.uniform((3,), jnp.asarray([-0.1, 0.03, 0.2]), jnp.asarray([0.1, 0.15, 0.5])),
    )
