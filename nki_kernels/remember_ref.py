"""The reference of the pass that commits: the same arguments, in plain NumPy and float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nki_kernels.denoise_stack_ref import denoise_stack_ref
from nki_kernels.plan import Shapes

OF_LAYERS = (1, 2, 3, 6, 7, 8, 9)  # weights, buffers, ages, scales, modulation


def remember_ref(shapes: Shapes, *arguments: np.ndarray):
    """What `remember.body` computes; its docstring gives the arguments.

    Returns:
        what enters the last layer, as x; k_ring, v_ring [L, B, N, cores * W], in their dtype.
    """
    *given, k_ring, v_ring, starts = arguments
    _, k_new, v_new = denoise_stack_ref(shapes, *given)
    x, before = given[0], shapes.layers - 1
    if before:
        for i in OF_LAYERS:
            given[i] = given[i][:, :before] if i == 1 else given[i][:before]
        x, _, _ = denoise_stack_ref(replace(shapes, layers=before), *given)
    rings = []
    for ring, new in ((k_ring, k_new), (v_ring, v_new)):
        ring = np.array(ring)
        for i, start in enumerate(np.ravel(starts)):
            session = i // shapes.places
            ring[:, session, start : start + shapes.tokens] = new[:, session].astype(ring.dtype)
        rings.append(ring)
    return np.asarray(x), *rings
