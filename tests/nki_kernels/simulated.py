"""Arrays, and kernels of one instruction or a few that take them through tiles in SBUF."""

import ml_dtypes
import numpy as np

from nki_kernels import sim
from nki_kernels.sim import isa as nisa
from nki_kernels.sim import language as nl

rng = np.random.default_rng(0)
A = rng.standard_normal((128, 96)).astype(np.float32)
B = rng.standard_normal((128, 96)).astype(np.float32)
COLUMN = rng.standard_normal((128, 1)).astype(np.float32)
BF16 = ml_dtypes.bfloat16


def through(body, *arrays, shape=(128, 96), dtype=nl.float32, chip="trn2", psum=()):
    """`body(dst, *tiles)` over tiles in SBUF that hold the arrays; what `dst` holds then."""

    def kernel(*tensors):
        out = nl.ndarray(shape, dtype, nl.shared_hbm)
        tiles = [load(t) for t in tensors]
        dst = nl.ndarray(shape, dtype, nl.psum if psum else nl.sbuf)
        body(dst, *tiles)
        if psum:
            copy = nl.ndarray(shape, dtype)
            nisa.tensor_copy(dst=copy, src=dst)
            dst = copy
        nisa.dma_copy(dst=out, src=dst)
        return out

    return sim.run(sim.jit(kernel), arrays, chip).outputs[0]


def load(tensor):
    tile = nl.ndarray(tensor.shape, tensor.dtype)
    nisa.dma_copy(dst=tile, src=tensor)
    return tile


def close(a, b, tolerance=1e-6):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=tolerance, atol=tolerance)
