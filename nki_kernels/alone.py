"""One pass of the megakernel alone, on what a seed makes: to be profiled, and to check a chip.

`lsd export` writes a folder that says which kernel, in `manifest.json`. On an instance

    python -m nki_kernels.alone megakernel

compiles it, runs it (NKI takes NumPy arrays without any framework) and says how far its results are
from the NumPy reference. `--simulate` does the same anywhere, slowly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from nki_kernels import _compat, sim
from nki_kernels.denoise_stack import make_kernel
from nki_kernels.denoise_stack_ref import denoise_stack_ref
from nki_kernels.pack import rotation
from nki_kernels.plan import KINDS, LANE, Shapes

MODULE = "megakernel"
FRAME_STEP = "frame step"
"""What a folder's manifest says that its profile is of."""


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """The `manifest.json` of a folder that `lsd export` wrote, None where there is none. Raises
    ValueError for one that says nothing about a module."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("module") not in (MODULE, FRAME_STEP):
        raise ValueError(f"{path} is none of `lsd export`'s, or an older one's: export anew")
    if found["module"] == MODULE:
        missing = {"chip", "config", "shapes"} - found.keys()
        if missing or set(found["shapes"]) != set(Shapes.__dataclass_fields__):
            raise ValueError(f"{path} is damaged, or of another version: export anew")
    return found


def arguments(shapes: Shapes, seed: int = 0) -> list[np.ndarray]:
    """What `denoise_stack.body` takes on all cores that act as one: weights of 1 / sqrt(inputs), a
    ring that has wrapped around with one slot cold, no modulation but open gates."""
    s, rng = shapes, np.random.default_rng(seed)
    dtype = np.dtype(ml_dtypes.bfloat16 if s.itemsize == 2 else np.float32)
    across, width = s.dim // LANE, s.cores * s.width

    def normals(*shape: int, scale: float = 1.0, dtype: Any = dtype) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32) * np.float32(scale)).astype(dtype)

    blocks = (s.cores, s.layers, s.first_block["end"], LANE, s.block)
    weights = normals(*blocks, dtype=np.float32)
    ends = [*s.first_block.values()]
    for kind, start, end in zip(KINDS, ends, ends[1:], strict=False):
        cores = s.cores if kind in ("out", "down") else 1  # that have a part of the inputs
        weights[:, :, start:end] *= (cores * s.depth[kind] * LANE) ** -0.5
    weights = weights.astype(s.weight_dtype or dtype)
    rows = (s.layers, s.sessions, s.keys, width)
    bias = np.zeros((s.sessions, LANE, max(len(s.buffer_pieces), 1)), np.float32)
    onehot = np.zeros((s.sessions, s.ages, max(s.slots, 1), LANE), dtype)
    for slot in range(s.slots):
        onehot[:, min((slot + 1) % s.slots + 1, s.ages - 1), slot] = 1
    for j, piece in enumerate(s.buffer_pieces):
        bias[:, :, j] = -1e9 * (piece.slot == s.slots - 1 and s.slots > 1)
    scales = np.ones((s.layers, LANE, s.scales), np.float32)
    scales[..., 2] = 0
    modulation = np.zeros((s.layers, 1, LANE, 6, across), np.float32)
    modulation[:, :, :, [1, 4]] = 1
    modulation[:, :, :, [2, 5]] = (2 * s.layers) ** -0.5
    turns = np.outer(np.arange(LANE) % (s.head // 2) / LANE, np.arange(s.tokens))
    return [
        normals(s.sessions, LANE, across, s.tokens, dtype=np.float32), weights, normals(*rows),
        normals(*rows), bias, onehot, normals(s.layers, s.ages, width, scale=0.1),
        normals(s.layers, s.ages, width, scale=0.1), scales, modulation,
        np.stack([np.cos(turns), np.sin(turns)]).astype(dtype), rotation().astype(dtype),
    ]  # fmt: skip


def run(shapes: Shapes, given: list[np.ndarray], simulate: bool = False) -> tuple:
    """The results of the kernel. Raises NotImplementedError where it is to run on a chip and there
    is no real `nki`."""
    if not simulate:
        _compat.require_real()
    kernel = make_kernel(shapes)[shapes.cores]
    return sim.run(kernel, given).outputs[0] if simulate else kernel(*given)


def differences(
    shapes: Shapes, given: list[np.ndarray], found: tuple
) -> Iterator[tuple[str, float, float]]:
    """Of each result its name, largest and relative root-mean-square difference from the
    reference."""
    wanted = denoise_stack_ref(shapes, *given)
    for name, ours, theirs in zip(("x", "k", "v"), found, wanted, strict=True):
        off = np.asarray(ours).astype(np.float64) - theirs
        relative = np.sqrt(np.mean(off**2) / np.mean(theirs.astype(np.float64) ** 2))
        yield name, float(np.abs(off).max()), float(relative)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="with the manifest.json of a megakernel")
    parser.add_argument("--simulate", action="store_true", help="on our simulator, in NumPy")
    args = parser.parse_args(argv)
    try:
        manifest = manifest_of(args.folder)
        if manifest is None or manifest["module"] != MODULE:
            raise ValueError(f"{args.folder}: want the folder `{MODULE}` of an `lsd export`")
        shapes = Shapes(**manifest["shapes"])
        given = arguments(shapes)
        found = run(shapes, given, args.simulate)
        for name, most, relative in differences(shapes, given, found):
            print(f"{name}: off by at most {most:.2g}, {relative:.2g} relative to its size")
    except (NotImplementedError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
