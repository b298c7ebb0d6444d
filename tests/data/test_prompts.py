"""Prompts: vocabulary, what is held out, parsing, and the bytes that the model sees."""

import subprocess
import sys

import pytest

from lsd_jax.data import prompts
from lsd_jax.data.prompts import PARAPHRASES, SCENE_KINDS, SCENE_TEMPLATES, SceneSpec

TRAINED, HELD_OUT = prompts.footage_prompts(False), prompts.footage_prompts(True)
VALUES = dict(
    object_shape="ring", object_colour="red", shape="star", colour="blue", background="brick wall"
)


def scene_texts(kind, held_out):
    return [
        prompts.scene_prompt(kind, **VALUES, held_out=held_out, choice=i).text
        for i in range(2 * len(SCENE_TEMPLATES[kind][held_out]))
    ]


def words(texts):
    return {word.strip(",") for text in texts for word in text.split()}


def test_there_are_enough_paraphrases_and_pairs():
    assert len(PARAPHRASES) >= 14
    assert all(len(t) >= 6 and len(h) >= 2 for t, h in PARAPHRASES.values())
    assert all(len(t) >= 5 and len(h) >= 2 for t, h in SCENE_TEMPLATES.values())
    assert len(prompts.TRAINED_PAIRS) >= 24 and len(prompts.HELD_OUT_PAIRS) >= 8


def test_no_prompt_means_two_things():
    texts = [p.text for p in TRAINED + HELD_OUT]
    assert len(texts) == len(set(texts))
    scenes = {text for kind in SCENE_KINDS for h in (False, True) for text in scene_texts(kind, h)}
    assert not scenes & set(texts)


def test_trained_and_held_out_are_disjoint():
    assert not any(p.held_out for p in TRAINED) and all(p.held_out for p in HELD_OUT)
    assert not {p.text for p in TRAINED} & {p.text for p in HELD_OUT}
    assert not set(prompts.TRAINED_PAIRS) & set(prompts.HELD_OUT_PAIRS)
    for kind in SCENE_KINDS:
        assert not set(scene_texts(kind, False)) & set(scene_texts(kind, True))


def test_held_out_prompts_reuse_trained_words():
    assert words(p.text for p in HELD_OUT) <= words(p.text for p in TRAINED)
    trained = {text for kind in SCENE_KINDS for text in scene_texts(kind, False)}
    held_out = {text for kind in SCENE_KINDS for text in scene_texts(kind, True)}
    assert words(held_out) <= words(trained)


def test_members_of_held_out_pairs_are_trained_in_other_pairs():
    trained = {name for pair in prompts.TRAINED_PAIRS for name in pair}
    assert {name for pair in prompts.HELD_OUT_PAIRS for name in pair} <= trained


@pytest.mark.parametrize("prompt", TRAINED + HELD_OUT, ids=lambda p: p.text)
def test_parse_finds_every_footage_prompt(prompt):
    assert prompts.parse(prompt.text) == prompt.footage
    assert prompts.parse(f"  {prompt.text.upper().replace(' ', '   ')} !. ") == prompt.footage
    assert len(prompt.text.encode()) <= prompts.MAX_BYTES


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("leave it as it is", ()),
        ("sepia and fog", ("sepia", "fog")),
        ("make it sepia, then make it foggy", ("sepia", "fog")),
        ("in black and white with snow", ("noir", "snow")),
        ("night, snow and film noir", ("night", "snow", "noir")),
    ],
)
def test_parse_takes_compositions_apart(text, names):
    assert prompts.parse(text) == names


@pytest.mark.parametrize(
    "text", ["bake a cake", "night and cake", "🌙", "x" * 10_000, "a and " * 99]
)
def test_parse_refuses_the_unknown_with_examples(text):
    with pytest.raises(ValueError, match="try 'make it night'.*pixel art") as error:
        prompts.parse(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("kind", SCENE_KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_scene_prompts_name_the_object_both_ways(kind, held_out):
    texts = scene_texts(kind, held_out)
    assert all(len(text.encode()) <= prompts.MAX_BYTES for text in texts)
    assert not any("{" in text for text in texts)
    if not kind.startswith("background"):
        assert all("ring" in text for text in texts)
        assert sum("red ring" in text for text in texts) == len(texts) // 2
    again = prompts.scene_prompt(kind, **VALUES, held_out=held_out, choice=len(texts))
    assert again.text == texts[0] and again.held_out == held_out and again.footage == ()


def test_scene_prompts_say_what_changes():
    reshape = prompts.scene_prompt("reshape", **VALUES)
    assert reshape.text == "turn the ring into a star"
    assert reshape.scene == SceneSpec("reshape", object="ring", shape="star")
    background = prompts.scene_prompt("background", **VALUES)
    assert background.text == "replace the background with a brick wall"
    assert background.scene == SceneSpec("background", background="brick wall")
    grass = prompts.scene_prompt("background", **VALUES | {"background": "green grass"})
    assert grass.text == "replace the background with green grass"
    recolour = prompts.scene_prompt("recolour", **VALUES, choice=6)
    assert recolour.text == "make the red ring blue"
    assert recolour.scene == SceneSpec("recolour", object="ring", colour="blue")


def test_scene_prompts_refuse_the_unknown_and_the_missing():
    with pytest.raises(ValueError, match="unknown scene edit 'melt'; known: reshape"):
        prompts.scene_prompt("melt", **VALUES)
    with pytest.raises(ValueError, match="'recolour' needs colour="):
        prompts.scene_prompt("recolour", object_shape="ring", object_colour="red")


def test_encode_pads_and_normalises():
    assert bytes(prompts.encode("Make it  NIGHT!", 16)) == b"make it night\0\0\0"
    moon = prompts.encode("🌙", 8)
    assert moon.shape == (8,) and bytes(moon) == "🌙".encode() + bytes(4)
    assert len(prompts.encode("x" * 128, 128)) == 128
    moon[0] = 1  # a copy of its own


@pytest.mark.parametrize("text", ["", "   ", " .!\n"])
def test_encode_refuses_blank_prompts_unless_allowed(text):
    with pytest.raises(ValueError, match="empty"):
        prompts.encode(text, 8)
    assert not prompts.encode(text, 8, allow_empty=True).any()


def test_encode_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="10,240 bytes; at most 128"):
        prompts.encode("x" * 10_240, 128)
    with pytest.raises(ValueError, match="132 bytes; at most 128"):
        prompts.encode("🌙" * 33, 128)
    with pytest.raises(ValueError, match="NUL"):
        prompts.encode("a\0b", 8)
    with pytest.raises(ValueError, match="Unicode"):
        prompts.encode("a\udcff", 8)


def test_importing_prompts_does_not_import_jax():
    code = "import sys, lsd_jax.data.prompts; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
