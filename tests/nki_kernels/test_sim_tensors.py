"""What kernels are written with: views, registers, loops, cores and ranks, against NumPy."""

import numpy as np
import pytest

from nki_kernels import sim
from nki_kernels.sim import collectives as nccl
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from tests.nki_kernels.simulated import A, close, load, rng, through


def test_views_and_access_patterns():
    def body(d):
        source = nl.shared_constant(A)
        rows = source.ap(pattern=[[0, 128], [1, 96]], offset=96)  # row 1 in every partition
        nisa.dma_copy(dst=d, src=rows)

    close(through(body), np.broadcast_to(A[1], A.shape))

    def beyond(d):  # of a view, from its own beginning on
        rows = nl.shared_constant(A)[2:].ap(pattern=[[96, 4], [1, 96]], offset=96)
        nisa.dma_copy(dst=d, src=rows)

    close(through(beyond, shape=(4, 96)), A[3:7])

    def dynamic(d, index):
        row = nl.shared_constant(A).ap(pattern=[[96, 1], [1, 96]], scalar_offset=index)
        nisa.dma_copy(dst=d, src=row)

    index = np.array([[7]], np.int32)
    close(through(dynamic, index, shape=(1, 96)), A[7:8])

    def views(d, a):
        cube = a.reshape((128, 8, 12)).permute((0, 2, 1))  # as [12, 8]
        nisa.tensor_copy(dst=d, src=cube)

    close(through(views, A), A.reshape(128, 8, 12).transpose(0, 2, 1).reshape(128, 96))

    def bits(d, a):
        nisa.tensor_copy(dst=d, src=a.view(nl.int32)[:, 0:96])

    out = through(bits, A, dtype=nl.int32)
    np.testing.assert_array_equal(out, A.view(np.int32))


def test_registers_loops_and_constants():
    def body(d, index):
        source = nl.shared_constant(A)
        register = nisa.register_alloc(index)
        nisa.dma_copy(dst=d[0:1], src=source.ap(pattern=[[96, 1], [1, 96]], scalar_offset=register))
        total = nl.zeros((1, 96), nl.float32)

        def add(i):
            row = nl.ndarray((1, 96), nl.float32)
            nisa.dma_copy(dst=row, src=source.ap(pattern=[[96, 1], [1, 96]], scalar_offset=i))
            nisa.tensor_tensor(dst=total, data1=total, data2=row, op="add")

        nl.fori_loop(0, 5, add)
        nisa.tensor_tensor(dst=d, data1=d, data2=total, op="add")

    out = through(body, np.array([[3]], np.int32), shape=(1, 96))
    close(out, A[3:4] + A[:5].sum(0), 1e-5)
    assert sim.run.__module__ == "nki_kernels.sim.run"


def test_two_cores_share_hbm_and_exchange_tiles():
    def kernel(a):
        out = nl.ndarray((2, 128, 96), nl.float32, nl.shared_hbm)
        core = nl.program_id(0)
        mine, theirs = load(a), nl.ndarray((128, 96), nl.float32)
        nisa.tensor_scalar(dst=mine, data=mine, op0="multiply", operand0=float(core + 1))
        nisa.sendrecv(
            src=mine, dst=theirs, send_to_rank=1 - core, recv_from_rank=1 - core, pipe_id=0
        )
        nisa.dma_copy(dst=out[core], src=theirs)
        nisa.core_barrier(out)
        return out

    out = sim.run(sim.jit(kernel)[2], (A,)).outputs[0]
    close(out[0], 2 * A)
    close(out[1], A)


def test_collectives_over_ranks():
    group = nccl.ReplicaGroup([[0, 1, 2, 3]])

    def kernel(a):
        out = nl.ndarray((6, 8, 96), nl.float32, nl.shared_hbm)
        mine = load(a)
        total, gathered = nl.ndarray((8, 96), nl.float32), nl.ndarray((32, 96), nl.float32)
        part, beside = nl.ndarray((2, 96), nl.float32), nl.ndarray((8, 384), nl.float32)
        nccl.all_reduce([mine], [total], group, nl.add)
        nccl.all_gather([mine], [gathered], group, 0)
        nccl.all_gather([mine], [beside], group, 1)
        nccl.reduce_scatter([mine], [part], group, 0, nl.add)
        nisa.dma_copy(dst=out[0], src=total)
        nisa.dma_copy(dst=out[1:5].reshape((32, 96)), src=gathered)
        nisa.dma_copy(dst=out[5][0:2], src=part)
        nisa.dma_copy(dst=out[5][2:8], src=beside[0:6, 96:192])
        return out

    arrays = A[:32].reshape(4, 8, 96)
    done = sim.run(sim.jit(kernel), [(a,) for a in arrays], ranks=4)
    for rank, out in enumerate(done.outputs):
        close(out[0], arrays.sum(0), 1e-5)
        close(out[1:5], arrays)
        close(out[5, :2], arrays.sum(0)[2 * rank : 2 * rank + 2], 1e-5)
        close(out[5, 2:], arrays[1, :6])


def test_registers_move_load_and_store():
    def body(d, index):
        first, second = nisa.register_alloc(5), nisa.register_alloc()
        nisa.register_load(second, index)
        nisa.register_store(d[:, 0:1], first)
        nisa.register_store(d[:, 1:2], second)
        nisa.register_move(first, second)
        nisa.register_move(second, 9)
        nisa.register_store(d[:, 2:3], first)
        nisa.register_store(d[:, 3:4], second)

    out = through(body, np.array([[7]], np.int32), shape=(1, 4), dtype=nl.int32)
    assert out.tolist() == [[5, 7, 7, 9]]


def test_tensors_are_made_full_or_like_others():
    def body(d):
        nisa.memset(dst=d, value=0.0)
        for i, tile in enumerate((
            nl.ones((2, 3), nl.float32), nl.full((2, 3), -4.0, nl.float32),
            nl.zeros_like(nl.ones((2, 3), nl.float32)),
        )):  # fmt: skip
            nisa.tensor_copy(dst=d[:, 3 * i : 3 * i + 3], src=tile)
        like = nl.empty_like(d, dtype=nl.bfloat16, buffer=nl.psum)
        assert (like.shape, like.dtype, like.buffer) == (d.shape, nl.bfloat16, nl.psum)
        assert nl.tile_size.sbuf_fmax_bytes == 212992

    assert through(body, shape=(2, 9)).tolist() == [[1] * 3 + [-4] * 3 + [0] * 3] * 2


def test_a_loop_runs_while_its_register_is_not_zero():
    def body(d, count):
        nisa.memset(dst=d, value=0.0)
        minus = nl.full((1, 1), -1, nl.int32)

        def step(register):
            value = nl.ndarray((1, 1), nl.int32)
            nisa.register_store(value, register)
            nisa.tensor_tensor(dst=d, data1=d, data2=value, op=nl.add)
            nisa.tensor_tensor(dst=value, data1=value, data2=minus, op=nl.add)
            following = nisa.register_alloc()
            nisa.register_load(following, value)
            return following

        with nl.no_reorder():
            first = nisa.register_alloc(count)
        nl.while_loop(first, step)

    for count, total in ((4, 10), (0, 0)):
        out = through(body, np.array([[count]], np.int32), shape=(1, 1))
        assert out.tolist() == [[total]]


def test_axes_split_merge_and_go_by_name():
    x = rng.standard_normal((8, 2, 3, 4)).astype(np.float32)
    views = {
        "split": (lambda t: t.reshape_dim(3, (2, -1)), x.reshape(8, 2, 3, 2, 2)),
        "merged": (lambda t: t.flatten_dims(1, 2), x.reshape(8, 6, 4)),
        "one of a size": (lambda t: t[:, 0:1].flatten_dims(1, 2), x[:, 0]),
        "sliced": (lambda t: t.slice(3, 1, 4, 2), x[..., 1:4:2]),
        "selected": (lambda t: t.select(2, 1), x[:, :, 1]),
        "named": (
            lambda t: t.rearrange(
                ("p", "a", "b", ("c", "d")), ("p", "d", ("a", "b"), "c"), {"c": 2}
            ),
            x.reshape(8, 6, 2, 2).transpose(0, 3, 1, 2),
        ),
    }  # fmt: skip
    for view, truth in views.values():

        def body(d, t, view=view, truth=truth):
            assert view(t).shape == truth.shape
            nisa.tensor_copy(dst=d, src=view(t))

        np.testing.assert_array_equal(through(body, x, shape=truth.shape), truth)


def test_ranks_exchange_parts_and_permute():
    group, arrays = nccl.ReplicaGroup([[0, 1, 2]]), A[:18].reshape(3, 6, 96)

    def kernel(a):
        parts, moved = (nl.ndarray((6, 96), nl.float32, nl.shared_hbm) for _ in range(2))
        nccl.all_to_all([a], [parts], group, 0)
        nccl.collective_permute([a], [moved], [(0, 1), (1, 2), (2, 0)])
        return parts, moved

    outputs = sim.run(sim.jit(kernel), [(a,) for a in arrays], ranks=3).outputs
    for rank, (parts, moved) in enumerate(outputs):
        close(parts, arrays[:, 2 * rank : 2 * rank + 2].reshape(6, 96))
        close(moved, arrays[rank - 1])


@pytest.mark.parametrize("chip", ["trn1", "trn2", "trn3"])
def test_kernels_ask_for_their_generation(chip):
    def body(d):
        generations = {"trn1": nisa.nc_version.gen2, "trn2": nisa.nc_version.gen3}
        generation = generations.get(chip, nisa.nc_version.gen4)
        nisa.memset(dst=d, value=float(nisa.get_nc_version() is generation))

    assert through(body, shape=(1, 1), chip=chip).tolist() == [[1]]


def test_simulate_gives_the_kernel_as_a_function():
    @sim.jit
    def kernel(a):
        out = nl.ndarray(a.shape, a.dtype, nl.shared_hbm)
        tile = load(a)
        nisa.activation(dst=tile, op=nl.square, data=tile)
        nisa.dma_copy(dst=out, src=tile)
        return out

    close(sim.simulate(kernel)(A), A * A)
    close(kernel(A), A * A)
