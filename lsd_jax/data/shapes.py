"""The shapes and colours that a prompt can name: signed distances of unit shapes, and a palette."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")

COLOURS = {
    "red": (0.88, 0.08, 0.10),
    "orange": (1.00, 0.50, 0.04),
    "yellow": (0.98, 0.87, 0.10),
    "green": (0.10, 0.65, 0.18),
    "cyan": (0.08, 0.82, 0.86),
    "blue": (0.10, 0.24, 0.90),
    "purple": (0.50, 0.14, 0.76),
    "pink": (1.00, 0.50, 0.74),
}


def _circle(x, y, length):
    return length - 0.92


def _square(x, y, length):
    return jnp.maximum(jnp.abs(x), jnp.abs(y)) - 0.80


def _triangle(x, y, length):
    return jnp.maximum(math.sqrt(0.75) * jnp.abs(x) - 0.5 * (y - 0.15), y - 0.15) - 0.60


def _star(x, y, length):
    # A pentagram holds the points inside at least four of its five lines: the second largest
    # of the five signed distances.
    largest, second = jnp.full_like(x, -9.0), jnp.full_like(x, -9.0)
    for k in range(5):
        angle = 2 * math.pi * k / 5 + math.pi / 2
        distance = math.cos(angle) * x + math.sin(angle) * y - 0.36
        second = jnp.maximum(second, jnp.minimum(largest, distance))
        largest = jnp.maximum(largest, distance)
    return second


def _ring(x, y, length):
    return jnp.abs(length - 0.74) - 0.24


def _cross(x, y, length):
    x, y = jnp.abs(x), jnp.abs(y)
    return jnp.maximum(jnp.maximum(x, y) - 0.94, jnp.minimum(x, y) - 0.30)


def _diamond(x, y, length):
    # A rhombus much taller than wide, so that a turned square is not one.
    return (jnp.abs(x) * 1.75 + jnp.abs(y)) / math.hypot(1.75, 1.0) - 0.54


def _heart(x, y, length):
    # A square on its tip, and a disc on each of its two upper sides; mirrored in x.
    x, y = jnp.abs(x), 0.80 - y  # the tip at the origin, up is positive
    side = 1.05
    across, along = (x + y) * math.sqrt(0.5), (y - x) * math.sqrt(0.5)
    square = jnp.maximum(across - side, along - side)
    disc = jnp.sqrt((across - side) ** 2 + (along - side / 2) ** 2) - side / 2
    return jnp.minimum(jnp.maximum(square, -along), disc)


_DISTANCES = (_circle, _square, _triangle, _star, _ring, _cross, _diamond, _heart)


def distance(
    shape: Int[Array, ""], x: Float[Array, "h w"], y: Float[Array, "h w"]
) -> Float[Array, "h w"]:
    """Signed distance to the unit shape numbered `shape`, negative inside; y points down.

    All shapes have about a unit's radius. Distances are exact on the boundary and have unit
    slope there, which is all that anti-aliasing asks for; far from corners they are bounds, as in
    Inigo Quilez, "2D distance functions".
    """
    length = jnp.sqrt(x * x + y * y + 1e-12)
    result = _DISTANCES[0](x, y, length)
    for number, function in enumerate(_DISTANCES[1:], 1):
        result = jnp.where(shape == number, function(x, y, length), result)
    return result


def palette() -> Float[Array, "colours 3"]:
    """The colours of `COLOURS`, in order."""
    return jnp.asarray(list(COLOURS.values()), jax.dtypes.canonicalize_dtype(jnp.float32))
