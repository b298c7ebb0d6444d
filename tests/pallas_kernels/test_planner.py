"""Plans and their modelled cost: they fit, they are chosen, they refuse with a remedy."""

import json
from dataclasses import replace
from itertools import product

import jax
import pytest

from lsd_jax import config as configs
from lsd_jax.hw import chips
from lsd_jax.hw.stack import abstract_arguments, least_bytes, least_macs, stack_of
from lsd_jax.ops import dispatch
from lsd_jax.ops.denoise_stack import denoise_stack
from pallas_kernels.tpu.cost import least_cycles, total
from pallas_kernels.tpu.plan import Buffer
from pallas_kernels.tpu.planner import SPARE_BYTES, choose, choose_for, limit_bytes
from pallas_kernels.tpu.schedule import program

TPUS = ("v5e", "v5p", "v6e", "tpu7x")


def shape_of(name):
    config = configs.load(name)
    return stack_of(config.model, config.stream.compute_dtype)


REFERENCE, BASE = shape_of("reference"), shape_of("base")


NARROW = replace(BASE, heads=10, head_dim=128, mlp=5120)  # heads half as wide as a unit of 256
SHARED = replace(NARROW, heads=2, per_kv=5)


@pytest.mark.parametrize("chip", TPUS)
@pytest.mark.parametrize("shape", [REFERENCE, BASE, NARROW, SHARED])
def test_a_plan_fits_and_does_all_of_the_work(chip, shape):
    plan = choose(shape, chip).plan
    assert plan.vmem_bytes < chips.load(chip)["vmem_bytes"]
    assert json.dumps([plan.vmem_bytes, choose(shape, chip).total.hbm_bytes])  # no array's numbers
    whole = total(program(plan), plan, chips.load(chip))
    assert whole.macs == least_macs(shape)
    assert whole.hbm_bytes == least_bytes(shape)  # each byte crosses HBM once
    on = chips.load(chip)
    traffic = whole.hbm_bytes * on["clock"] / on["hbm_bandwidth"]
    assert whole.cycles > max(least_cycles(shape, on), traffic)


@pytest.mark.parametrize(
    ("shape", "sessions"),
    [*product((REFERENCE, shape_of("tiny"), NARROW), (1, 2, 4)), *product((BASE,), (1, 2, 3))],
)
def test_a_plan_leaves_its_spare_below_what_the_compiler_may_give(shape, sessions):
    plan = choose(replace(shape, sessions=sessions), "v6e").plan
    assert plan.vmem_bytes + SPARE_BYTES <= limit_bytes(chips.load("v6e"))
    assert limit_bytes(chips.load("v6e")) < chips.load("v6e")["vmem_bytes"]


def test_what_fits_into_vmem_but_leaves_the_compiler_too_little_is_refused():
    with pytest.raises(NotImplementedError, match="v5p has 56.6 MB to give; use fewer sessions"):
        choose(replace(BASE, sessions=2), "v5p")
    with pytest.raises(NotImplementedError, match="v6e has 119.5 MB to give; use fewer sessions"):
        choose(replace(BASE, sessions=4), "v6e")


def test_a_layer_that_does_not_fit_twice_is_cut_into_more_tiles():
    large, small = choose(BASE, "v6e").plan, choose(BASE, "v5p").plan
    assert large.vmem_bytes > chips.load("v5p")["vmem_bytes"] >= small.vmem_bytes
    assert small.groups * small.chunks > large.groups * large.chunks


def test_queries_lie_along_the_lanes_where_a_head_leaves_half_of_a_matrix_unit_empty():
    ragged = replace(NARROW, ageless=NARROW.ageless + 16)  # keys that are no whole registers
    for chip, shape, turned in (
        ("v6e", NARROW, True),
        ("tpu7x", NARROW, True),
        ("v6e", replace(NARROW, weight_dtype="int8"), True),
        ("v6e", BASE, False),
        ("v6e", ragged, False),
        ("v6e", REFERENCE, False),  # of 256 tokens: too few queries
        ("v5e", NARROW, False),
    ):
        chosen = choose(shape, chip)
        assert chosen.plan.turned is turned
        assert "along the lanes" in chosen.plan.describe() or not turned
    straight, across = choose(ragged, "v6e").total, choose(NARROW, "v6e").total
    assert across.cycles < 0.9 * straight.cycles
    assert across.macs / straight.macs == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_base_is_planned_within_a_quarter_of_its_floor(chip):
    """On a v6e for its heads of 256: with ten of 128 it is not."""

    def over_floor(shape):
        return choose(shape, chip).total.cycles / least_cycles(shape, chips.load(chip))

    assert 1 < over_floor(BASE) < 1.25
    assert (over_floor(NARROW) < 1.25) == (chip != "v6e")


def test_query_heads_that_share_keys_cost_less_everywhere_but_where_they_ask():
    """The same queries of a fifth of the keys and values: as many multiply-adds with these, fewer
    that make them, fewer bytes of them, and more sessions."""
    whole, shared = choose(NARROW, "v6e"), choose(SHARED, "v6e")
    width, chip = NARROW.heads * NARROW.head_dim, chips.load("v6e")
    made = 2 * NARROW.layers * NARROW.rows * NARROW.dim * width
    assert whole.total.macs - shared.total.macs == made - made // 5
    kept = 2 * NARROW.layers * NARROW.itemsize * width * (NARROW.dim + NARROW.keys + NARROW.rows)
    assert whole.total.hbm_bytes - shared.total.hbm_bytes == kept - kept // 5
    assert shared.total.cycles < whole.total.cycles
    many = [replace(shape, sessions=4) for shape in (NARROW, SHARED)]
    cycles = [choose_for(shape, chip).total.cycles for shape in many]
    assert cycles[1] < cycles[0]
    with pytest.raises(NotImplementedError, match="kv_heads=2 cannot be shared by 4 chips"):
        choose(SHARED, "v6e", 4)
    assert choose(SHARED, "v6e", 2).plan.shape.heads == 1


def test_multiply_adds_and_bytes_of_the_reference_by_hand():
    dense, attended = 512 * (4 * 512 + 2 * 2048), 2 * (128 + 5 * 256) * 512
    assert least_macs(REFERENCE) == 4 * 256 * (dense + attended)
    assert least_bytes(REFERENCE) == 2 * (
        4 * (dense + 2 * (128 + 4 * 256) * 512 + 2 * 256 * 512) + 2 * 256 * 512
    )


def test_tiles_are_padded_to_whole_registers():
    assert Buffer((3, 5, 100), "bfloat16").bytes == 3 * 16 * 128 * 2
    assert Buffer((8, 128), "float32").bytes == 4096


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(tokens=510), "tokens=510 is no multiple of 8; use tokens=512, or backend xla"),
        (dict(weight_dtype="float8_e4m3"), "weights in float8_e4m3 are not streamed; use int8"),
        (dict(head_dim=64), "head_dim=64 is no multiple of 128"),
        (dict(ageless=0, slots=0), "no keys"),
        (dict(dtype="float16"), "use bfloat16"),
        (dict(sessions=64), "fewer sessions"),
    ],
)
def test_what_it_does_not_take_is_refused_with_a_remedy(change, reason):
    with pytest.raises(NotImplementedError, match=reason):
        choose(replace(BASE, **change), "v5p")


def test_explain_says_that_this_is_no_tpu_and_what_runs():
    answers = denoise_stack.explain(*abstract_arguments(REFERENCE))
    assert "this is 'cpu'; backend pallas-interpret runs it anywhere" in answers["pallas"]
    assert answers["pallas-interpret"] == answers["xla"] == "could serve"
    assert answers["xla-unrolled"] == "chosen"


@pytest.mark.parametrize(
    ("height", "patch", "dtype", "others", "most"),
    [(32, 16, "float32", "pallas-interpret", 1), (64, 32, "bfloat16", "xla", 3)],
)
def test_a_stream_by_the_interpreted_kernel_shows_the_same_pictures(
    height, patch, dtype, others, most
):
    """`frame_step` whole, by all kernels: passes with a window, and the commit with pinned tokens
    alone. Then of patches and tokens as those of `lucy_1080p`, 8 that are filled up to 16, which
    no other kernel takes."""
    import jax.numpy as jnp
    import numpy as np

    from lsd_jax import stream
    from lsd_jax.config import Config, ModelConfig, StreamConfig
    from lsd_jax.model import Denoiser

    config = Config(
        "wide",
        ModelConfig(
            height=height, width=128, patch=patch, dim=128, layers=1, heads=1, mlp=128, window=2,
            prompt_tokens=8, reference_tokens=8, text_dim=32, text_layers=1, detail_dim=8,
        ),
        StreamConfig(compute_dtype=dtype),
    )  # fmt: skip
    denoiser = jax.jit(lambda key: Denoiser(config.model, key))(jax.random.key(0))
    model = stream.prepare(denoiser, config)
    frame = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, height, 128, 3), np.uint8))
    controls = jnp.full((1, height, 128, 1), 255, jnp.uint8)
    shown = {}
    for backend in ("xla", "pallas-interpret"):
        with dispatch.using(backend) as chosen:
            step = jax.jit(lambda *args: stream.frame_step(*args))
            state = stream.init_state(config, jnp.zeros(1, jnp.int32))
            for _ in range(3):
                state, out = step(model, state, frame, controls)
        beside = {"attend": "xla"} if backend == "xla" else {"remember": backend}
        rest = backend if backend == "xla" else others
        ops = dict.fromkeys(("commit", "embed", "readout"), rest)
        ops |= {"denoise_stack": backend}
        assert chosen == ops | beside
        shown[backend] = np.asarray(out, np.int32)
    assert np.abs(shown["xla"] - shown["pallas-interpret"]).max() <= most
