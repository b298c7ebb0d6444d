"""Rendered worlds: random access, determinism, smooth motion, exact edits, natural statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax.data import scene, shapes, textures, worlds

H, W = 48, 64
CALM = jnp.zeros((16, 16, 3))


@functools.partial(jax.jit, static_argnames=("height", "width"))
def frames_of(world, frames, bank, height=H, width=W):
    return jax.vmap(lambda t: worlds.render(world, t, height, width, bank))(frames)


@functools.cache
def many():
    """The worlds of seeds 0 to 63, as numpy arrays."""
    batch = jax.jit(jax.vmap(worlds.sample_world))(jnp.arange(64, dtype=jnp.int32))
    return jax.tree.map(np.asarray, batch)


def frames(world, *times):
    """Frames of a world, always rendered twelve at a time: one compilation for all tests."""
    padded = np.resize(np.asarray(times, np.int32), 12)
    return np.asarray(frames_of(world, padded, textures.bank()))[: len(times)]


@jax.jit
def changed(world, kind, target, shape, colour, background, reference):
    edit = worlds.SceneEdit(kind, target, shape, colour, background, reference)
    return worlds.edit_world(world, edit)


def edited(world, kind, target=0, shape=0, colour=0, background=0, reference=CALM):
    numbers = worlds.KINDS.index(kind), target, shape, colour, background
    return changed(world, *(jnp.int32(n) for n in numbers), reference)


def unused(taken, count):
    return next(k for k in range(count) if k not in np.asarray(taken))


def difference(a, b):
    """Where two frames differ, [h, w]."""
    return np.abs(a - b).max(-1)


def test_random_access_is_sequential_access():
    world = worlds.sample_world(3)
    clip = worlds.clip(world, 40, 4, H, W)
    assert clip.shape == (4, H, W, 3) and clip.dtype == jnp.uint8
    np.testing.assert_array_equal(frames(world, 40, 41, 42, 43)[2], frames(world, 42, 0, 7, 9)[0])
    np.testing.assert_array_equal(clip[2], worlds.clip(world, 42, 4, H, W)[0])


def test_seed_is_all_that_matters():
    jax.tree.map(np.testing.assert_array_equal, worlds.sample_world(5), worlds.sample_world(5))
    one, two = (frames(worlds.sample_world(s), 0)[0] for s in (5, 6))
    assert difference(one, two).mean() > 0.05
    row = jax.tree.map(lambda a: a[5], many())
    for a, b in zip(jax.tree.leaves(row), jax.tree.leaves(worlds.sample_world(5)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [0, 9_999_990, 2**31 - 20])
def test_motion_is_smooth(start):
    for seed in range(4):
        shown = frames(worlds.sample_world(seed), *range(start, start + 12))
        assert np.isfinite(shown).all() and shown.min() >= 0 and shown.max() <= 1
        steps = np.abs(np.diff(shown, axis=0)).mean((1, 2, 3))
        assert steps.min() > 1e-5
        assert steps.max() < 0.05
        assert steps.max() < 4 * np.median(steps) + 0.005


def test_frames_have_contrast_and_colour():
    shown = np.stack([frames(worlds.sample_world(seed), 9)[0] for seed in range(12)])
    assert shown.std((1, 2, 3)).min() > 0.08
    assert 0.3 < shown.mean() < 0.6
    assert (shown.max(-1) - shown.min(-1)).mean() > 0.12


def test_objects_are_distinct_and_described():
    batch = many()
    counts = set()
    for row in range(64):
        names = worlds.describe(jax.tree.map(lambda a, row=row: a[row], batch))
        counts.add(len(names))
        assert len({s for s, _ in names}) == len({c for _, c in names}) == len(names)
        assert {s for s, _ in names} <= set(worlds.SHAPES)
        assert {c for _, c in names} <= set(worlds.COLOURS)
    assert counts == {2, 3, 4}
    assert (np.diff(batch.visible.astype(int), axis=1) <= 0).all()


def test_objects_stay_in_view():
    frame = jnp.arange(0, 3000, 50, dtype=jnp.int32)
    poses = jax.jit(jax.vmap(lambda w: jax.vmap(lambda t: worlds.poses(w, t, 1.0))(frame)))
    centre, _, radius = poses(many())
    assert (np.abs(centre).max(-1) < 0.85).all()
    assert 0.2 < float(radius.min()) and float(radius.max()) < 0.6


def test_no_edit_is_bit_equal():
    world = worlds.sample_world(2)
    np.testing.assert_array_equal(frames(edited(world, "none"), 3, 70), frames(world, 3, 70))


@pytest.mark.parametrize("seed", [1, 4])
def test_object_edits_change_that_object_only(seed):
    world = worlds.sample_world(seed)
    before = frames(world, 11, 400)
    # An object's footprint: what changes as it vanishes, with its shadow, whose reach is known.
    without = frames(edited(world, "remove", 1), 11, 400)
    footprint = difference(before, without) > 0
    assert 0.01 < footprint.mean() < 0.6
    colour = unused(world.colour, len(worlds.COLOURS))
    shape = unused(world.shape, len(worlds.SHAPES))
    for change in (
        edited(world, "recolour", 1, colour=colour),
        edited(world, "object_from_reference", 1, reference=CALM + jnp.asarray([1.0, 0, 1])),
        edited(world, "reshape", 1, shape=shape),
    ):
        after = frames(change, 11, 400)
        moved = difference(before, after)
        assert moved.max() > 0.1
        reach = footprint | (difference(after, without) > 0)
        assert moved[~reach].max() == 0
    only = edited(edited(world, "recolour", 1, colour=colour), "remove", 1)
    np.testing.assert_array_equal(frames(only, 11, 400), without)


def test_recolour_shows_the_colour():
    world = worlds.sample_world(8)
    for colour, rgb in enumerate(worlds.COLOURS.values()):
        after = frames(edited(world, "recolour", 0, colour=colour), 5)[0]
        mask = difference(after, frames(edited(world, "remove", 0), 5)[0]) > 0.15
        shown = np.median(after[mask], axis=0)
        palette = np.asarray(list(worlds.COLOURS.values()))
        cosine = palette @ shown / np.linalg.norm(palette, axis=1) / np.linalg.norm(shown)
        assert np.argmax(cosine) == colour, (rgb, shown)


@pytest.mark.parametrize("kind", ["background", "background_from_reference"])
def test_background_edits_leave_the_objects(kind):
    world = worlds.sample_world(7)
    pictures = [edited(world, kind, background=k, reference=CALM + k / 6) for k in range(6)]
    shown = np.stack([frames(w, 21)[0] for w in pictures])
    # What no background changes is the objects; it shows in the unedited world as well.
    fixed = np.ptp(shown, axis=0).max(-1) == 0
    assert 0.03 < fixed.mean() < 0.7
    np.testing.assert_array_equal(frames(world, 21)[0][fixed], shown[0][fixed])
    for a in range(6):
        for b in range(a):
            assert difference(shown[a], shown[b]).mean() > 0.03


def test_reference_is_mapped_on_the_object():
    world = edited(worlds.sample_world(7), "object_from_reference", 0, reference=CALM + 0.5)
    grey = edited(world, "object_from_reference", 0, reference=CALM + jnp.asarray([0, 1.0, 0]))
    changed_at = difference(frames(world, 0)[0], frames(grey, 0)[0]) > 0.2
    shown = frames(grey, 0)[0][changed_at]
    assert changed_at.mean() > 0.01 and (shown.argmax(-1) == 1).all()


def test_batch_of_edits_is_each_edit():
    seeds = jnp.arange(len(worlds.KINDS), dtype=jnp.int32)
    zeros = jnp.zeros_like(seeds)
    reference = jnp.full((len(seeds), 20, 30, 3), 0.25)
    edits = worlds.SceneEdit(seeds, zeros, zeros + 3, zeros + 2, zeros + 1, reference)
    batch = jax.tree.map(lambda a: jnp.asarray(a[: len(seeds)]), many())

    @jax.jit
    def together(batch, edits, bank):
        after = jax.vmap(worlds.edit_world)(batch, edits)
        return jax.vmap(lambda w: worlds.render(w, jnp.int32(31), H, W, bank))(after)

    shown = np.asarray(together(batch, edits, textures.bank()))
    for row, kind in enumerate(worlds.KINDS):
        world = jax.tree.map(lambda a, row=row: a[row], batch)
        alone = edited(world, kind, 0, 3, 2, 1, reference[row])
        np.testing.assert_allclose(shown[row], frames(alone, 31)[0], atol=1e-5)


def test_shapes_differ_and_are_signed_distances():
    axis = jnp.linspace(-1.3, 1.3, 131)
    x, y = jnp.meshgrid(axis, axis)
    fields = [np.asarray(shapes.distance(jnp.int32(k), x, y)) for k in range(len(worlds.SHAPES))]
    for k, field in enumerate(fields):
        assert 0.15 < (field < 0).mean() < 0.5, worlds.SHAPES[k]
        assert (np.abs(np.stack(np.gradient(field, float(axis[1] - axis[0])))) < 1.01).all()
        edge = np.abs(field) < 0.02
        slope = np.hypot(*np.gradient(field, float(axis[1] - axis[0])))[edge]
        assert np.median(slope) == pytest.approx(1, abs=0.02), worlds.SHAPES[k]
        for other in fields[:k]:
            assert ((field < 0) != (other < 0)).mean() > 0.03


def test_bank_has_natural_statistics():
    light = textures.pictures()[textures.NAMED :].mean(-1)
    taper = np.outer(np.hanning(textures.SIZE), np.hanning(textures.SIZE)).astype(np.float32)
    light = (light - light.mean((1, 2), keepdims=True)) * taper
    power = np.abs(np.fft.fft2(light)) ** 2
    f = np.hypot(*np.meshgrid(*[np.fft.fftfreq(textures.SIZE) * textures.SIZE] * 2))
    bands = np.geomspace(3, 80, 9)
    means = [power[:, (f >= a) & (f < b)].mean(-1) for a, b in zip(bands, bands[1:], strict=False)]
    slopes = np.polyfit(np.log(np.sqrt(bands[1:] * bands[:-1])), np.log(means), 1)[0]
    assert -2.8 < slopes.mean() < -1.6
    assert np.percentile(slopes, 10) > -4 and np.percentile(slopes, 90) < -0.8


def test_bank_is_sampled_where_it_says():
    picture, level = jnp.int32(9), jnp.int32(0)
    start, side = textures.locate(picture, level)
    at = (jnp.arange(textures.SIZE, dtype=jnp.float32) + 0.5) / textures.SIZE
    u, v = jnp.meshgrid(at, at)
    sampled = textures.sample(textures.bank(), start, side, u, v)[:3]
    wanted = np.moveaxis(textures.pictures()[9], -1, 0)
    np.testing.assert_allclose(sampled[:, 4:-4, 4:-4], wanted[:, 4:-4, 4:-4], atol=0.01)
    beyond = textures.sample(textures.bank(), start, side, 2 - u, -v)[:3]
    np.testing.assert_allclose(beyond, sampled, atol=1e-3)


def test_waves_do_not_lose_precision():
    wave = scene.Wave(jnp.ones((1,)), jnp.asarray([97]), jnp.asarray([13]))
    far = 97 * 100_003 + 29
    np.testing.assert_array_equal(wave.at(jnp.int32(far)), wave.at(jnp.int32(29)))
