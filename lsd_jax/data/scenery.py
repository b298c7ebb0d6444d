"""Painters of natural-looking pictures, and of the backgrounds that prompts can name.

Filmed footage has occlusion edges between surfaces of every size and a power spectrum near 1/f^2.
So have these: dead leaves with power-law radii (Lee, Mumford & Huang 2001), coloured noise with
amplitude near 1/f (Field 1987), and layered scenes of sky, hills, trees, water and rooms. Each
painter takes a numpy generator and returns [SIZE, SIZE, 3], about in [0, 1].
"""

from __future__ import annotations

import numpy as np

SIZE = 256
_BARK = np.array([0.2, 0.13, 0.08], np.float32)
_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE


def _noise(rng, exponent=1.0, stretch=(1.0, 1.0), shape=(SIZE, SIZE)):
    """Periodic noise with amplitude 1/f^exponent, deviation 1, drawn out by `stretch` (y, x)."""
    fy = np.fft.fftfreq(shape[0], 1 / shape[0])[:, None] * stretch[0]
    fx = np.fft.rfftfreq(shape[1], 1 / shape[1]) * stretch[1]
    f = np.hypot(fy, fx).astype(np.float32)
    f[0, 0] = np.inf
    parts = rng.standard_normal((2, *f.shape), np.float32) / f**exponent
    field = np.fft.irfft2(parts[0] + np.complex64(1j) * parts[1], shape)
    return field / field.std()


def _line(rng, exponent=1.3):
    """A silhouette: noise along x, [SIZE]."""
    return _noise(rng, exponent, shape=(1, SIZE))[0]


def _rgb(hue, saturation, value):
    """HSV, hue in turns, to RGB on the last axis."""
    hue = np.asarray(hue, np.float32)
    k = (np.array([5, 3, 1], np.float32) + hue[..., None] * 6) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    return np.asarray(value)[..., None] * (1 - np.asarray(saturation)[..., None] * ramp)


def _palette(rng, count):
    """Colours of one place: two hues, mostly earth, leaf and sky, over a wide range of light."""
    anchors = rng.choice([0.07, 0.1, 0.13, 0.25, 0.33, 0.55, 0.6, rng.random()], 2)
    hue = rng.choice(anchors, count) + rng.normal(0, 0.035, count)
    return _rgb(hue % 1, rng.beta(2, 3.5, count), rng.uniform(0.08, 1.0, count) ** 0.9)


def _lit(image, rng, strength=0.12, exponent=0.9):
    """`image` with the grain of a material on it."""
    return image * (1 + strength * _noise(rng, exponent))[..., None]


def _blob(image, centre, radii, colour, angle=0.0, box=False, shade=(0.0, 0.0)):
    """Paints one anti-aliased ellipse or rectangle, texels, with a linear gradient of light."""
    reach = np.hypot(*radii) if box else max(radii)
    top, left = (max(int(c - reach - 1), 0) for c in centre)
    bottom, right = (min(int(c + reach + 2), SIZE) for c in centre)
    if top >= bottom or left >= right:
        return
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - centre[0]
    dx = np.arange(left, right, dtype=np.float32) - centre[1]
    c, s = np.cos(angle), np.sin(angle)
    v, u = np.abs(c * dy - s * dx), np.abs(s * dy + c * dx)
    if box:
        distance = np.maximum(v - radii[0], u - radii[1])
    else:
        distance = (np.hypot(v / radii[0], u / radii[1]) - 1) * min(radii)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    light = 1 + (shade[0] * dy + shade[1] * dx)[..., None] / reach
    patch = image[top:bottom, left:right]
    patch += cover * (colour * light - patch)


def _dead_leaves(rng, count=600):
    """Leaves that fall on each other; radii have density r^-3, so no scale is special."""
    image = np.broadcast_to(_palette(rng, 1)[0], (SIZE, SIZE, 3)).astype(np.float32).copy()
    colours = _palette(rng, count)
    smallest, largest = rng.uniform(2.5, 6.0), rng.uniform(50, 110)
    box, turned = rng.random() < 0.3, rng.random() < 0.7
    radius = smallest / np.sqrt(1 - rng.random(count) * (1 - (smallest / largest) ** 2))
    for k in range(count):
        aspect = rng.uniform(0.4, 1.0)
        radii = (radius[k], radius[k] * aspect)[:: rng.choice([-1, 1])]
        angle = turned * rng.uniform(0, np.pi)
        _blob(image, rng.uniform(0, SIZE, 2), radii, colours[k], angle, box, rng.normal(0, 0.22, 2))
    return _lit(image, rng)


def _coloured_noise(rng):
    light = _noise(rng, rng.uniform(0.9, 1.5))
    image = 0.45 + 0.18 * light[..., None] * np.ones(3, np.float32)
    for axis in _rgb(rng.random(2), np.ones(2), np.ones(2)):
        tint = rng.uniform(0.05, 0.2) * (axis - axis.mean())
        image += tint * _noise(rng, rng.uniform(1.1, 1.7))[..., None]
    return image


def _clouds(rng, bottom=1.0, top_colour=None, low_colour=None):
    """A graded sky down to the height `bottom`, with drawn-out clouds."""
    hue = rng.uniform(0.54, 0.63)
    if top_colour is None:
        top_colour = _rgb(hue, rng.uniform(0.4, 0.85), rng.uniform(0.45, 0.8))
        low_colour = _rgb(rng.choice([hue, 0.09]), rng.uniform(0.05, 0.4), rng.uniform(0.8, 1.0))
    ramp = np.clip(_Y / bottom, 0, 1)[..., None]
    puff = _noise(rng, 1.6, (1.0, rng.uniform(1.5, 3.5)))
    cover = np.clip((puff - rng.uniform(-0.2, 1.0)) * 0.8, 0, 1)[..., None]
    cloud = np.clip(0.92 + 0.06 * _noise(rng, 1.5) - 0.05 * puff, 0.6, 1)[..., None]
    sky = top_colour + (low_colour - top_colour) * ramp
    return sky + cover * (cloud * np.array([1, 0.98, 0.96], np.float32) - sky)


def _blue_sky(rng):
    return _clouds(rng, 1.0, np.array([0.12, 0.36, 0.86]), np.array([0.55, 0.78, 0.98]))


def _strokes(rng, count=800, colours=None, turn=None):
    """Brush strokes along a smooth field of directions over a smooth underpainting."""
    under = _coloured_noise(rng) if colours is None else colours
    image = under.astype(np.float32).copy()
    field = _noise(rng, 2.0) * 0.9 if turn is None else turn + 0.25 * _noise(rng, 1.5)
    for k in range(count):
        cy, cx = rng.uniform(0, SIZE, 2)
        here = int(cy), int(cx)
        length = rng.uniform(6, 22) * (1.4 - k / count)
        colour = under[here] * rng.uniform(0.6, 1.4) + rng.normal(0, 0.04, 3)
        _blob(image, (cy, cx), (length * rng.uniform(0.1, 0.25) + 0.7, length), colour, field[here])
    return _lit(image, rng, 0.06, 0.5)


def _wood(rng):
    dark, light = np.sort(rng.uniform(0.15, 0.9, 2))
    hue = rng.uniform(0.04, 0.12) if rng.random() < 0.7 else rng.random()
    warp = 0.06 * _noise(rng, 1.8, (rng.uniform(2, 6), 1.0))
    rings = (_X + warp) * rng.uniform(6, 22)
    ring = 0.5 + 0.5 * np.sin(2 * np.pi * rings) * np.cos(2.1 * rings)
    fibre = _noise(rng, 0.7, (8.0, 1.0))
    value = dark + (light - dark) * np.clip(ring + 0.18 * fibre, 0, 1.2)
    image = _rgb(np.full_like(value, hue), rng.uniform(0.25, 0.65), value)
    return image if rng.random() < 0.5 else image.transpose(1, 0, 2)


def _tree(image, rng, x, foot, height, colour):
    _blob(image, (foot - height * 0.25, x), (height * 0.3, height * 0.025 + 0.6), _BARK)
    leaves = 40 + int(height / 2)
    away = rng.normal(0, 0.15, (leaves, 2)) * height
    size = height * rng.uniform(0.02, 0.07, leaves) + 0.8
    light = rng.uniform(0.35, 0.75, leaves) + np.arange(leaves) / leaves * 0.5
    light -= (0.9 * away[:, 0] + 0.5 * away[:, 1]) / height
    for k in range(leaves):
        _blob(image, (foot - height * 0.62 + away[k, 0], x + away[k, 1]),
              (size[k], size[k] * 0.7), colour * light[k], k)  # fmt: skip


def _landscape(rng):
    """Sky, hills that fade into its haze, perhaps a lake, and trees in order of depth."""
    horizon = rng.uniform(0.3, 0.65)
    image = _clouds(rng, horizon).astype(np.float32)
    haze = image[int(horizon * SIZE)].mean(0)
    near = _rgb(rng.choice([0.07, 0.1, 0.16, 0.22, 0.26, 0.3]), rng.uniform(0.2, 0.6),
                rng.uniform(0.25, 0.7))  # fmt: skip
    layers = rng.integers(2, 5)
    for k in range(layers):
        depth = (k + 1) / layers
        edge = horizon + 0.1 * depth**2 - 0.06 + 0.05 * _line(rng, 1.3 + 0.5 * rng.random())
        cover = np.clip((_Y - edge) * SIZE + 0.5, 0, 1)[..., None]
        colour = haze + (near * rng.uniform(0.6, 1.3, 3) ** 0.5 - haze) * depth**0.8
        relief = _noise(rng, 1.1, (1.0, 2.5)) * (0.5 + 0.9 * np.clip(_Y - horizon, 0, 1))
        image += cover * (colour * (1 + 0.3 * depth * relief)[..., None] - image)
    if rng.random() < 0.35:  # a lake: the picture above its shore, upside down and rippled
        shore = int(SIZE * (horizon + rng.uniform(0.1, 0.2)))
        rows = np.arange(shore, SIZE)
        ripple = (4 * _noise(rng, 1.0, (1.0, 5.0))[shore:]).astype(int)
        source = np.clip(2 * shore - rows[:, None] + ripple, 0, shore - 1)
        image[shore:] = 0.75 * image[source, np.arange(SIZE)[None]] + 0.05 * haze
    leaf = _rgb(rng.choice([0.08, 0.17, 0.22, 0.27, 0.33]), rng.uniform(0.35, 0.75),
                rng.uniform(0.3, 0.6))  # fmt: skip
    for depth in np.sort(rng.uniform(0.02, 1, rng.integers(0, 9))):
        foot = (horizon + 0.06 + 0.35 * depth**1.5) * SIZE
        _tree(image, rng, rng.uniform(0, SIZE), foot, 14 + 130 * depth**1.3, leaf)
    return _lit(image, rng, 0.03, 0.7)


def _room(rng):
    """A wall and a floor, lit from one side, with windows, pictures, furniture and small things."""
    wall, floor, *colours = _palette(rng, 44)
    edge = rng.uniform(0.55, 0.8)
    image = np.where((_Y < edge)[..., None], wall * (1.2 - 0.6 * _X)[..., None],
                     floor * (0.6 + 0.7 * _Y)[..., None]).astype(np.float32)  # fmt: skip
    for k, colour in enumerate(colours):
        radii = np.array(rng.uniform(0.25, 0.8, 2) * (62 / (1 + 0.12 * k) ** 1.1 + 2))
        across = rng.uniform(0, SIZE)
        if k < 4:  # on the wall, in a frame
            centre = rng.uniform(0.1, 0.8) * edge * SIZE, across
            radii *= 0.7
            _blob(image, centre, radii + 3, colours[-1 - k], box=True)
        else:  # it stands on the floor, nearer ones lower
            foot = edge * SIZE + k * rng.uniform(0.3, 2.0)
            centre = foot - radii[0], across
            _blob(image, (foot, across + 0.3 * radii[1]), (3 + 0.15 * radii[0], radii[1] * 1.2),
                  floor * 0.3)  # fmt: skip
        _blob(image, centre, radii, colour, 0.0, rng.random() < 0.7, rng.normal(0, 0.3, 2))
    return _lit(image, rng, 0.05, 0.8)


def _brick_wall(rng):
    row = np.floor(_Y * 16).astype(int)
    shifted = _X * 8 + 0.5 * (row % 2)
    brick = np.floor(shifted).astype(int) % 8
    tone = rng.uniform(0.7, 1.2, (16, 8))[row, brick][..., None]
    inside = np.minimum(np.minimum(shifted % 1, 1 - shifted % 1) * 2,
                        np.minimum(_Y * 16 % 1, 1 - _Y * 16 % 1))  # fmt: skip
    cover = np.clip((inside - 0.08) * 12, 0, 1)[..., None]
    mortar = np.array([0.74, 0.7, 0.64]) * np.ones_like(tone)
    return _lit(mortar + cover * (np.array([0.66, 0.24, 0.16]) * tone - mortar), rng, 0.1, 0.6)


def _checkerboard(rng):
    odd = (np.floor(_X * 10.667) + np.floor(_Y * 10.667)) % 2
    return np.where(odd[..., None] > 0, 0.94, 0.05) * np.ones(3)


def _grass(rng):
    base = _rgb(0.28 + 0.02 * _noise(rng, 1.2), 0.8, np.clip(0.45 + 0.1 * _noise(rng, 1.0), 0.1, 1))
    return _strokes(rng, 2200, base, np.pi / 2)


def _sunset(rng):
    stops = np.array([[0.16, 0.10, 0.38], [0.55, 0.16, 0.45], [0.96, 0.38, 0.22], [1, 0.78, 0.3]])
    at = np.linspace(0.1, 0.68, 4)
    image = np.stack([np.interp(_Y, at, stops[:, c]) for c in range(3)], -1).astype(np.float32)
    away = np.hypot(_X - 0.5, _Y - 0.6)
    image += (0.5 * np.exp(-((away / 0.14) ** 2)))[..., None] * np.array([1, 0.8, 0.4])
    image += np.clip((0.075 - away) * SIZE, 0, 1)[..., None]
    bands = np.clip(_noise(rng, 1.5, (1.0, 5.0)) - 0.7, 0, 1)[..., None] * (_Y < 0.66)[..., None]
    image += 0.6 * bands * (np.array([0.5, 0.14, 0.3]) - image)
    edge = 0.69 + 0.02 * _line(rng, 1.4)
    return np.where((_Y > edge)[..., None], np.array([0.07, 0.03, 0.1]), image)


def _deep_space(rng):
    cloud = np.clip(_noise(rng, 1.7) * 0.5, 0, 2)[..., None] * np.array([0.26, 0.08, 0.42])
    image = cloud + np.clip(_noise(rng, 1.7) * 0.4, 0, 2)[..., None] * np.array([0.02, 0.12, 0.3])
    image = (0.015 + image).astype(np.float32)
    for radius in np.clip(0.6 / rng.random(260) ** 0.45, 0.6, 3.0):
        _blob(image, rng.uniform(0, SIZE, 2), (radius, radius), rng.uniform(0.75, 1.0, 3))
    return image


NAMED = {
    "blue sky": _blue_sky,
    "brick wall": _brick_wall,
    "checkerboard": _checkerboard,
    "green grass": _grass,
    "sunset": _sunset,
    "deep space": _deep_space,
}
UPRIGHT = {_landscape: 30, _room: 12, _clouds: 8}  # pictures of each that a bank holds
ANYWAY = {_dead_leaves: 14, _coloured_noise: 10, _strokes: 8, _wood: 8}
