"""Ground truth of the footage edits: pure functions of any video's pixels and frame numbers.

`EDITS[name](frames, index)` maps frames in [0, 1] to frames in [0, 1]; all are deterministic,
jittable, vmappable and free of a resolution (see `filters`). Below, x is the picture and
l = 0.299 R + 0.587 G + 0.114 B its brightness. Only snow and rain look at the frame number: their
specks fall at a steady speed and carry little of the change, so that a model which never learns
the number can carry them on from the frame it drew before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from lsd_jax.data import filters, prompts
from lsd_jax.data.filters import luma, mix, rgb, saturate, smoothstep

Frames = Float[Array, "f h w 3"]
Index = Int[Array, " f"]
Edit = Callable[[Frames, Index], Frames]

NIGHT_TINT = (0.20, 0.27, 0.48)
SNOW_COLOUR = (0.93, 0.96, 1.0)
FOG_COLOUR = (0.78, 0.80, 0.82)
RAIN_TINT = (0.39, 0.45, 0.50)
PAPER = (0.97, 0.96, 0.93)
VARNISH = (1.0, 0.86, 0.58)
SEPIA = (1.0, 0.84, 0.60)
DUSK_LIGHT, DUSK_SHADE = (1.0, 0.62, 0.34), (0.22, 0.06, 0.20)
NEON_GROUND = (0.05, 0.02, 0.12)
HEAT = (
    (0.00, 0.00, 0.15),
    (0.30, 0.00, 0.60),
    (0.85, 0.10, 0.35),
    (1.00, 0.50, 0.00),
    (1.00, 0.90, 0.20),
    (1.00, 1.00, 0.95),
)


def night(frames: Frames, index: Index) -> Frames:
    """Moonlight: tint * (0.4 x + 0.6 l)^1.4, dark, blue and pale in colour."""
    return rgb(*NIGHT_TINT) * jnp.maximum(saturate(frames, 0.4), 1e-6) ** 1.4


def snow(frames: Frames, index: Index) -> Frames:
    """Colours fade to a third, 45 % (dark) to 80 % (bright) turns white, and flakes fall."""
    cover = 0.45 + 0.35 * smoothstep(0.2, 0.7, luma(frames))
    ground = mix(saturate(frames, 0.35), rgb(*SNOW_COLOUR), cover)
    flakes = filters.particles(
        index, *frames.shape[1:3], cells=(10.0, 10.0), fall=12, slant=0.2,
        half=(0.13, 0.13), chance=0.6, seed=1,
    )  # fmt: skip
    return mix(ground, 1.0, 0.8 * flakes)


def fog(frames: Frames, index: Index) -> Frames:
    """0.3 of the picture, blurred, and 0.7 of the fog's colour (Koschmieder's law, 1924)."""
    return mix(filters.blur(frames, 1.5), rgb(*FOG_COLOUR), 0.7)


def rain(frames: Frames, index: Index) -> Frames:
    """Grey, soft and low in contrast, tint * (0.3 x + 0.7 l) + 0.08, and slanting streaks."""
    wet = rgb(*RAIN_TINT) * saturate(filters.blur(frames, 1.0), 0.3) + 0.08
    streaks = filters.particles(
        index, *frames.shape[1:3], cells=(5.0, 22.0), fall=24, slant=0.5,
        half=(0.35, 0.09), chance=0.5, seed=2,
    )  # fmt: skip
    return mix(wet, 0.75, 0.35 * streaks)


def sketch(frames: Frames, index: Index) -> Frames:
    """Dark pencil where brightness changes, blank paper elsewhere."""
    stroke = smoothstep(0.01, 0.11, filters.slope(luma(frames), 1.2))
    return rgb(*PAPER) * (1.0 - 0.88 * stroke)


def cartoon(frames: Frames, index: Index) -> Frames:
    """Flat, loud areas with dark outlines (after Winnemoeller et al., 2006).

    Kuwahara smoothing, brightness pulled to four levels by l - sin(8 pi l) / (8 pi), colours at
    1.9 times their distance from grey.
    """
    flat = filters.kuwahara(frames, 4.0)
    grey = luma(flat)
    level = grey - jnp.sin(8.0 * jnp.pi * grey) / (8.0 * jnp.pi)
    loud = 1.2 * level + 0.06 + 1.9 * (flat - grey)
    ink = smoothstep(0.03, 0.10, filters.slope(luma(frames), 1.2))
    return jnp.clip(loud, 0.0, 1.0) * (1.0 - 0.9 * ink)


def oil(frames: Frames, index: Index) -> Frames:
    """Broad dabs (Kuwahara et al., 1976) under warm varnish, deep in colour."""
    dabs = filters.kuwahara(frames, 8.0)
    return jnp.clip(rgb(*VARNISH) * saturate(dabs, 1.5), 0.0, 1.0)


def pixels(frames: Frames, index: Index) -> Frames:
    """Blocks of 1/16 of the height, from the top left, each channel on five levels."""
    size = max(1, round(frames.shape[1] / 16))
    loud = jnp.clip(saturate(filters.blocks(frames, size), 1.5), 0.0, 1.0)
    return jnp.round(loud * 4.0) / 4.0


def thermal(frames: Frames, index: Index) -> Frames:
    """False colours of the brightness, indigo over red to white."""
    return filters.colour_map(filters.blur(luma(frames), 0.8), HEAT)


def noir(frames: Frames, index: Index) -> Frames:
    """Black and white with hard contrast, 1 / (1 + exp(-10 (l - 0.5))), and dark corners."""
    tone = jax.nn.sigmoid(10.0 * (luma(frames) - 0.5)) * filters.vignette(*frames.shape[1:3])
    return jnp.broadcast_to(tone, frames.shape)


def hue(frames: Frames, index: Index) -> Frames:
    """Hue turned by 120 degrees about the grey axis: red to green, green to blue, blue to red."""
    return jnp.roll(frames, 1, axis=-1)


def glass(frames: Frames, index: Index) -> Frames:
    """Behind frosted glass: blurred, bent by a fixed relief and milky, 0.65 x + 0.3."""
    return 0.65 * filters.refract(filters.blur(frames, 2.0), period=16.0, reach=2.5) + 0.3


def sepia(frames: Frames, index: Index) -> Frames:
    """A faded brown print: tint * (0.1 + 0.9 l)."""
    return rgb(*SEPIA) * (0.1 + 0.9 * luma(frames))


def sunset(frames: Frames, index: Index) -> Frames:
    """Golden hour: orange light and purple shade, light * x + shade * (1 - x)."""
    return rgb(*DUSK_LIGHT) * frames + rgb(*DUSK_SHADE) * (1.0 - frames)


def neon(frames: Frames, index: Index) -> Frames:
    """Edges of each colour channel glow in that colour on a dark ground."""
    edges = smoothstep(0.0, 0.16, filters.slope(frames, 1.5))
    glow = saturate(edges, 1.8) + 0.8 * filters.blur(edges, 2.5)
    return jnp.clip(rgb(*NEON_GROUND) + glow, 0.0, 1.0)


def negative(frames: Frames, index: Index) -> Frames:
    """Every colour's opposite, 1 - x."""
    return 1.0 - frames


EDITS: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        night, snow, fog, rain, sketch, cartoon, oil, pixels,
        thermal, noir, hue, glass, sepia, sunset, neon, negative,
    )
}  # fmt: skip
NAMES = tuple(EDITS)


def slots(names: tuple[str, ...]) -> tuple[int, int]:
    """Up to two edits as the indices that `compose` takes, with 0, the identity, for none."""
    if len(names) > 2:
        raise ValueError(f"{len(names)} edits at once ({', '.join(names)}); give at most two")
    numbers = [NAMES.index(name) + 1 for name in names] + [0, 0]
    return numbers[0], numbers[1]


def apply_index(name_index: Int[Array, ""], frames: Frames, index: Index) -> Frames:
    """Edit number `name_index`: 0 leaves the frames as they are, i is `NAMES[i - 1]`.

    For batches of clips use `lax.map`, which runs one edit per clip; under `vmap` a switch becomes
    a choice among the results of all of them.
    """
    branches = (lambda frames, index: frames, *EDITS.values())
    return jax.lax.switch(name_index, branches, frames, index)


def compose(first: Int[Array, ""], second: Int[Array, ""], frames: Frames, index: Index) -> Frames:
    """Two edits in order, as numbered by `apply_index`; compiled once for both."""

    def step(frames, name_index):
        return apply_index(name_index, frames, index), None

    return jax.lax.scan(step, frames, jnp.stack([first, second]))[0]


def apply(
    prompt: str, frames: UInt8[np.ndarray | Array, "f h w 3"], start_index: int = 0
) -> UInt8[np.ndarray, "f h w 3"]:
    """The video that a footage prompt asks for; `start_index` is the first frame's number.

    Understands every prompt of `prompts.footage_prompts` and compositions of them; the empty
    prompt changes nothing. Frame by frame, so any length fits and a cut video gives a cut result.
    Raises ValueError, with examples, for a prompt that names no footage edit.
    """
    names = prompts.parse(prompt)
    out = np.array(frames)
    for i in range(len(out) if names else 0):
        index = np.asarray([start_index + i], np.int32)
        out[i] = np.asarray(_apply_bytes(names, out[i : i + 1], index))[0]
    return out


@partial(jax.jit, static_argnums=0)
def _apply_bytes(names: tuple[str, ...], frames: Array, index: Array) -> Array:
    pictures = frames.astype(jnp.float32) / 255.0
    for name in names:
        pictures = EDITS[name](pictures, index)
    return jnp.round(pictures * 255.0).astype(jnp.uint8)
