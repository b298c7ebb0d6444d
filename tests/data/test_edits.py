"""Footage edits against closed forms, and what they all promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsd_jax.data import edits, filters, prompts
from lsd_jax.data.edits import EDITS, NAMES

SIZE = 128
STEADY = [name for name in NAMES if name not in ("snow", "rain")]


def picture(seed, height=SIZE, width=SIZE):
    """A natural-like picture [h, w, 3]: discs of all sizes over each other, with 1/f texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height

    def texture():
        f = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
        f[0, 0] = np.inf
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / f).real
        return rng.uniform(0.1, 0.9, 3) + 0.1 * (noise / noise.std())[..., None]

    out = texture()
    for _ in range(25):
        disc = np.hypot(y - rng.uniform(0, 1), x - rng.uniform(0, 1)) < 0.05 / rng.uniform(0.12, 1)
        out = np.where(disc[..., None], texture(), out)
    return np.clip(out, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def natural():
    return jnp.asarray(np.stack([picture(seed) for seed in range(4)]))


@pytest.fixture(scope="module")
def results(natural):
    """Every edit of the natural pictures."""
    index = jnp.arange(4, dtype=jnp.int32)
    return {name: np.asarray(jax.jit(edit)(natural, index)) for name, edit in EDITS.items()}


def run(name, frames):
    index = jnp.arange(len(frames), dtype=jnp.int32)
    return np.asarray(EDITS[name](jnp.asarray(frames, jnp.float32), index))


def constant(*colour, size=32):
    return np.broadcast_to(np.float32(colour), (1, size, size, 3))


def psnr(a, b):
    return -10 * np.log10(np.mean((np.asarray(a) - np.asarray(b)) ** 2) + 1e-12)


COLOUR = np.array([0.8, 0.5, 0.2])
GREY = 0.299 * 0.8 + 0.587 * 0.5 + 0.114 * 0.2
CLOSED_FORMS = {
    "night": np.array(edits.NIGHT_TINT) * (0.4 * COLOUR + 0.6 * GREY) ** 1.4,
    "fog": 0.3 * COLOUR + 0.7 * np.array(edits.FOG_COLOUR),
    "sketch": np.array(edits.PAPER),
    "oil": np.array(edits.VARNISH) * (1.5 * COLOUR - 0.5 * GREY),
    "pixels": np.round(np.clip(1.5 * COLOUR - 0.5 * GREY, 0, 1) * 4) / 4,
    "hue": COLOUR[[2, 0, 1]],
    "glass": 0.65 * COLOUR + 0.3,
    "sepia": np.array(edits.SEPIA) * (0.1 + 0.9 * GREY),
    "sunset": np.array(edits.DUSK_LIGHT) * COLOUR + np.array(edits.DUSK_SHADE) * (1 - COLOUR),
    "neon": np.array(edits.NEON_GROUND),
    "negative": 1 - COLOUR,
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_constant_picture_gives_the_documented_formula(name):
    expected = np.broadcast_to(CLOSED_FORMS[name], (1, 32, 32, 3))
    np.testing.assert_allclose(run(name, constant(*COLOUR)), expected, atol=2e-5)


def test_rain_and_snow_are_their_formulas_between_the_specks():
    rain = np.array(edits.RAIN_TINT) * (0.3 * COLOUR + 0.7 * GREY) + 0.08
    t = (GREY - 0.2) / 0.5
    cover = 0.45 + 0.35 * (3 * t**2 - 2 * t**3)
    snow = (0.35 * COLOUR + 0.65 * GREY) * (1 - cover) + np.array(edits.SNOW_COLOUR) * cover
    for name, expected in (("rain", rain), ("snow", snow)):
        off = np.abs(run(name, constant(*COLOUR, size=SIZE)) - expected).max(-1) > 1e-4
        assert 0.005 < off.mean() < 0.12, name  # specks cover little


def test_thermal_runs_from_indigo_to_white():
    np.testing.assert_allclose(run("thermal", constant(0, 0, 0))[0, 5, 5], edits.HEAT[0], atol=1e-6)
    np.testing.assert_allclose(
        run("thermal", constant(1, 1, 1))[0, 5, 5], edits.HEAT[-1], atol=1e-5
    )
    np.testing.assert_allclose(
        run("thermal", constant(0.4, 0.4, 0.4))[0, 5, 5], edits.HEAT[2], atol=1e-5
    )


def test_noir_is_a_grey_sigmoid_with_dark_corners():
    out = run("noir", constant(*COLOUR, size=33))
    assert np.ptp(out, axis=-1).max() == 0
    middle = 1 / (1 + np.exp(-10 * (GREY - 0.5)))
    np.testing.assert_allclose(out[0, 16, 16, 0], middle, atol=1e-5)
    np.testing.assert_allclose(out[0, 0, 0, 0], 0.45 * middle, atol=1e-5)


def test_cartoon_keeps_its_four_levels():
    for level in (0.25, 0.5, 0.75):
        out = run("cartoon", constant(level, level, level))
        np.testing.assert_allclose(out, 1.2 * level + 0.06, atol=1e-4)


def test_hue_turns_by_a_third_and_keeps_grey(natural):
    once = run("hue", natural)
    np.testing.assert_array_equal(run("hue", run("hue", once)), natural)
    grey = np.repeat(natural[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(run("hue", grey), grey)


def test_negative_undoes_itself(natural):
    np.testing.assert_allclose(run("negative", run("negative", natural)), natural, atol=1e-6)


def test_sketch_draws_a_line_where_brightness_jumps():
    step = np.zeros((1, SIZE, SIZE, 3), np.float32)
    step[:, :, SIZE // 2 :] = 0.8
    out = run("sketch", step)[0, :, :, 0]
    assert out[:, SIZE // 2].max() < 0.2
    np.testing.assert_allclose(out[:, :50], edits.PAPER[0], atol=1e-5)


def test_pixels_are_constant_blocks_on_five_levels(natural):
    out = run("pixels", natural)
    cells = out.reshape(4, 16, 8, 16, 8, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))
    assert set(np.unique(out)) <= {0, 0.25, 0.5, 0.75, 1}


def test_kuwahara_flattens_noise_and_keeps_a_step():
    rng = np.random.default_rng(0)
    clean = np.zeros((1, 64, 64, 3), np.float32) + 0.25
    clean[:, :, 32:] = 0.75
    noisy = clean + rng.normal(0, 0.03, clean.shape).astype(np.float32)
    out = np.asarray(filters.kuwahara(jnp.asarray(noisy), 8.0))
    assert out[:, :, 20:28].std() < 0.01
    assert out[:, :, 28:31].mean() < 0.27 and out[:, :, 33:36].mean() > 0.73


def test_names_agree_with_the_prompts():
    assert NAMES == tuple(prompts.PARAPHRASES)
    for name, (trained, held_out) in prompts.PARAPHRASES.items():
        assert all(prompts.parse(text) == (name,) for text in trained + held_out)


def test_edits_stay_in_range_and_float32(results):
    for name, out in results.items():
        assert out.dtype == np.float32 and out.shape == (4, SIZE, SIZE, 3), name
        assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5, name


def test_edits_are_far_from_each_other_and_from_the_input(natural, results):
    pictures = {"identity": np.asarray(natural), **results}
    for a in pictures:
        assert a == "identity" or psnr(pictures[a], natural) < 20, a
        for b in pictures:
            assert a == b or psnr(pictures[a], pictures[b]) < 22, (a, b)


def test_edits_look_alike_at_any_resolution():
    big = picture(1, 256, 256)[None]
    small = big.reshape(1, 128, 2, 128, 2, 3).mean((2, 4))
    for name in ("night", "fog", "oil", "glass", "sepia", "thermal", "snow"):
        halved = run(name, big).reshape(1, 128, 2, 128, 2, 3).mean((2, 4))
        assert psnr(halved, run(name, small)) > 22, name


@settings(max_examples=3, deadline=None)
@given(height=st.integers(9, 140), width=st.integers(9, 140), seed=st.integers(0, 99))
def test_odd_sizes_work(height, width, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), np.uint8)
    out = edits.apply("snow and cartoon, pixel art, frosted glass with film noir", frames)
    assert out.shape == frames.shape and out.dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
def test_each_edit_takes_an_odd_size(name):
    out = edits.apply(
        prompts.PARAPHRASES[name][0][0], (picture(0, 97, 131)[None] * 255).astype("u1")
    )
    assert out.shape == (1, 97, 131, 3) and out.std() > 1


@pytest.mark.parametrize("prompt", ["night and snow", "make it rain", "oil painting"])
def test_a_cut_video_gives_a_cut_result(natural, prompt):
    frames = np.asarray(natural * 255).astype(np.uint8)
    whole = edits.apply(prompt, frames, start_index=7)
    np.testing.assert_array_equal(edits.apply(prompt, frames[2:], start_index=9), whole[2:])
    np.testing.assert_array_equal(edits.apply(prompt, frames, start_index=7), whole)


@pytest.mark.parametrize("start", [0, 10_000_000])
def test_specks_fall_steadily(start):
    """Four frames at a quarter of a cell move all by one cell, wherever the count stands."""
    settings = dict(cells=(8.0, 8.0), slant=0.0, half=(0.2, 0.2), chance=0.5, seed=3)
    index = jnp.asarray([start, start + 4], jnp.int32)
    first, later = np.asarray(filters.particles(index, 128, 128, fall=16, **settings))
    np.testing.assert_allclose(later[16:], first[:-16], atol=1e-4)  # one cell = 16 pixels
    assert 0.01 < first.mean() < 0.1


def test_only_snow_and_rain_look_at_the_frame_number(natural):
    one = natural[:1]
    for name, edit in EDITS.items():
        a, b = (np.asarray(edit(one, jnp.asarray([i], jnp.int32))) for i in (0, 5))
        assert np.array_equal(a, b) == (name in STEADY), name
        assert psnr(a, b) > 24, name  # little of the change moves


def test_apply_leaves_the_picture_alone_when_asked(natural):
    frames = np.asarray(natural * 255).astype(np.uint8)
    for prompt in ("", "Leave it as it is."):
        out = edits.apply(prompt, frames)
        np.testing.assert_array_equal(out, frames)
        assert out is not frames
    assert edits.apply("night", frames[:0]).shape == (0, SIZE, SIZE, 3)


def test_apply_refuses_an_unknown_prompt_and_keeps_its_input(natural):
    frames = np.asarray(natural[:1] * 255).astype(np.uint8)
    before = frames.copy()
    with pytest.raises(ValueError, match="no footage edit is called 'bake a cake'; try"):
        edits.apply("bake a cake", frames)
    edits.apply("sepia", frames)
    np.testing.assert_array_equal(frames, before)


def test_switch_and_composition_equal_the_edits(natural, results):
    small, index = natural[:2, ::2, ::2], jnp.arange(2, dtype=jnp.int32)
    numbers = jnp.asarray([[0, 0], *map(edits.slots, prompts.TRAINED_PAIRS[:3])], jnp.int32)
    batch = jax.jit(
        lambda numbers: jax.lax.map(lambda n: edits.compose(n[0], n[1], small, index), numbers)
    )(numbers)
    np.testing.assert_array_equal(batch[0], small)
    for out, (first, second) in zip(batch[1:], prompts.TRAINED_PAIRS[:3], strict=True):
        expected = EDITS[second](EDITS[first](small, index), index)
        np.testing.assert_allclose(out, expected, atol=1e-4)
    with pytest.raises(ValueError, match="at most two"):
        edits.slots(("night", "snow", "fog"))


def test_edits_batch_under_vmap(natural, results):
    clips, index = natural[:, None], jnp.arange(4, dtype=jnp.int32)[:, None]
    for name in ("snow", "oil", "glass"):
        out = jax.jit(jax.vmap(EDITS[name]))(clips, index)
        np.testing.assert_allclose(out[:, 0], results[name], atol=1e-4)
