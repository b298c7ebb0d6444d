"""Endless rendered scenes, deterministic by (seed, frame), and edits of them with ground truth.

A `World` is a handful of numbers: textured objects, a backdrop, a camera and a light, each moved by
`Wave`s. Any frame is rendered on its own, so a clip can start anywhere, for ever. An edit maps a
world to a changed one; its ground truth is the changed world, rendered at the same frames.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt32

from lsd_jax.data import shapes, textures
from lsd_jax.data.scene import OBJECTS, PICTURE, TAU, World, named_backdrop, sample_world
from lsd_jax.data.shapes import COLOURS, SHAPES
from lsd_jax.data.textures import BACKGROUNDS

__all__ = [
    "BACKGROUNDS", "COLOURS", "KINDS", "OBJECT_EDITS", "SHAPES", "SceneEdit", "World",
    "clip", "describe", "edit_world", "render", "sample_world", "scaled",
]  # fmt: skip

KINDS = (
    "none", "reshape", "recolour", "remove", "background",
    "background_from_reference", "object_from_reference",
)  # fmt: skip
OBJECT_EDITS = ("recolour", "reshape", "object_from_reference")
"""The scene edits after which the object is still there, looking otherwise."""
SMALLEST = 1e-3  # of its size, that an object can be seen at


@no_type_check  # in a batch each field has leading axes
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SceneEdit:
    """A change to a world, as numbers, so that a batch can hold different kinds.

    `kind` counts in `KINDS`, `object` in the world's objects, `shape`, `colour` and `background` in
    `SHAPES`, `COLOURS` and `BACKGROUNDS`. Fields that a kind does not need are ignored.
    """

    kind: Int[Array, ""]
    object: Int[Array, ""]
    shape: Int[Array, ""]
    colour: Int[Array, ""]
    background: Int[Array, ""]
    reference: Float[Array, "rh rw 3"]  # in [0, 1]


def _soften(x, limit):
    """Near the identity, and never past `limit`."""
    return limit * jnp.tanh(x / limit)


def _swell(turns):
    """Nearly the sine of an angle in turns, by parabolas: cheap enough for every pixel."""
    t = 2 * (turns - jnp.floor(turns)) - 1
    return -4 * t * (1 - jnp.abs(t))


def poses(world: World, frame, aspect: float):
    """Centres [o, 2], angles [o] and radii [o] of the objects at a frame; `aspect` is w over h."""
    moved = world.motion.at(frame)
    height = world.motion.angle(frame)[:, 1, 0]
    reach = world.motion.amplitude[:, 1, 0]
    fall = reach * (1 - 2 * jnp.abs(jnp.sin(0.5 * height)))
    y = jnp.where(world.bounce, fall, moved[:, 1])
    x = _soften(world.home[:, 0] + moved[:, 0], 0.8) * aspect
    turn = (world.turns.amplitude * world.turns.angle(frame))[:, 0]
    centre = jnp.stack([x, _soften(world.home[:, 1] + y, 0.75)], -1)
    return centre, moved[:, 2] + turn, world.size * jnp.exp(moved[:, 3])


def _from_picture(picture, u, v):
    zero = jnp.zeros((), jnp.int32)
    return textures.sample(picture.reshape(-1), zero, jnp.int32(PICTURE), u, v)


def _look(world: World, frame, height: int, width: int):
    """The camera: screen x [1, w] and y [h, 1], world x and y [h, w], world units per screen."""
    pan_x, pan_y, zoom, roll = world.camera.at(frame)
    unit = jnp.exp(-zoom)
    screen_y = ((jnp.arange(height, dtype=jnp.float32) + 0.5) * (2 / height) - 1)[:, None]
    screen_x = ((jnp.arange(width, dtype=jnp.float32) + 0.5) * (2 / width) - 1)[None]
    screen_x = screen_x * (width / height)
    cos, sin = unit * jnp.cos(roll), unit * jnp.sin(roll)
    x = cos * screen_x - sin * screen_y + pan_x
    y = sin * screen_x + cos * screen_y + pan_y
    return screen_x, screen_y, x, y, unit


def _behind(world: World, frame, x, y, height: int, bank):
    """What lies behind all objects, [3, h, w]: a picture of the bank, or the reference."""
    wave = world.ripple.angle(frame)[:, 0] / TAU
    strength = world.ripple.amplitude[:, 0] * 0.012
    warped_x = x + strength[0] * _swell(0.8 * y + wave[0])
    warped_y = y + strength[1] * _swell(0.65 * x + wave[1])
    m = world.backdrop
    u = m[0, 0] * warped_x + m[0, 1] * warped_y + m[0, 2]
    v = m[1, 0] * warped_x + m[1, 1] * warped_y + m[1, 2]
    texels_per_pixel = jnp.sqrt(m[0, 0] ** 2 + m[1, 0] ** 2) * textures.SIZE / (height / 2)
    start, side = textures.locate(world.background, textures.level_of(texels_per_pixel))
    image = textures.sample(bank, start, side, u, v)[:3]
    image = jnp.einsum("ij,jhw->ihw", world.grade, image, precision="highest")
    reference = _from_picture(world.background_picture, 0.5 + 0.5 * x, 0.5 + 0.5 * y)[:3]
    return jnp.clip(jnp.where(world.background_from_reference, reference, image), 0, 1)


def render(
    world: World,
    frame: Int[Array, ""] | int,
    height: int,
    width: int,
    bank: UInt32[Array, " texels"] | None = None,
) -> Float[Array, "height width 3"]:
    """One frame in [0, 1]. Inside a jitted function hand it `textures.bank()` as an argument."""
    bank = textures.bank() if bank is None else bank
    return _frame(world, jnp.asarray(frame, jnp.int32), height, width, bank)


@functools.partial(jax.jit, static_argnames=("height", "width"))  # traced once for all callers
def _frame(world: World, frame, height: int, width: int, bank):
    aspect = width / height
    screen_x, screen_y, x, y, unit = _look(world, frame, height, width)
    pixel = unit * (2 / height)

    # What the objects cover, and where the one that a pixel shows has its texture. The loop keeps
    # a compiler from computing all this anew wherever it is used.
    centre, angle, radius = poses(world, frame, aspect)
    level = textures.level_of(world.crop[:, 2] * textures.SIZE / (world.size * height / 2))
    start, side = textures.locate(world.texture, level)

    def paint(shown, item):
        number, shape, visible, centre, angle, radius, crop, start, side = item
        dx, dy = x - centre[0], y - centre[1]
        cos, sin = jnp.cos(angle) / radius, jnp.sin(angle) / radius
        local_x, local_y = cos * dx + sin * dy, cos * dy - sin * dx
        distance = shapes.distance(shape, local_x, local_y) * radius
        cover = jnp.where(visible, jnp.clip(0.5 - distance / pixel, 0, 1), 0)
        shift_x, shift_y = dx - world.shadow[0], dy - world.shadow[1]
        far = (shift_x * shift_x + shift_y * shift_y) / (1.4 * radius) ** 2
        fade = jnp.clip(1 - far, 0, 1)
        shade = jnp.where(visible, 1 - world.shadow[2] * 1.4 * fade * fade, 1)
        u, v = crop[0] + crop[2] * local_x, crop[1] + crop[2] * local_y
        fresh = number, start, side, u, v, 0.5 + 0.5 * local_x, 0.5 + 0.5 * local_y
        return [jnp.where(cover > 0.5, *pair) for pair in zip(fresh, shown, strict=True)], (
            cover, shade)  # fmt: skip

    nothing = [jnp.full((height, width), n, jnp.int32) for n in (-1, 0, 1)]
    nothing += [jnp.zeros((height, width), jnp.float32)] * 4
    objects = (jnp.arange(OBJECTS, dtype=jnp.int32), world.shape, world.visible, centre, angle,
               radius, world.crop, start, side)  # fmt: skip
    (top, start, side, u, v, own_u, own_v), (cover, shade) = jax.lax.scan(paint, nothing, objects)

    # Painter's order, each object throwing its shadow on all below it.
    image = _behind(world, frame, x, y, height, bank)
    luminance = textures.sample(bank, start, side, u, v)[3]
    own = _from_picture(world.object_picture, own_u, own_v)[:3]

    def lay(image, item):
        number, base, contrast, referenced, centre, radius, cover, shade = item
        seen = top == number
        slope = 1.0 - 0.16 * (x - centre[0] + y - centre[1]) / radius  # light from the upper left
        relief = jnp.where(seen, slope * (1 + contrast * (luminance - 0.5)), slope)
        painted = jnp.where(referenced & seen, own, base[:, None, None] * relief)
        return (1 - cover) * (shade * image) + cover * jnp.clip(painted, 0, 1), None

    base = shapes.palette()[world.colour]
    objects = (jnp.arange(OBJECTS, dtype=jnp.int32), base, world.contrast,
               world.object_from_reference, centre, radius, cover, shade)  # fmt: skip
    image, _ = jax.lax.scan(lay, image, objects)

    bright, warm, green, along_x, along_y = world.light.at(frame)
    field = jnp.exp(bright) * (1 + along_x * screen_x / max(aspect, 1.0) + along_y * screen_y)
    gains = jnp.stack([1 + warm, 1 + green, 1 - warm])[:, None, None]
    return jnp.moveaxis(jnp.clip(image * gains * field, 0, 1), 0, -1)


@functools.partial(jax.jit, static_argnames=("count", "height", "width"))
def _clip(world, start, bank, count, height, width):
    frames = jnp.asarray(start, jnp.int32) + jnp.arange(count, dtype=jnp.int32)
    images = jax.vmap(lambda f: render(world, f, height, width, bank))(frames)
    return jnp.round(images * 255).astype(jnp.uint8)


def clip(
    world: World,
    start: Int[Array, ""] | int,
    count: int,
    height: int,
    width: int,
    bank: UInt32[Array, " texels"] | None = None,
) -> UInt8[Array, "count height width 3"]:
    """Frames `start` to `start + count`, as bytes."""
    return _clip(world, start, textures.bank() if bank is None else bank, count, height, width)


def scaled(world: World, scale: Float[Array, " o"]) -> World:
    """The world with each object at so many times its size; below `SMALLEST` it is not there."""
    size = world.size * jnp.maximum(scale, SMALLEST)  # of nothing there is no texture
    return replace(world, size=size, visible=world.visible & (scale > SMALLEST))


def edit_world(world: World, edit: SceneEdit) -> World:
    """The world after an edit; `none` returns the same numbers."""

    def is_(kind):
        return edit.kind == KINDS.index(kind)

    chosen = jnp.arange(OBJECTS) == edit.object
    picture = textures.pack(edit.reference, PICTURE)
    named = is_("background")
    anew = named | is_("background_from_reference")
    return replace(
        world,
        shape=jnp.where(chosen & is_("reshape"), edit.shape, world.shape),
        colour=jnp.where(chosen & is_("recolour"), edit.colour, world.colour),
        visible=world.visible & ~(chosen & is_("remove")),
        object_from_reference=(world.object_from_reference & ~(chosen & is_("recolour")))
        | (chosen & is_("object_from_reference")),
        object_picture=jnp.where(is_("object_from_reference"), picture, world.object_picture),
        background=jnp.where(named, edit.background, world.background),
        backdrop=jnp.where(anew, named_backdrop(), world.backdrop),
        grade=jnp.where(anew, jnp.eye(3), world.grade),
        ripple=replace(world.ripple, amplitude=jnp.where(anew, 0.0, world.ripple.amplitude)),
        background_from_reference=(world.background_from_reference & ~named)
        | is_("background_from_reference"),
        background_picture=jnp.where(
            is_("background_from_reference"), picture, world.background_picture
        ),
    )


def describe(world: World) -> list[tuple[str, str]]:
    """(shape, colour) of each visible object, in order; host-side, on concrete arrays."""
    shape, colour, visible = (np.asarray(a) for a in (world.shape, world.colour, world.visible))
    names, colours = SHAPES, tuple(COLOURS)
    return [
        (names[s], colours[c]) for s, c, seen in zip(shape, colour, visible, strict=True) if seen
    ]
