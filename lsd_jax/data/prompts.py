"""What can be asked for, in words: paraphrases, compositions, which of them are held out.

Prompts come as *trained* and *held-out* ones. Held-out prompts are made of words that occur in
trained prompts, so a model that has learnt the words can follow them; they are reported apart.
This module needs no JAX: the command line imports it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

MAX_BYTES = 128
"""No prompt made here is longer."""

CARRY_ON = "carry on"
"""Takes the prompt back but not the edit: what the stream remembers says what it is."""


@dataclass(frozen=True)
class SceneSpec:
    """A change of the scene itself, all by name: what of which object becomes what.

    `object` is the shape of the object meant; `colour`, `shape` and `background` are new values.
    """

    kind: str
    object: str | None = None
    colour: str | None = None
    shape: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt and its meaning: footage edits in order, or a change of the scene."""

    text: str
    footage: tuple[str, ...]
    scene: SceneSpec | None
    held_out: bool


# Footage edit: (trained paraphrases, of which the first is its name in compositions; held-out).
PARAPHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "night": (
        ("night", "make it night", "turn day into night", "at night time", "in the moonlight",
         "make it dark", "a dark night"),
        ("turn it into night", "in the dark of night"),
    ),
    "snow": (
        ("snow", "make it snow", "cover everything with snow", "snowfall", "add snow",
         "turn it into winter", "a snowy winter day"),
        ("make it winter", "a day with falling snow"),
    ),
    "fog": (
        ("fog", "make it foggy", "add fog", "a foggy morning", "thick fog", "fill the air with fog",
         "in the mist"),
        ("a thick mist", "cover everything with fog"),
    ),
    "rain": (
        ("rain", "make it rain", "add rain", "a rainy day", "in the falling rain", "heavy rain",
         "turn the weather into rain"),
        ("a day of heavy rain", "rainy weather"),
    ),
    "sketch": (
        ("sketch", "outline sketch", "make it a pencil sketch", "draw only the outlines",
         "pencil drawing on paper", "sketch it with a pencil", "turn it into a drawing"),
        ("turn it into a pencil drawing", "a sketch on paper"),
    ),
    "cartoon": (
        ("cartoon", "make it a cartoon", "turn it into a cartoon", "cartoon style",
         "in the style of a comic", "draw it like a cartoon", "flat comic colours"),
        ("turn it into a comic", "a cartoon drawing"),
    ),
    "oil": (
        ("oil painting", "make it an oil painting", "turn it into an oil painting",
         "paint it in oil", "oil on canvas", "in the style of a painting", "painted in oil"),
        ("oil painting style", "paint it on canvas"),
    ),
    "pixels": (
        ("pixel art", "make it pixel art", "turn it into pixels", "big pixels", "8-bit style",
         "like an 8-bit game", "in the style of pixel art"),
        ("turn it into pixel art", "a game in big pixels"),
    ),
    "thermal": (
        ("thermal camera", "thermal", "make it a thermal image", "seen by a thermal camera",
         "show the heat", "infrared heat camera", "a heat map"),
        ("make it a heat map", "infrared thermal image"),
    ),
    "noir": (
        ("film noir", "make it film noir", "turn it into a film noir", "black and white film",
         "in black and white", "an old black and white movie", "noir"),
        ("make it black and white", "in the style of film noir"),
    ),
    "hue": (
        ("hue shift", "shift the hue", "shift all the colours", "rotate the colours",
         "swap the colours around", "change every hue", "turn the hues around"),
        ("rotate the hue", "shift every hue around"),
    ),
    "glass": (
        ("frosted glass", "behind frosted glass", "put frosted glass in front", "through glass",
         "seen through frosted glass", "look through a frosted window", "behind a frosted window"),
        ("put it behind frosted glass", "seen through a frosted window"),
    ),
    "sepia": (
        ("sepia", "make it sepia", "sepia tone", "turn it into an old photo", "add a sepia tone",
         "like a faded old photo", "brown and faded"),
        ("a sepia photo", "make it a faded photo"),
    ),
    "sunset": (
        ("sunset", "make it sunset", "golden hour", "at sunset", "in the golden evening light",
         "warm evening light", "turn day into sunset"),
        ("in the light of sunset", "make it golden hour"),
    ),
    "neon": (
        ("neon edges", "neon", "make it neon", "make the edges glow", "glowing neon lines",
         "turn it into neon lights", "neon outlines in the dark"),
        ("turn the edges into neon", "glowing edges"),
    ),
    "negative": (
        ("negative", "make it a negative", "invert the colours", "colour negative",
         "turn it into a negative", "photo negative", "invert it"),
        ("invert all the colours", "make it a photo negative"),
    ),
}  # fmt: skip

IDENTITY = (
    ("leave it as it is", "change nothing", "do nothing", "no change", "keep it as it is"),
    ("leave everything as it is",),
)

JOINERS = ("{a} and {b}", "{a}, then {b}", "{a} with {b}", "make it {a} and {b}")

TRAINED_PAIRS = (
    ("night", "snow"), ("night", "rain"), ("night", "fog"), ("night", "oil"), ("night", "pixels"),
    ("snow", "noir"), ("snow", "sepia"), ("snow", "oil"), ("snow", "glass"), ("fog", "sepia"),
    ("fog", "noir"), ("fog", "cartoon"), ("rain", "noir"), ("rain", "glass"), ("rain", "pixels"),
    ("sketch", "sepia"), ("sketch", "negative"), ("cartoon", "hue"), ("cartoon", "sunset"),
    ("oil", "hue"), ("oil", "sepia"), ("sunset", "oil"), ("sunset", "pixels"), ("sunset", "glass"),
    ("thermal", "pixels"), ("neon", "hue"), ("hue", "glass"),
)  # fmt: skip
HELD_OUT_PAIRS = (
    ("night", "glass"), ("snow", "pixels"), ("fog", "oil"), ("rain", "sepia"),
    ("cartoon", "negative"), ("sunset", "noir"), ("neon", "pixels"), ("hue", "pixels"),
)  # fmt: skip

# Scene edits: (trained templates, held-out templates); the fields are those of `scene_prompt`.
SCENE_TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reshape": (
        ("turn the {object} into {a_shape}", "make the {object} {a_shape}",
         "change the {object} into {a_shape}", "replace the {object} with {a_shape}",
         "swap the {object} for {a_shape}", "{a_shape} instead of the {object}"),
        ("change the {object} for {a_shape}", "put {a_shape} instead of the {object}"),
    ),
    "recolour": (
        ("make the {object} {colour}", "paint the {object} {colour}",
         "colour the {object} {colour}", "turn the {object} {colour}",
         "change the colour of the {object} to {colour}", "the {object} should be {colour}"),
        ("change the {object} to {colour}", "paint the {object} in {colour}"),
    ),
    "remove": (
        ("remove the {object}", "delete the {object}", "erase the {object}",
         "take away the {object}", "make the {object} disappear", "get rid of the {object}"),
        ("take the {object} away", "the {object} should disappear"),
    ),
    "background": (
        ("replace the background with {a_background}", "change the background to {a_background}",
         "make the background {a_background}", "put {a_background} behind everything",
         "use {a_background} as the background", "in front of {a_background}"),
        ("turn the background into {a_background}", "put everything in front of {a_background}"),
    ),
    "background_from_reference": (
        ("use the reference as the background", "replace the background with the reference",
         "put the reference image behind everything", "make the background the reference image",
         "change the background to the reference image", "in front of the reference image"),
        ("use the reference image as the background", "put everything in front of the reference"),
    ),
    "object_from_reference": (
        ("cover the {object} with the reference image", "fill the {object} with the reference",
         "put the reference on the {object}", "use the reference image for the {object}",
         "paint the {object} with the reference image", "the {object} should show the reference"),
        ("cover the {object} with the reference", "put the reference image on the {object}"),
    ),
}  # fmt: skip
SCENE_KINDS = tuple(SCENE_TEMPLATES)


def footage_prompts(held_out: bool) -> list[Prompt]:
    """The trained or the held-out footage prompts: identity, single edits, compositions."""
    part = int(held_out)
    found = [Prompt(text, (), None, held_out) for text in IDENTITY[part]]
    for name, texts in PARAPHRASES.items():
        found += [Prompt(text, (name,), None, held_out) for text in texts[part]]
    for first, second in (TRAINED_PAIRS, HELD_OUT_PAIRS)[part]:
        a, b = PARAPHRASES[first][0][0], PARAPHRASES[second][0][0]
        texts = [joiner.format(a=a, b=b) for joiner in JOINERS]
        found += [Prompt(text, (first, second), None, held_out) for text in texts]
    return found


def scene_prompt(
    kind: str,
    *,
    object_shape: str,
    object_colour: str,
    shape: str | None = None,
    colour: str | None = None,
    background: str | None = None,
    held_out: bool = False,
    choice: int = 0,
) -> Prompt:
    """The prompt of a scene edit, from template number `choice` (modulo their number).

    Each template counts twice: the object is named by its shape, then by colour and shape.
    `shape`, `colour` and `background` are new values; each kind uses its own, the rest may be None.
    """
    if kind not in SCENE_TEMPLATES:
        raise ValueError(f"unknown scene edit {kind!r}; known: {', '.join(SCENE_KINDS)}")
    templates = SCENE_TEMPLATES[kind][int(held_out)]
    by_colour, number = divmod(choice % (2 * len(templates)), len(templates))
    values = {
        "object": f"{object_colour} {object_shape}" if by_colour else object_shape,
        "a_shape": shape and _with_article(shape),
        "colour": colour,
        "a_background": background and _with_article(background),
    }
    for field, value in values.items():
        if value is None and f"{{{field}}}" in templates[number]:
            raise ValueError(f"scene edit {kind!r} needs {field.removeprefix('a_')}=...")
    spec = SceneSpec(
        kind,
        object=None if kind.startswith("background") else object_shape,
        colour=colour if kind == "recolour" else None,
        shape=shape if kind == "reshape" else None,
        background=background if kind == "background" else None,
    )
    return Prompt(templates[number].format(**values), (), spec, held_out)


def _with_article(name: str) -> str:
    if name.endswith(("grass", "space")):  # not countable
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def normalise(text: str) -> str:
    """Lower case, single spaces, no trailing punctuation: what model and table get to see."""
    return " ".join(text.lower().split()).rstrip(" .!?,;:")


_TABLE = {p.text: p.footage for held_out in (False, True) for p in footage_prompts(held_out)}


def parse(text: str) -> tuple[str, ...]:
    """The footage edits that a prompt names, in order; () for the empty prompt.

    Looks the whole prompt up, else its parts between commas, "and", "then" and "with". Raises
    ValueError, with examples, where that finds nothing.
    """
    names = _look_up(normalise(text))
    if names is None:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        known = ", ".join(trained[0] for trained, _ in PARAPHRASES.values())
        hint = f"try 'make it night', 'snow and film noir' or another of: {known}"
        raise ValueError(f"no footage edit is called {shown!r}; {hint}")
    return names


def _look_up(text: str) -> tuple[str, ...] | None:
    if text in _TABLE or not text:
        return _TABLE.get(text, ())
    if len(text) > MAX_BYTES:
        return None
    for joiner in (", then ", " then ", ", and ", " and ", ", ", " with "):
        at = text.find(joiner)
        while at >= 0:
            left = _TABLE.get(text[:at].removeprefix("make it "), _TABLE.get(text[:at]))
            right = _look_up(text[at + len(joiner) :]) if left is not None else None
            if left is not None and right is not None:
                return left + right
            at = text.find(joiner, at + 1)
    return None


def encode(text: str, length: int, *, allow_empty: bool = False) -> UInt8[np.ndarray, " length"]:
    """The model's view of a prompt: the UTF-8 bytes of `normalise(text)`, zero-padded.

    Raises ValueError for more than `length` bytes and, unless `allow_empty`, for a blank prompt.
    """
    try:
        data = normalise(text).encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt is not valid Unicode text") from None
    if not data and not allow_empty:
        raise ValueError("the prompt is empty; say what to do, e.g. 'make it night'")
    if len(data) > length:
        raise ValueError(f"the prompt has {len(data):,} bytes; at most {length} fit, shorten it")
    if b"\0" in data:
        raise ValueError("the prompt holds a NUL character; remove it")
    return np.frombuffer(data.ljust(length, b"\0"), np.uint8).copy()
