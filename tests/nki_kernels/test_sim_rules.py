"""Each rule of the hardware has an error of its name, and a kernel that breaks it."""

import ast
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

from nki_kernels import sim
from nki_kernels.sim import errors
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.alu import ActivationRangeWarning
from tests.nki_kernels.broken import ALL
from tests.nki_kernels.calls import (
    combine,
    matmul,
    psum,
    reduce,
    run,
    sbuf,
    scale,
    tiles_of_240_kib,
)


@pytest.mark.parametrize(("error", "kernel"), ALL)
def test_a_broken_rule_raises_its_error(error, kernel):
    with pytest.raises(error) as caught:
        kernel()
    assert caught.type is error


def test_every_error_has_a_kernel_that_raises_it():
    named = {v for v in vars(errors).values() if isinstance(v, type)}
    assert named - {errors.NkiValidationError} == {error for error, _ in ALL}


def test_every_raise_of_the_simulator_is_reached_by_a_kernel():
    raised, reached = set(), set()
    for path in Path(sim.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                raised |= {(path.name, node.lineno, node.end_lineno)}
    for _, kernel in ALL:
        with pytest.raises(errors.NkiValidationError) as caught:
            kernel()
        for frame in traceback.extract_tb(caught.value.__traceback__):
            reached |= {(Path(frame.filename).name, frame.lineno)}
    missed = {
        f"{name}:{first}" for name, first, last in raised
        if not any((name, line) in reached for line in range(first, last + 1))
    }  # fmt: skip
    assert len(raised) > 100 and missed == set()


def test_the_same_tiles_pass_where_no_rule_is_broken():
    def body():
        matmul()
        scale(sbuf(128, 1))
        combine("add")
        reduce()
        nisa.tensor_copy(dst=sbuf(32), src=sbuf()[96:128])
        nisa.tensor_copy(dst=sbuf(), src=psum())

    assert run(body).outputs[0] == 0


def test_capacity_counts_what_is_alive_at_once():
    run(lambda: tiles_of_240_kib(together=False))
    with pytest.raises(errors.CapacityError, match="SBUF: .* of 212992 on trn2"):
        run(lambda: tiles_of_240_kib(together=True))

    def banks():
        held = [psum(128, 512) for _ in range(9)]
        for bank in held:
            nisa.tensor_copy(dst=sbuf(128, 512), src=bank)

    with pytest.raises(errors.CapacityError, match="PSUM"):
        run(banks)


@pytest.mark.parametrize("writer", ["memset", "copy"])
def test_accumulating_onto_what_no_matmul_wrote_is_an_error(writer):
    def body():
        tile = psum()
        matmul(dst=tile, accumulate=True)
        if writer == "memset":
            nisa.memset(dst=tile, value=0.0)
        else:
            nisa.tensor_copy(dst=tile, src=sbuf())
        matmul(dst=tile, accumulate=True)

    with pytest.raises(errors.FirstAccumulateError):
        run(body)


def test_generations_differ_in_what_they_have():
    run(lambda: nisa.exponential(dst=sbuf(), src=sbuf()), chip="trn3")
    run(lambda: matmul(dst=psum(dtype=nl.bfloat16, filled=False)), chip="trn3")


def test_scalar_functions_warn_outside_of_their_range():
    with pytest.warns(ActivationRangeWarning, match="sin"):
        run(lambda: nisa.activation(dst=sbuf(), op="sin", data=sbuf(value=4.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lambda: nisa.activation(dst=sbuf(), op="sin", data=sbuf(value=3.0)))


def test_two_cores_that_take_different_steps_are_told():
    def body():
        if nl.program_id(0) == 0:
            nisa.core_barrier(nl.shared_constant(np.zeros((1, 1), np.float32)))
        else:
            raise errors.LaunchError("core 1 stops")

    with pytest.raises(errors.LaunchError):
        run(body, cores=2)


def test_without_numerics_shapes_are_still_checked():
    def kernel(a):
        out = nl.ndarray((128, 8), nl.float32, nl.shared_hbm)
        tile = nl.ndarray((128, 8), nl.float32)
        nisa.dma_copy(dst=tile, src=a)
        nisa.dma_copy(dst=out, src=tile)
        return out

    class Shape:
        dtype = np.float32

        def __init__(self, *shape):
            self.shape = shape

    done = sim.run(sim.jit(kernel), (Shape(128, 8),), numerics=False)
    assert done.outputs == [None] and len(done.traces[0].instructions) == 2
    with pytest.raises(errors.ElementCountError):
        sim.run(sim.jit(kernel), (Shape(128, 9),), numerics=False)
