"""Rendered batches: any step again, truths that are the edits', nothing held out drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax.data import edits, prompts, rendered, textures, worlds

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
    plans = [
        rendered.draw_plan(model, train, np.random.default_rng([train.seed, step]), CLIPS)
        for step in range(4)
    ]
    batches = [rendered.rendered_batch(model, train, step, CLIPS) for step in range(4)]
    return [jax.tree.map(np.asarray, batch) for batch in batches], plans


def text_of(prompt):
    return bytes(prompt[prompt > 0]).decode()


def test_the_same_step_is_the_same_batch(small_config, train, drawn):
    again = rendered.rendered_batch(small_config.model, train, 2, CLIPS)
    jax.tree.map(np.testing.assert_array_equal, again, drawn[0][2])
    reseeded = dataclasses.replace(train, seed=5)
    other = rendered.rendered_batch(small_config.model, reseeded, 2, CLIPS)
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
    for batch, plan in zip(batches, plans, strict=True):
        world, scene_edits, starts = plan.drawn, plan.scene_edits, plan.starts
        count = len(scene_edits["kind"])
        assert count == CLIPS // 2
        for i in range(count):
            kind = worlds.KINDS[scene_edits["kind"][i]]
            kinds.add(kind)
            before = jax.tree.map(lambda x, i=i: x[i], world)
            assert before.visible[scene_edits["object"][i]]
            other = (i - 1) % count
            np.testing.assert_array_equal(batch.condition.reference[i], batch.source[other, 0])
            assert batch.condition.has_reference[i] == kind.endswith("from_reference")
            edit = worlds.SceneEdit(
                **{name: jnp.int32(values[i]) for name, values in scene_edits.items()},
                reference=jnp.asarray(batch.condition.reference[i] / np.float32(255)),
            )
            for after, clip in ((before, batch.source), (edit_world(before, edit), batch.target)):
                truth = np.asarray(worlds.clip(after, int(starts[i]), 2, 32, 32))
                inside = np.broadcast_to(batch.controls[i] == 255, truth.shape)
                difference = np.abs(truth.astype(int) - clip[i])[inside]
                assert np.mean(difference > 3) < 0.01
            changed.append(np.any(batch.target[i] != batch.source[i]))
        assert not batch.condition.has_reference[count:].any()
    assert len(kinds) >= 4 and "none" not in kinds
    assert np.mean(changed) > 0.7  # the others lie behind something, or outside the mask


def test_footage_truths_are_the_edits(drawn):
    batches, plans = drawn
    names_seen = set()
    for batch, plan in zip(batches, plans, strict=True):
        groups, starts = plan.footage, plan.starts
        scenes, per_group = CLIPS // 2, CLIPS // 2 // len(groups)
        for i in range(scenes, CLIPS):
            numbers = groups[(i - scenes) // per_group]
            names = tuple(edits.NAMES[n - 1] for n in numbers if n)
            names_seen.update(names)
            truth = batch.source[i].astype(np.float32) / 255
            index = jnp.arange(2, dtype=jnp.int32) + starts[i]
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
        said.update(rendered.draw_footage_edits(rng, 8)[1])
    assert said <= trained and not said & held_out
    assert len(said) > 0.8 * len(trained)

    world = rendered.sample_worlds(np.arange(32, dtype=np.int32))
    scene_said = set()
    for _ in range(10):
        kinds = rendered.random_kinds(rng, train, 32)
        scene_said.update(rendered.draw_scene_edits(rng, world, kinds)[1])
    assert not scene_said & held_out_scenes() and len(scene_said) > 100
    kinds = rendered.random_kinds(rng, train, 32)
    kept = rendered.draw_scene_edits(rng, world, kinds, held_out=True)[1]
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

    monkeypatch.setattr(rendered, "sample_worlds", sample)
    for step in range(300):
        with pytest.raises(Stop):
            rendered.rendered_batch(small_config.model, train, step, CLIPS)
    seeds = np.concatenate(seeds)
    assert seeds.min() >= 0 and seeds.max() < rendered.HELD_OUT_WORLDS
    assert seeds.max() > 0.9 * rendered.HELD_OUT_WORLDS and len(np.unique(seeds)) == len(seeds)


def test_footage_groups_split_evenly_and_are_many():
    for count in range(100):
        groups = rendered.footage_groups(count)
        assert count % max(groups, 1) == 0 and groups >= min(count, rendered.GROUPS // 2)
    found = {count: rendered.footage_groups(count) for count in (7, 16, 17, 24, 34, 48, 256)}
    assert found == {7: 7, 16: 16, 17: 17, 24: 12, 34: 17, 48: 16, 256: 16}


@pytest.mark.parametrize("count", [0, 1, 34])
def test_every_footage_clip_has_a_prompt(count):
    groups, texts = rendered.draw_footage_edits(np.random.default_rng(0), count)
    assert len(texts) == count and groups.shape == (rendered.footage_groups(count), 2)


def test_a_scene_alone_has_another_worlds_picture(small_config, train):
    batch = rendered.rendered_batch(small_config.model, train, 0, 2)
    np.testing.assert_array_equal(batch.condition.reference[0], batch.source[1, 0])


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_batches_of_one_kind(small_config, train, fraction):
    settings = dataclasses.replace(train, scene_fraction=fraction, frames=1)
    batch = rendered.rendered_batch(small_config.model, settings, 0, 2)
    assert batch.target.shape == (2, 1, 32, 32, 3)
    assert np.any(batch.target != batch.source)


def at_offsets(plan, offsets):
    """The plan with other frames, every object at its own size."""
    scale = jnp.ones((*offsets.shape, plan.scale.shape[2]))
    return dataclasses.replace(plan, offsets=offsets, scale=scale)


def test_a_plan_goes_on_where_its_last_clip_ended(small_config, train):
    """The frames behind it are those of a longer clip; prompt and reference stay."""
    model = small_config.model
    plan = rendered.draw_plan(model, train, np.random.default_rng(3), CLIPS)
    longer = rendered.render(at_offsets(plan, jnp.tile(jnp.arange(4), (CLIPS, 1))), model)
    first, later = (rendered.render(plan, model, after) for after in (0, 2))
    for name in ("source", "target"):
        both = np.concatenate([getattr(first, name), getattr(later, name)], axis=1)
        np.testing.assert_array_equal(both, getattr(longer, name))
    assert all(np.any(a != b) for a, b in zip(first.source, later.source, strict=True))
    for name in ("prompt", "reference", "has_reference"):
        before, after = (getattr(x.condition, name) for x in (first, later))
        np.testing.assert_array_equal(before, after)


def test_old_frames_lie_as_far_back_as_a_memory_reaches(small_config, train):
    """Two of them, in the spans that two slots cover, before frames that follow one another."""
    model = dataclasses.replace(small_config.model, memory=2, memory_every=8)
    old = dataclasses.replace(train, frames=5, old_frames=2)
    offsets = rendered.draw_offsets(np.random.default_rng(0), model, old, 500)
    back = offsets[:, 2:3] - offsets[:, :2]
    assert np.all(np.diff(offsets[:, 2:]) == 1) and offsets.min() == 0
    for frame, low, high in ((0, 8, 39), (1, 0, 7)):  # then comes the first of the new ones
        assert (back[:, frame] - 1).min() == low and (back[:, frame] - 1).max() == high
    plan = rendered.draw_plan(model, old, np.random.default_rng(1), CLIPS)
    clips = rendered.render(plan, model)
    five = at_offsets(plan, jnp.tile(jnp.arange(5), (CLIPS, 1)))  # of a stream at a time
    parts = [rendered.render(five, model, n) for n in range(0, int(plan.offsets.max()) + 1, 5)]
    source, target = (
        np.concatenate([getattr(part, name) for part in parts], axis=1)
        for name in ("source", "target")
    )
    for i, offsets in enumerate(np.asarray(plan.offsets)):
        np.testing.assert_array_equal(clips.source[i], source[i, offsets])
        difference = np.abs(clips.target[i].astype(int) - target[i, offsets].astype(int))
        assert difference.max() <= 1


def test_prompts_are_taken_back_after_the_first_frame(train):
    taken = dataclasses.replace(train, frames=4, carry_on=0.5)
    first = rendered.draw_carried(np.random.default_rng(0), taken, 1000)
    assert set(first) == {1, 2, 3, 4} and 0.4 < np.mean(first < 4) < 0.6
    late = dataclasses.replace(taken, old_frames=2, carry_on=1.0)
    assert set(rendered.draw_carried(np.random.default_rng(0), late, 100)) == {1, 2, 3}
    assert rendered.draw_carried(np.random.default_rng(0), train, 3) is None
    single = dataclasses.replace(taken, frames=1)
    assert set(rendered.draw_carried(np.random.default_rng(0), single, 9)) == {1}


def test_only_the_scene_edits_that_are_trained_are_drawn(train):
    some = dataclasses.replace(train, scene_edits=("remove", "recolour"))
    kinds = set(rendered.random_kinds(np.random.default_rng(0), some, 50))
    assert {worlds.KINDS[kind] for kind in kinds} == {"remove", "recolour"}
    assert len(set(rendered.random_kinds(np.random.default_rng(0), train, 200))) == 6
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
    scale = rendered.draw_scale(np.random.default_rng(0), away, edited, 200)
    mine = scale[np.arange(200), :, edited["object"]]
    assert np.all(mine[:, 0] == 1) and np.all(mine[:, 1] == 0) and np.all(mine[:, 4] > 0)
    assert np.all(np.diff(mine[:, 1:]) >= 0) and {0, 0.25, 0.5, 0.75, 1} == set(mine.ravel())
    others = np.arange(scale.shape[2]) != edited["object"][:, None]
    assert np.all(np.moveaxis(scale, 1, 2)[others] == 1)
    behind = edited | {"kind": np.full(200, worlds.KINDS.index("background"))}
    assert np.all(rendered.draw_scale(np.random.default_rng(0), away, behind, 200) == 1)
    for unchanged in (dict(away=0.0), dict(old_frames=0)):
        still = dataclasses.replace(away, **unchanged)
        assert np.all(rendered.draw_scale(np.random.default_rng(0), still, edited, 200) == 1)

    plan = rendered.draw_plan(small_config.model, away, np.random.default_rng(1), CLIPS)
    clips = rendered.render(plan, small_config.model)
    changed = np.any(clips.source != clips.target, axis=(2, 3, 4))
    sizes = np.asarray(plan.scale)[np.arange(CLIPS), :, np.asarray(plan.scene_edits["object"])]
    assert np.any(sizes == 0) and not np.any(changed[sizes == 0])
    assert np.all(changed[:, 0])


def test_only_so_many_pixels_are_rendered_side_by_side(monkeypatch):
    """Whatever the batch; and the pictures stay what they are."""
    clips, frames, size = 6, 2, (32, 32)
    given = (
        rendered.sample_worlds(np.arange(clips, dtype=np.int32)),
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
