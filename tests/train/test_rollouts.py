"""The bank of streams: which clips it meets, that they go on, and that it streams as users do."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsd_jax import sharding, stream
from lsd_jax.codec import PixelCodec
from lsd_jax.conditioning import taken_back
from lsd_jax.data.pipeline import plans
from lsd_jax.model import build
from lsd_jax.prune import two_four
from lsd_jax.train import rollouts
from lsd_jax.train.history import drift, history_loss, imperfect
from lsd_jax.train.rollouts import GROUPS, Rollouts
from lsd_jax.train.stages import prepare
from lsd_jax.train.step import init_state


@pytest.fixture(scope="module")
def config(small_config):
    """Three of eight clips are the model's own, some of which are told to carry on."""
    history = dataclasses.replace(small_config.history, corrupted=0.25, rolled_out=0.375)
    train = dataclasses.replace(small_config.train, frames=2, prompt_drop=0.0, carry_on=0.6)
    return dataclasses.replace(small_config, history=history, train=train)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def stage(config, mesh):
    return prepare("history", config, None, mesh)


def test_every_age_is_met_and_a_life_is_one_world(config, mesh):
    bank = Rollouts(config, mesh)
    ages = {g: [] for g in range(GROUPS)}
    for step in range(GROUPS * 128):
        group, life, age = rollouts._place(step)
        ages[group].append((life, age))
    for group, seen in ages.items():
        lives = 128 // 2**group
        assert seen == [(life, age) for life in range(lives) for age in range(2**group)]
    # Group 1 lives for two clips: its second visit goes on with the plan of its first.
    first, second, next_life = (bank.clips(1 + GROUPS * visit) for visit in range(3))
    carried = second.carried
    assert carried.dtype == first.carried.dtype and np.any(carried == 0)
    assert np.all((carried == 0) == (first.carried < config.train.frames))
    goes_on = dataclasses.replace(first.later(config.train.frames), carried=carried)
    jax.tree.map(np.testing.assert_array_equal, second, goes_on)
    assert np.all(next_life.worlds != first.worlds)


def test_the_bank_shows_what_the_streaming_step_shows(config, stage, small_params):
    """Two visits of one group equal one stream of both clips, some of which are told to carry on
    from the second on; the other clips show the truth."""
    model = stream.prepare(build(config.model, small_params), config)
    seeds = jnp.asarray(stage.make.__self__._seeds(1))
    state = jax.jit(partial(stream.init_state, config))(seeds)
    step, condition = jax.jit(stream.frame_step), jax.jit(stream.condition)
    for visit in range(2):
        number = 1 + GROUPS * visit
        filled = stage.make(number, small_params, stage.draw(number))
        np.testing.assert_array_equal(filled.shown[:-3], filled.target[:-3])
        mine = jax.tree.map(lambda x: x[-3:], filled)
        back = np.asarray(mine.carried) == 0
        assert back.any() == (visit == 1) and not back.all()
        others = taken_back(mine.condition)
        state = condition(model, state, mine.condition, jnp.asarray(~back))
        state = condition(model, state, others, jnp.asarray(back))
        for f in range(config.train.frames):
            state, out = step(model, state, mine.source[:, f], mine.controls[:, f])
            difference = np.abs(np.asarray(filled.shown[-3:, f], int) - np.asarray(out, int))
            assert difference.max() <= 1  # another program, the last bit of a byte


def test_streams_that_begin_in_the_middle_are_told_what_to_do(config, mesh, small_params):
    """As all do after a resume; from the next clip on they carry on, as those before it did."""
    bank = prepare("history", config, None, mesh)
    number, frames = 2 + GROUPS, config.train.frames
    plan = bank.draw(number)
    assert np.any(plan.carried[-3:] == 0)
    filled = bank.make(number, small_params, plan)
    np.testing.assert_array_equal(filled.carried[-3:], frames)
    np.testing.assert_array_equal(filled.carried[:-3], plan.carried[:-3])
    bank.make.__self__.states.clear()
    told = dataclasses.replace(plan, carried=np.asarray(filled.carried))
    np.testing.assert_array_equal(bank.make(number, small_params, told).shown, filled.shown)
    after = bank.draw(number + GROUPS)
    again = bank.make(number + GROUPS, small_params, after)
    np.testing.assert_array_equal(again.carried, after.carried)


def test_each_clip_has_the_history_of_its_kind(config, stage, small_params):
    batch = stage.make(0, small_params, stage.draw(0))
    encode = jax.jit(PixelCodec().encode)
    clean, source = encode(batch.target), encode(batch.source)
    wronged = jax.jit(imperfect, static_argnames="config")
    past, _ = wronged(clean, source, jax.random.key(0), batch.shown, config)
    np.testing.assert_allclose(past[-3:], encode(batch.shown[-3:]), atol=1e-6)
    wrong = np.asarray(jnp.any(jnp.abs(past[:-3] - clean[:-3]) > 1e-5, axis=(1, 2, 3, 4)))
    assert 1 <= wrong.sum() <= 2  # 0.25 of eight, of which a corruption may leave one as it was
    told = dataclasses.replace(config.history, level_input=True)
    _, level = wronged(
        clean, source, jax.random.key(0), batch.shown, dataclasses.replace(config, history=told)
    )
    assert np.all(np.asarray(level)[-3:] > 0) and np.all(np.asarray(level)[:-3][~wrong] < 1e-5)


@pytest.mark.multidevice
def test_eight_devices_show_what_one_shows(config, stage, small_params):
    mesh = sharding.make_mesh()
    spread = prepare("history", config, None, mesh)
    for visit in range(2):
        number = 1 + GROUPS * visit
        shown = spread.make(number, small_params, spread.draw(number)).shown
        alone = stage.make(number, small_params, stage.draw(number)).shown
        assert shown.sharding.spec == sharding.BATCH
        state = spread.make.__self__.states[1]
        for leaf, axis in ((state.kv.k, 1), (state.frame, 0)):  # a session on each device
            assert {shard.data.shape[axis] for shard in leaf.addressable_shards} == {1}
        assert np.abs(np.asarray(shown, int) - np.asarray(alone, int)).max() <= 1

    def flops(stage):
        """Of a device, to stream a step's clips."""
        batch, bank = stage.make(1, small_params, stage.draw(1)), stage.make.__self__
        given = small_params, bank.states[1], dataclasses.replace(batch, shown=None)
        return bank._run.lower(*given).compile().cost_analysis()["flops"]

    assert flops(spread) < 0.5 * flops(stage)  # three sessions


def test_drift_is_the_growth_of_the_error(config, small_model, small_batch, monkeypatch):
    """With a model whose error is known in each frame."""
    frames = small_batch.source.shape[1]
    small_batch = dataclasses.replace(
        small_batch,
        target=small_batch.target // 2,  # so that no error is clipped
        controls=jnp.full_like(small_batch.controls, 255),
    )
    clean = small_batch.target.astype(jnp.float32) / 127.5 - 1

    def scan(step, carry, inputs):
        errors = []
        for f in range(frames):
            carry, error = step(carry, jax.tree.map(lambda x, f=f: x[f], inputs))
            errors.append(error)
        return carry, jnp.stack(errors)

    monkeypatch.setattr(jax, "checkpoint", lambda f: f)
    monkeypatch.setattr(jax.lax, "scan", scan)
    remember = lambda self, *_: (jnp.zeros((2, 8, 16, 2, 16)),) * 2  # noqa: E731
    monkeypatch.setattr(type(small_model), "remember", remember)
    empty = (jnp.zeros((2, 8, 8, 2, 16)),) * 2
    monkeypatch.setattr(type(small_model), "pin", lambda self, _: (*empty, jnp.ones((8, 8), bool)))

    def found(sizes):
        misses = iter(clean[:, f] + size for f, size in enumerate(sizes))
        monkeypatch.setattr(type(small_model), "denoise", lambda self, *_: next(misses))
        return drift(small_model, small_batch, jax.random.key(0), config)

    value, slope = jax.value_and_grad(found)(jnp.asarray([0.2, 0.5, 0.1])[:frames])
    assert float(value) == pytest.approx((0.25 - 0.04 + 0) / 2, rel=1e-3)
    assert slope[0] == 0 and slope[1] > 0  # being bad at once does not pay


def test_a_stage_of_everything_teaches(config, stage, small_params, shared_step, mesh):
    """Own streams, corruptions, levels that are told, the penalty on drift; and weights that begin
    as zeros stay zeros."""
    history = dataclasses.replace(config.history, drift_penalty=1.0, level_input=True)
    train = dataclasses.replace(config.train, keep_zeros=True, learning_rate=5e-3, steps=8)
    config = dataclasses.replace(config, history=history, train=train)
    sparse = two_four.sparsify(small_params)
    state = init_state(config, mesh, sparse)
    run = shared_step(config, history_loss, mesh)
    batch = stage.make(0, state.ema, stage.draw(0))
    batch = jax.device_put(batch, jax.NamedSharding(mesh, sharding.BATCH))
    losses = []
    for _ in range(8):
        state, metrics = run(state, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.skipped) == 0 and float(metrics["drift"]) >= 0
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    for tree in (state.params, state.ema):
        for name in two_four.SUMMED:
            zeros = np.asarray(sparse["stack"][name]) == 0
            x = np.asarray(tree["stack"][name])
            assert not x[zeros].any() and np.any(x[~zeros] != sparse["stack"][name][~zeros])


def test_settings_that_leave_nothing_are_refused(config, mesh):
    with pytest.raises(ValueError, match="more than all clips"):
        dataclasses.replace(config.history, rolled_out=0.9)
    everything = dataclasses.replace(config.history, corrupted=0.0, rolled_out=1.0)
    with pytest.raises(ValueError, match="no other clip"):
        prepare("history", dataclasses.replace(config, history=everything), None, mesh)
    little = dataclasses.replace(config.history, rolled_out=0.05)
    with pytest.raises(ValueError, match="rolled_out=0.05 is no clip of a batch of 8; set more"):
        prepare("history", dataclasses.replace(config, history=little), None, mesh)


def test_no_two_draws_have_one_seed(config, mesh, monkeypatch):
    """NumPy takes zeros at the end of a seed for nothing."""
    given, generator = [], np.random.default_rng
    bank = Rollouts(config, mesh)
    monkeypatch.setattr(
        np.random, "default_rng", lambda seed: given.append(seed) or generator(seed)
    )
    for step in range(4):
        for draw in (plans(config), bank.clips, bank._seeds):
            draw(step)
    assert len({tuple(np.trim_zeros(seed, "b")) for seed in given}) == len(given) == 12


def test_another_seed_is_other_streams(config, mesh):
    banks = []
    for seed in (0, 1):
        train = dataclasses.replace(config.train, seed=seed)
        banks.append(Rollouts(dataclasses.replace(config, train=train), mesh))
    seeds = {int(x) for bank in banks for step in (0, 1, GROUPS) for x in bank._seeds(step)}
    assert len(seeds) == 2 * 3 * 3
