"""Rendered batches: any step again, truths that are the edits', nothing held out drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsd_jax import sharding
from lsd_jax.data import asks, edits, plan, prompts, rendered, textures, worlds

CLIPS = 8
edit_world = jax.jit(worlds.edit_world)


@pytest.fixture(scope="module")
def train(small_config):
    """Half scenes; every other clip masked, a fifth without its prompt."""
    return dataclasses.replace(
        small_config.train, frames=2, mask_fraction=0.5, prompt_drop=0.2, seed=4
    )


@pytest.fixture(scope="module")
def drawn(small_config, train):
    """The batches of four steps, and the plans that they follow."""
    model = small_config.model
    plans = [drawn_plan(model, train, step) for step in range(4)]
    batches = [rendered.render(plan, model) for plan in plans]
    return [jax.tree.map(np.asarray, batch) for batch in batches], plans


def drawn_plan(model, train, step, clips=CLIPS):
    return plan.draw_plan(model, train, np.random.default_rng([train.seed, step]), clips)


def text_of(prompt):
    return bytes(prompt[prompt > 0]).decode()


def test_the_same_step_is_the_same_batch(small_config, train, drawn):
    model = small_config.model
    again = rendered.render(drawn_plan(model, train, 2), model)
    jax.tree.map(np.testing.assert_array_equal, again, drawn[0][2])
    reseeded = dataclasses.replace(train, seed=5)
    other = rendered.render(drawn_plan(model, reseeded, 2), model)
    assert all(np.any(a != b) for a, b in zip(other.source, drawn[0][2].source, strict=True))


def test_steps_differ(drawn):
    batches, _ = drawn
    for a in range(4):
        for b in range(a):
            for ours in batches[a].source:
                assert all(np.any(ours != theirs) for theirs in batches[b].source)


def test_outside_the_mask_the_truth_is_the_input(drawn):
    batches, _ = drawn
    planes = np.concatenate([batch.controls for batch in batches])
    assert set(np.unique(planes)) == {0, 255}
    np.testing.assert_array_equal(planes[:, 0], planes[:, 1])
    partly = (planes == 0).any((1, 2, 3, 4))
    assert 0.2 < partly.mean() < 0.8 and (planes == 255).any((1, 2, 3, 4)).all()
    for batch in batches:
        outside = batch.controls[..., 0] == 0
        np.testing.assert_array_equal(batch.target[outside], batch.source[outside])


def test_scene_truths_are_the_edited_worlds(drawn):
    """And the reference is another clip's picture, shown where the edit asks for it."""
    batches, plans = drawn
    kinds, changed = set(), []
    for batch, planned in zip(batches, plans, strict=True):
        drawn_worlds = plan.sample_worlds(planned.worlds)
        scenes = np.flatnonzero(planned.scenes)
        assert len(scenes) == CLIPS // 2
        for at, i in enumerate(scenes):
            edited = {name: jnp.int32(values[i]) for name, values in planned.scene_edits.items()}
            kind = worlds.KINDS[edited["kind"]]
            kinds.add(kind)
            before = jax.tree.map(lambda x, i=i: x[i], drawn_worlds)
            assert before.visible[edited["object"]]
            close(batch.condition.reference[i], batch.source[scenes[at - 1], 0])
            assert batch.condition.has_reference[i] == kind.endswith("from_reference")
            reference = jnp.asarray(batch.condition.reference[i] / np.float32(255))
            edit = worlds.SceneEdit(**edited, reference=reference)
            for after, clip in ((before, batch.source), (edit_world(before, edit), batch.target)):
                truth = np.asarray(worlds.clip(after, int(planned.starts[i]), 2, 32, 32))
                inside = np.broadcast_to(batch.controls[i] == 255, truth.shape)
                difference = np.abs(truth.astype(int) - clip[i])[inside]
                assert np.mean(difference > 3) < 0.01
            changed.append(np.any(batch.target[i] != batch.source[i]))
        assert not batch.condition.has_reference[~planned.scenes].any()
    assert len(kinds) >= 4 and "none" not in kinds
    assert np.mean(changed) > 0.7  # the others lie behind something, or outside the mask


def test_footage_truths_are_the_edits(drawn):
    batches, plans = drawn
    names_seen = set()
    for batch, planned in zip(batches, plans, strict=True):
        for i in np.flatnonzero(~planned.scenes):
            names = tuple(edits.NAMES[n - 1] for n in planned.footage[i] if n)
            names_seen.update(names)
            truth = batch.source[i].astype(np.float32) / 255
            index = jnp.arange(2, dtype=jnp.int32) + planned.starts[i]
            for name in names:
                truth = np.asarray(edits.EDITS[name](jnp.asarray(truth), index))
            inside = np.broadcast_to(batch.controls[i] == 255, truth.shape)
            difference = np.abs(truth * 255 - batch.target[i])[inside]
            assert np.mean(difference > 24) < 0.02, names  # bytes in, so thresholds may flip
            if text := text_of(batch.condition.prompt[i]):
                assert prompts.parse(text) == names
    assert len(names_seen) >= 4


def test_prompts_are_readable_and_some_are_dropped(small_config, train, drawn):
    texts = [text_of(row) for batch in drawn[0] for row in batch.condition.prompt]
    dropped = [text for text in texts if not text]
    assert 0 < len(dropped) < len(texts) // 2
    for text in texts:
        assert text == prompts.normalise(text)


def test_nothing_held_out_is_drawn(train):
    """Many draws, of numbers only: worlds, paraphrases and pairs."""
    rng = np.random.default_rng(0)
    held_out = {prompt.text for prompt in prompts.footage_prompts(held_out=True)}
    trained = {prompt.text for prompt in prompts.footage_prompts(held_out=False)}
    said = set()
    for _ in range(200):
        said.update(asks.draw_footage_edits(rng, 8)[1])
    assert said <= trained and not said & held_out
    assert len(said) > 0.8 * len(trained)

    world = plan.sample_worlds(np.arange(32, dtype=np.int32))
    scene_said = set()
    for _ in range(10):
        kinds = asks.random_kinds(rng, train, 32)
        scene_said.update(asks.draw_scene_edits(rng, world, kinds)[1])
    assert not scene_said & held_out_scenes() and len(scene_said) > 100
    kinds = asks.random_kinds(rng, train, 32)
    kept = asks.draw_scene_edits(rng, world, kinds, held_out=True)[1]
    assert set(kept) <= held_out_scenes()


def held_out_scenes():
    """Every held-out scene prompt, spelled out."""
    texts = set()
    for kind in prompts.SCENE_KINDS:
        for shape in worlds.SHAPES:
            for colour in worlds.COLOURS:
                for new_shape in worlds.SHAPES if kind == "reshape" else worlds.SHAPES[:1]:
                    for new_colour in worlds.COLOURS if kind == "recolour" else ("red",):
                        for ground in worlds.BACKGROUNDS if kind == "background" else ("space",):
                            for choice in range(4):
                                prompt = prompts.scene_prompt(
                                    kind, object_shape=shape, object_colour=colour,
                                    shape=new_shape, colour=new_colour, background=ground,
                                    held_out=True, choice=choice,
                                )  # fmt: skip
                                texts.add(prompt.text)
    return texts


def test_held_out_worlds_are_never_trained_on(small_config, train, monkeypatch):
    """The seeds of many steps, without rendering them."""
    seeds = []

    class Stop(Exception):
        pass

    def sample(drawn):
        seeds.append(drawn)
        raise Stop

    everything = dataclasses.replace(train, scene_fraction=1.0)
    monkeypatch.setattr(plan, "sample_worlds", sample)
    for step in range(300):
        with pytest.raises(Stop):
            drawn_plan(small_config.model, everything, step)
    seeds = np.concatenate(seeds)
    assert seeds.min() >= 0 and seeds.max() < plan.HELD_OUT_WORLDS
    assert seeds.max() > 0.9 * plan.HELD_OUT_WORLDS and len(np.unique(seeds)) == len(seeds)


@pytest.mark.parametrize("count", [0, 1, 34])
def test_every_footage_clip_has_a_prompt(count):
    chosen, texts = asks.draw_footage_edits(np.random.default_rng(0), count)
    assert len(texts) == count and chosen.shape == (count, 2)
    for numbers, text in zip(chosen, texts, strict=True):
        assert prompts.parse(text) == tuple(edits.NAMES[n - 1] for n in numbers if n)


@given(st.data(), st.integers(0, 60))
def test_kinds_lie_as_evenly_as_can_be(data, among):
    """So that any equal parts of a batch have as many of a kind, but for one."""
    some = data.draw(st.integers(0, among))
    chosen = plan.evenly(some, among)
    assert chosen.shape == (among,) and chosen.sum() == some
    for parts in (n for n in range(1, among + 1) if among % n == 0):
        counts = chosen.reshape(parts, -1).sum(axis=1)
        assert counts.max() - counts.min() <= 1


def test_a_scene_alone_has_another_worlds_picture(small_config, train):
    lent = plan.lenders(np.array([False, True, False]))
    assert lent.tolist() == [0, 2, 2]
    assert plan.lenders(np.array([True, False, True])).tolist() == [2, 1, 0]
    assert plan.lenders(np.array([True])).tolist() == [0]
    planned = drawn_plan(small_config.model, train, 0, 2)
    batch = rendered.render(planned, small_config.model)
    scene = int(np.flatnonzero(planned.scenes)[0])
    close(batch.condition.reference[scene], batch.source[1 - scene, 0])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_batches_of_one_kind(small_config, train, fraction):
    settings = dataclasses.replace(train, scene_fraction=fraction, frames=1)
    batch = rendered.render(drawn_plan(small_config.model, settings, 0, 2), small_config.model)
    assert batch.target.shape == (2, 1, 32, 32, 3)
    assert np.any(batch.target != batch.source)


def at_offsets(planned, frames):
    """The plan with so many frames one after another, every object at its own size."""
    offsets = np.tile(np.arange(frames, dtype=np.int32), (CLIPS, 1))
    scale = np.ones((*offsets.shape, planned.scale.shape[2]), np.float32)
    return dataclasses.replace(planned, offsets=offsets, scale=scale)


def close(ours, theirs):
    """But for the last bit of a byte now and then: other shapes are other programs."""
    difference = np.abs(np.asarray(ours, int) - np.asarray(theirs, int))
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-3


def test_a_plan_goes_on_where_its_last_clip_ended(small_config, train):
    """The frames behind it are those of a longer clip; prompt and reference stay."""
    model = small_config.model
    planned = drawn_plan(model, train, 3)
    longer = rendered.render(at_offsets(planned, 4), model)
    first, later = (rendered.render(x, model) for x in (planned, planned.later(2)))
    for name in ("source", "target"):
        both = np.concatenate([getattr(first, name), getattr(later, name)], axis=1)
        close(both, getattr(longer, name))
    assert all(np.any(a != b) for a, b in zip(first.source, later.source, strict=True))
    for name in ("prompt", "reference", "has_reference"):
        before, after = (getattr(x.condition, name) for x in (first, later))
        np.testing.assert_array_equal(before, after)


def test_old_frames_lie_as_far_back_as_a_memory_reaches(small_config, train):
    """Two of them, in the spans that two slots cover, before frames that follow one another."""
    model = dataclasses.replace(small_config.model, memory=2, memory_every=8)
    old = dataclasses.replace(train, frames=5, old_frames=2)
    offsets = plan.draw_offsets(np.random.default_rng(0), model, old, 500)
    back = offsets[:, 2:3] - offsets[:, :2]
    assert np.all(np.diff(offsets[:, 2:]) == 1) and offsets.min() == 0
    for frame, low, high in ((0, 8, 39), (1, 0, 7)):  # then comes the first of the new ones
        assert (back[:, frame] - 1).min() == low and (back[:, frame] - 1).max() == high
    planned = drawn_plan(model, old, 1)
    clips = rendered.render(planned, model)
    five = at_offsets(planned, 5)  # of a stream at a time
    starts = range(0, int(planned.offsets.max()) + 1, 5)
    parts = [rendered.render(five.later(n), model) for n in starts]
    source, target = (
        np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("source", "target")
    )
    for i, offsets in enumerate(planned.offsets):
        close(clips.source[i], source[i, offsets])
        close(clips.target[i], target[i, offsets])


def test_prompts_are_taken_back_after_the_first_frame(train):
    taken = dataclasses.replace(train, frames=4, carry_on=0.5)
    first = plan.draw_carried(np.random.default_rng(0), taken, 1000)
    assert set(first) == {1, 2, 3, 4} and 0.4 < np.mean(first < 4) < 0.6
    late = dataclasses.replace(taken, old_frames=2, carry_on=1.0)
    assert set(plan.draw_carried(np.random.default_rng(0), late, 100)) == {1, 2, 3}
    assert plan.draw_carried(np.random.default_rng(0), train, 3) is None
    single = dataclasses.replace(taken, frames=1)
    assert set(plan.draw_carried(np.random.default_rng(0), single, 9)) == {1}


def test_only_the_scene_edits_that_are_trained_are_drawn(train):
    some = dataclasses.replace(train, scene_edits=("remove", "recolour"))
    kinds = set(asks.random_kinds(np.random.default_rng(0), some, 50))
    assert {worlds.KINDS[kind] for kind in kinds} == {"remove", "recolour"}
    assert len(set(asks.random_kinds(np.random.default_rng(0), train, 200))) == 6
    with pytest.raises(ValueError, match="unknown scene edit 'paint'; known: reshape"):
        dataclasses.replace(train, scene_edits=("paint",))


def test_an_object_goes_away_and_comes_back_under_a_prompt_taken_back(small_config, train):
    """There in the oldest frame, gone behind it, and back in the window, maybe from far away."""
    away = dataclasses.replace(
        train, frames=5, old_frames=2, away=1.0, scene_fraction=1.0, scene_edits=("recolour",),
        mask_fraction=0.0,
    )  # fmt: skip
    kinds = np.full(200, worlds.KINDS.index("recolour"))
    edited = {"object": np.arange(200) % 2, "kind": kinds}
    scale = plan.draw_scale(np.random.default_rng(0), away, edited, 200)
    mine = scale[np.arange(200), :, edited["object"]]
    assert np.all(mine[:, 0] == 1) and np.all(mine[:, 1] == 0) and np.all(mine[:, 4] > 0)
    assert np.all(np.diff(mine[:, 1:]) >= 0) and {0, 0.25, 0.5, 0.75, 1} == set(mine.ravel())
    others = np.arange(scale.shape[2]) != edited["object"][:, None]
    assert np.all(np.moveaxis(scale, 1, 2)[others] == 1)
    behind = edited | {"kind": np.full(200, worlds.KINDS.index("background"))}
    assert np.all(plan.draw_scale(np.random.default_rng(0), away, behind, 200) == 1)
    for unchanged in (dict(away=0.0), dict(old_frames=0)):
        still = dataclasses.replace(away, **unchanged)
        assert np.all(plan.draw_scale(np.random.default_rng(0), still, edited, 200) == 1)

    planned = drawn_plan(small_config.model, away, 1)
    clips = rendered.render(planned, small_config.model)
    changed = np.any(clips.source != clips.target, axis=(2, 3, 4))
    sizes = planned.scale[np.arange(CLIPS), :, planned.scene_edits["object"]]
    assert np.any(sizes == 0) and not np.any(changed[sizes == 0])
    assert np.all(changed[:, 0])


def test_only_so_many_pixels_are_rendered_side_by_side(monkeypatch):
    """Whatever the batch; and the pictures stay what they are."""
    clips, frames, size = 6, 2, (32, 32)
    given = (
        plan.sample_worlds(np.arange(clips, dtype=np.int32)),
        jnp.arange(clips * frames, dtype=jnp.int32).reshape(clips, frames),
        textures.bank(),
        jnp.ones((clips, frames, rendered.OBJECTS)),
    )

    def render():
        run = jax.jit(lambda drawn, times, *x: rendered.render_at(drawn, times, size, *x))
        equations = run.trace(*given).jaxpr.eqns
        loops = [e.params["length"] for e in equations if e.primitive.name == "scan"]
        return loops, np.asarray(run(*given))

    loops, whole = render()
    monkeypatch.setattr(rendered, "AT_ONCE", 5 * frames * size[0] * size[1])
    fewer, parts = render()
    assert (loops, fewer) == ([], [2])  # three clips at a time
    np.testing.assert_allclose(parts, whole, atol=1e-6)


@pytest.mark.multidevice
def test_devices_render_the_clips_that_lie_on_them(small_config, train):
    """The batch of one device, but for the last bit of a byte, though parts differ in what they
    hold: worlds, film, own streams behind both; and no device has more of it than its own."""
    model = dataclasses.replace(small_config.model, memory=1, memory_every=8)
    count = 12
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 32, 32, 3), np.uint8)
    paired = np.arange(3) == 1
    film = plan.Film(clips[0], clips[1], ["as it was in spring"] * 3, paired)
    some = dataclasses.replace(train, scene_fraction=0.3, carry_on=0.5, old_frames=1)
    planned = plan.draw_plan(model, some, np.random.default_rng(5), count, film)
    assert np.all(np.diff(planned.offsets[planned.filmed]) == 1)  # film knows no gaps
    np.testing.assert_array_equal(planned.old, np.where(planned.filmed, 0, 1))
    assert np.all(np.diff(planned.offsets[~planned.filmed]) >= 1)
    planned = planned.before(plan.draw_plan(model, some, np.random.default_rng(6), 4))
    mesh = sharding.make_mesh(2, 2, 2)
    alone, shared = rendered.render(planned, model), rendered.render(planned, model, mesh)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        assert b.sharding.spec == sharding.BATCH and a.dtype == b.dtype
        assert {shard.data.shape[0] for shard in b.addressable_shards} == {4}
        close(a, b)
    rows = np.flatnonzero(planned.filmed)
    np.testing.assert_array_equal(np.asarray(alone.source)[rows], film.source)
    assert text_of(np.asarray(alone.condition.prompt)[rows[1]]) in ("as it was in spring", "")
