"""The engine of `lsd bench micro` for Trainium: small kernels, timed on the timeline."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

import numpy as np

from lsd_jax.hw.chips import Chip
from lsd_jax.hw.micro.case import Case
from lsd_jax.hw.micro.suites import chosen
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl
from nki_kernels.sim.errors import NkiValidationError
from nki_kernels.sim.run import jit, run
from nki_kernels.sim.timeline import schedule

SUITES = ("matmul", "elementwise", "memory", "on_chip", "load")
COLUMNS = 2048
"""Of a tile in SBUF, by which arrays without a shape of their own are cut."""
_DTYPES = {"f32": nl.float32, "bf16": nl.bfloat16, "f8": nl.float8_e4m3}
_OPS = {"exp": nl.exp, "rsqrt": nl.rsqrt, "tanh": "tanh", "gelu": nl.gelu_apprx_tanh, "sin": "sin"}
_ONE, _HALF = 1.0, 0.5


def cases(names: str | None, quick: bool) -> list[Case]:
    """Those of the suites named. Raises ValueError for one that is not modelled."""
    return chosen(names, quick, SUITES)


def versions() -> dict[str, str]:
    """Of what models."""
    return {"simulator": importlib.metadata.version("lsd-jax")}


def engine(chip: Chip) -> Callable[[Case], dict]:
    """`engine(case)` gives the modelled seconds on one core, from HBM to HBM; it raises
    NotImplementedError for what has no kernel here or does not fit."""

    def modelled(case: Case) -> dict[str, Any]:
        kernel, args = kernel_of(case)
        try:
            done = run(jit(kernel), args, chip, numerics=False)
        except NkiValidationError as error:
            raise NotImplementedError(str(error)) from error
        seconds = schedule(done.traces, chip)[0].total_ns * 1e-9
        return {"samples": (seconds,), "fastest": seconds}

    return modelled


def kernel_of(case: Case) -> tuple[Callable, tuple]:
    """A case's kernel and its abstract arguments. Raises NotImplementedError where there is
    none."""
    if case.dtype not in _DTYPES:
        raise NotImplementedError(f"the engines compute no {case.dtype}; use bf16 or f8")
    dtype = _DTYPES[case.dtype]
    if case.op == "matmul":
        m, k, n = (case.shapes[letter] for letter in "mkn")
        return matmul(m, k, n, dtype), (abstract(k, m, dtype=dtype), abstract(k, n, dtype=dtype))
    if case.op == "load":
        size, flight = case.shapes["bytes"], case.shapes["flight"]
        shape = int(case.bytes) // size, 128, size // (128 * dtype.itemsize)
        return load(*shape, flight, dtype), (abstract(*shape, dtype=dtype),)
    if case.op == "touch":
        columns = case.shapes["bytes"] // (128 * dtype.itemsize)
        return touch(columns, case.shapes["turns"], dtype), (abstract(128, 1, dtype=dtype),)
    count = case.shapes["n"] if "n" in case.shapes else case.shapes["bytes"] // dtype.itemsize
    if count % 128:
        raise NotImplementedError(f"{count} elements do not fill 128 partitions")
    whole = abstract(128, count // 128, dtype=dtype)
    if case.op == "copy":
        return over_tiles(lambda tile: tile, dtype), (whole,)
    if case.op not in ("add", "multiply_add", *_OPS):
        raise NotImplementedError(f"no kernel here does {case.op}")
    return over_tiles(lambda tile: _computed(case.op, tile, dtype), dtype), (whole,)


def _computed(op: str, tile, dtype):
    result = nl.ndarray(tile.shape, dtype)
    if op in _OPS:
        nisa.activation(dst=result, op=_OPS[op], data=tile)
    elif op == "add":
        nisa.tensor_scalar(dst=result, data=tile, op0=nl.add, operand0=_ONE)
    else:
        nisa.tensor_scalar(
            dst=result, data=tile, op0=nl.multiply, operand0=_HALF, op1=nl.add, operand1=_HALF
        )
    return result


def over_tiles(compute: Callable, dtype) -> Callable:
    """A kernel that takes an array `[128, n]` through SBUF in tiles, each loaded, computed and
    stored."""

    def kernel(x):
        out = nl.ndarray(x.shape, dtype, nl.shared_hbm)
        for start in range(0, x.shape[1], COLUMNS):
            columns = slice(start, min(start + COLUMNS, x.shape[1]))
            tile = nl.ndarray((128, columns.stop - start), dtype)
            nisa.dma_copy(dst=tile, src=x[:, columns])
            nisa.dma_copy(dst=out[:, columns], src=compute(tile))
        return out

    return kernel


def load(pieces: int, partitions: int, columns: int, flight: int, dtype) -> Callable:
    """A kernel that takes pieces into SBUF, `flight` of them under way at once, and gives the last
    one."""

    def kernel(x):
        out = nl.ndarray(x.shape[1:], dtype, nl.shared_hbm)
        slots = [nl.ndarray((partitions, columns), dtype) for _ in range(flight)]
        for i in range(pieces):
            nisa.dma_copy(dst=slots[i % flight], src=x[i])
        nisa.dma_copy(dst=out, src=slots[(pieces - 1) % flight])
        return out

    return kernel


def touch(columns: int, turns: int, dtype) -> Callable:
    """A kernel that fills a tile in SBUF and copies it onto itself, by the vector engine, `turns`
    times; of HBM it takes no more than the store of a column needs."""

    def kernel(x):
        out = nl.ndarray(x.shape, dtype, nl.shared_hbm)
        tile = nl.ndarray((128, columns), dtype)
        nisa.memset(dst=tile, value=_ONE, engine=nisa.engine.vector)
        for _ in range(turns):
            nisa.tensor_copy(dst=tile, src=tile, engine=nisa.engine.vector)
        nisa.dma_copy(dst=out, src=tile[:, 0:1])
        return out

    return kernel


def matmul(m: int, k: int, n: int, dtype) -> Callable:
    """A kernel `[M, K] x [K, N]`, the left operand given as `[K, M]`; the result is float32."""

    def tiles(size: int, step: int) -> list[slice]:
        return [slice(i, min(i + step, size)) for i in range(0, size, step)]

    def kernel(left, right):
        out = nl.ndarray((m, n), nl.float32, nl.shared_hbm)
        depth = tiles(k, 128)
        loaded = []
        for rows in depth:
            pair = [nl.ndarray((rows.stop - rows.start, width), dtype) for width in (m, n)]
            nisa.dma_copy(dst=pair[0], src=left[rows])
            nisa.dma_copy(dst=pair[1], src=right[rows])
            loaded.append(pair)
        banks = [nl.ndarray((128, 512), nl.float32, nl.psum) for _ in range(8)]
        turn = 0
        for rows in tiles(m, 128):
            for columns in tiles(n, 512):
                height, width = rows.stop - rows.start, columns.stop - columns.start
                bank = banks[turn % len(banks)][0:height, 0:width]
                for i, (stationary, moving) in enumerate(loaded):
                    nisa.nc_matmul(
                        dst=bank, stationary=stationary[:, rows], moving=moving[:, columns],
                        accumulate=i > 0,
                    )  # fmt: skip
                result = nl.ndarray((height, width), nl.float32)
                where = nisa.engine.vector if turn % 2 else nisa.engine.scalar
                nisa.tensor_copy(dst=result, src=bank, engine=where)
                nisa.dma_copy(dst=out[rows, columns], src=result)
                turn += 1
        return out

    return kernel


def abstract(*shape: int, dtype) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))
