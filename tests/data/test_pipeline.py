"""Rendered worlds and filmed footage in one batch, by the step's number alone."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import numpy as np
import pytest

from lsd_jax.data import edits, pipeline
from lsd_jax.data.rendered import render
from lsd_jax.data.video import VideoSink
from lsd_jax.stream import control_planes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos, of which the second has an edited twin and a caption."""
    path = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "b.edited"):
        with VideoSink(path / f"{name}.mkv", size=(32, 32), fps=Fraction(25)) as sink:
            for image in rng.integers(0, 256, (9, 32, 32, 3), np.uint8):
                sink.write(image)
    (path / "b.txt").write_text("as it was in spring")
    return path


@pytest.fixture(scope="module")
def filmed(small_config):
    train = dataclasses.replace(
        small_config.train, batch=4, video_fraction=1.0, prompt_drop=0.0, mask_fraction=0.0
    )
    return dataclasses.replace(small_config, train=train)


def prompts_of(batch) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(batch.condition.prompt)]


def test_a_step_has_the_same_footage_whenever_it_is_asked_for(filmed, folder):
    in_order = pipeline.plans(filmed, folder)
    first = [in_order(step) for step in range(3)]
    resumed = pipeline.plans(filmed, folder)(2)
    jax.tree.map(np.testing.assert_array_equal, first[2], resumed)
    assert not np.array_equal(first[0].film, first[1].film)


def test_twins_teach_their_caption_and_the_rest_footage_edits(filmed, folder):
    draw = pipeline.plans(filmed, folder)
    captions = []
    for step in range(3):
        batch = render(draw(step), filmed.model)
        for i, prompt in enumerate(prompts_of(batch)):
            captions.append(prompt)
            source, target = np.asarray(batch.source[i]), np.asarray(batch.target[i])
            if prompt == "as it was in spring":
                assert not np.array_equal(source, target)
            elif not ({"snow", "rain"} & set(edits.prompts.parse(prompt))):  # need the frame number
                truth = edits.apply(prompt, source).astype(int)
                assert np.abs(truth - target).mean() < 0.5  # other fusions round otherwise
    assert 0 < captions.count("as it was in spring") < len(captions)


def test_fraction_and_folder_belong_together(small_config, filmed, folder):
    with pytest.raises(ValueError, match="give the folder by --videos"):
        pipeline.plans(filmed)
    with pytest.raises(ValueError, match="set train.video_fraction"):
        pipeline.plans(small_config, folder)


def test_prompts_are_bytes(small_config):
    model = dataclasses.replace(small_config.model, external_text_dim=8)
    with pytest.raises(ValueError, match="set model.external_text_dim=0"):
        pipeline.plans(dataclasses.replace(small_config, model=model))


@pytest.mark.parametrize(("scenes", "longest"), [(1.0, 50), (0.0, 36)])
def test_a_prompt_that_does_not_fit_is_found_before_any_step(small_config, scenes, longest):
    def drawing(prompt_bytes):
        model = dataclasses.replace(small_config.model, prompt_bytes=prompt_bytes)
        train = dataclasses.replace(
            small_config.train, batch=32, scene_fraction=scenes, prompt_drop=0.0
        )
        return pipeline.plans(dataclasses.replace(small_config, model=model, train=train))

    with pytest.raises(ValueError, match=f"is too small for .*set it to {longest} or more"):
        drawing(longest - 1)
    plan = drawing(longest)
    assert any(plan(step).prompt[:, -1].any() for step in range(200))  # and none is longer


def test_a_model_without_a_mask_gets_no_plane():
    mask = jax.numpy.full((2, 4, 4), 200, np.uint8)
    assert np.array_equal(control_planes(("mask",), mask), mask[..., None])
    assert control_planes((), mask).shape == (2, 4, 4, 0)
