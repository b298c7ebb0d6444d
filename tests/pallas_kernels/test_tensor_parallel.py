"""The megakernel on several chips, interpreted, against the float32 specification."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from lsd_jax import config as configs
from lsd_jax.hw.chips import load
from lsd_jax.hw.stack import share, streamed_stack
from lsd_jax.ops.denoise_stack import denoise_stack
from lsd_jax.ops.partition import chips_here
from lsd_jax.quantize import quantize_stack
from pallas_kernels.tpu import schedule
from pallas_kernels.tpu.cost import total
from pallas_kernels.tpu.denoise_stack import as_seam, by_kernel, interpreted, shape_of
from pallas_kernels.tpu.interpret import interpret
from pallas_kernels.tpu.plan import Plan, filling
from pallas_kernels.tpu.planner import choose, choose_cycles, limit_bytes
from pallas_kernels.tpu.tensor_parallel import over_chips
from tests.marks import slow
from tests.pallas_kernels import races
from tests.pallas_kernels.examples import arguments, noticed
from tests.pallas_kernels.test_megakernel import TOLERANCE, assert_near

pytestmark = pytest.mark.multidevice


def mesh_of(chips):
    return Mesh(np.array(jax.devices()[:chips]), ("tensor",))


def plan_of(args, chips, group=1, chunk=128, rows=16, queries=16):
    x, weights, kv, _, modulation, _ = args
    whole = shape_of(x, weights, kv, modulation)
    filled = filling(whole, chips)
    return Plan(share(whole, chips), group, chunk, rows, queries, chips=chips, filled=filled)


def run(args, plan, **options):
    """The seam on as many virtual devices, with races looked for."""
    simulated = pltpu.InterpretParams(detect_races=True, **options)
    with jax.set_mesh(mesh_of(plan.chips)):
        out = jax.jit(lambda *args: by_kernel(plan, *args, interpret=simulated))(*args)
        out = jax.block_until_ready(out)
    assert not races.found()
    return out


@pytest.mark.parametrize(
    ("chips", "dtype", "shape", "tiles"),
    [
        slow(2, "float32", dict(heads=4, mlp=512), dict()),
        (2, "float32", dict(b=2, heads=2), dict(rows=64, chunk=128)),  # one block, of two owners
        (4, "bfloat16", dict(b=2, heads=4, mlp=512), dict(rows=32)),
        slow(2, "float32", dict(heads=2, g=2), dict()),
        (2, "bfloat16", dict(rows=3, g=2), dict()),  # 24 tokens, filled up to 16 for each chip
        (4, "float32", dict(b=2, rows=3, columns=7, heads=4, mlp=512), dict(queries=8)),
    ],
)
def test_equals_the_specification(chips, dtype, shape, tiles):
    args, exact = arguments(dtype, **shape), arguments(**shape)
    if tiles.get("rows") == 64:  # sessions of one block share their modulation
        args, exact = ((*a[:4], a[4][:, :1], a[5]) for a in (args, exact))
    ours = run(args, plan_of(args, chips, **tiles))
    assert {a.dtype.name for a in ours} == {dtype}
    assert_near(ours, jax.jit(denoise_stack)(*exact), TOLERANCE[dtype])
    copies = [np.asarray(copy.data) for copy in ours[0].addressable_shards]
    assert len(copies) == chips and all(np.array_equal(copies[0], copy) for copy in copies)


def test_copies_that_are_done_at_once_change_nothing():
    args = arguments(heads=2, mlp=256)
    ours = run(args, plan_of(args, 2), dma_execution_mode="eager")
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


def test_weights_in_eight_bits():
    exact = arguments(heads=2, mlp=256)
    x, weights, *rest = exact
    args = x, quantize_stack(weights, "float32"), *rest
    assert_near(run(args, plan_of(args, 2)), jax.jit(denoise_stack)(*exact), 3e-2)


def test_the_interpreter_adds_up_as_the_kernel_does():
    args = arguments(heads=2, mlp=256)
    plan = plan_of(args, 2)
    steps = list(schedule.steps(schedule.program(plan)))
    kinds = [type(s.instruction).__name__ for s in steps]
    assert kinds.count("Combine") == 2 * plan.shape.layers and kinds.count("Meet") == 1

    def one(*args):
        return as_seam(interpret(plan, steps, *args))

    with jax.set_mesh(mesh_of(2)):
        theirs = jax.jit(over_chips(one))(*args)
    assert_near(run(args, plan), theirs, TOLERANCE["float32"])


def test_the_mesh_in_use_says_how_many_chips_there_are():
    args = arguments(heads=2, mlp=256)
    assert chips_here() == 1
    with jax.set_mesh(mesh_of(2)):
        assert chips_here() == 2
        ours = jax.jit(interpreted)(*args)
    assert len(ours[1].addressable_shards) == 2
    assert ours[1].addressable_shards[0].data.shape[3] == 1  # each keeps the keys of its heads
    assert_near(ours, jax.jit(denoise_stack)(*args), TOLERANCE["float32"])


@pytest.mark.parametrize("fault", ["none", "unheard"])
def test_eight_chips_and_chips_that_do_not_wait(fault):
    """In a process of its own, which needs more virtual devices than it uses. Two that do not wait
    show what eight would."""
    seen = noticed("eight_chips.py")[fault]
    assert (seen == {"raced": False, "near": True, "error": None}) == (fault == "none"), seen


def test_a_share_is_a_part_of_all_heads_and_features():
    args = arguments(heads=4, mlp=512)
    whole = shape_of(*args[:3], args[4])
    part = share(whole, 4)
    assert (part.heads, part.mlp, part.dim, part.rows) == (1, 128, whole.dim, whole.rows)
    for chips, change, match in (
        (3, dict(tokens=48), "heads=4 cannot be shared by 3 chips"),
        (4, dict(mlp=514), "mlp=514 cannot be shared by 4 chips"),
    ):
        with pytest.raises(NotImplementedError, match=match):
            share(replace(whole, **change), chips)


def test_without_spare_threads_the_interpreter_is_refused():
    """It would wait for ever."""
    args = arguments(heads=8, mlp=1024)
    with jax.set_mesh(mesh_of(8)), pytest.raises(NotImplementedError, match="device_count=16"):
        jax.eval_shape(interpreted, *args)


def test_what_a_share_is_refused_for_is_said_of_each_chip():
    shape = shape_of(*arguments("bfloat16")[:3], arguments("bfloat16")[4])
    with pytest.raises(NotImplementedError, match="use mlp=.*on each of 2 chips"):
        choose(replace(shape, heads=2, mlp=128, tokens=64), "v6e", 2)


def test_a_1080p_model_fits_eight_chips_in_blocks_that_each_adds_up():
    """272 rows, half a tile of int8 more than eight whole ones."""
    shape = streamed_stack(configs.load("lucy_v6e"))
    assert shape.weight_dtype == "int8"
    plan = choose(shape, "v6e", 8).plan
    assert plan.rows == plan.owned == plan.piece == 272
    assert plan.vmem_bytes <= limit_bytes(load("v6e"))
    cycles = choose_cycles([shape, replace(shape, tokens=2040)], load("v6e"), 8)
    assert cycles[1] < cycles[0] == choose(shape, "v6e", 8).total.cycles


@pytest.mark.parametrize("chips", [2, 4])
def test_the_residual_stream_comes_and_goes_by_way_of_the_sums(chips):
    """Else it would lie in VMEM whole once more on its way in, and once on its way out."""
    plan = choose(streamed_stack(configs.load("lucy_v6e")), "v6e", chips).plan
    assert "x_in" in replace(plan, chips=1).arguments
    assert not {"x_in", "x_out"} & set(plan.arguments)
    room = limit_bytes(load("v6e")) - plan.vmem_bytes
    assert 0 <= room < 2 * plan.buffers["total"].bytes


def test_tokens_are_filled_up_to_whole_tiles_for_each_chip():
    shape = streamed_stack(configs.load("lucy_1080p"))
    assert shape.tokens == 2040
    assert [filling(shape, chips) for chips in (1, 2, 4, 8, 16)] == [8, 8, 8, 8, 8]
    assert (
        filling(replace(shape, tokens=1024), 5) == 16
        and filling(replace(shape, tokens=2176), 8) == 0
    )
    assert filling(replace(shape, tokens=64, sessions=2), 8) == 0  # the rows of both
    plan = choose(shape, "v6e", 8).plan
    assert (plan.session_rows, plan.owned, plan.blocks * plan.rows) == (2048, 256, 2048)
    assert "2,040 tokens filled up to 2,048 rows" in plan.describe()
    whole = replace(plan, shape=replace(plan.shape, tokens=2048), filled=0)
    assert whole.describe() == plan.describe().replace("2,040 tokens filled up to 2,048 rows, ", "")
    known = total(schedule.program(whole), whole, load("v6e"))
    padded = choose(shape, "v6e", 8).total
    assert padded.cycles == pytest.approx(known.cycles, rel=1e-3)  # what fills up is paid for,
    assert padded.macs < known.macs and padded.hbm_bytes < known.hbm_bytes  # and never moved


@pytest.mark.parametrize("chips", [2, 4, 8])
def test_plans_of_several_chips_fit_and_send_whole_pieces(chips):
    reference = replace(
        shape_of(*arguments("bfloat16")[:3], arguments("bfloat16")[4]),
        tokens=256, dim=1024, heads=8, mlp=4096, modulations=1,
    )  # fmt: skip
    alone, plan = choose(reference, "v6e").plan, choose(reference, "v6e", chips).plan
    assert plan.chips == chips and plan.shape.heads * chips == reference.heads
    assert plan.owned * chips == plan.shape.rows
    assert plan.owned % plan.piece == 0 and plan.rows % plan.piece == 0
    assert {"share", "inbox"} <= set(plan.buffers) and "share" not in alone.buffers
    assert plan.vmem_bytes <= limit_bytes(load("v6e"))
