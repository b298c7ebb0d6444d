"""Chooses the tiles of a megakernel: a function of its shape and the chip, by modelled cycles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from lsd_jax.hw.chips import Chip, load
from pallas_kernels.tpu.cost import Total, total
from pallas_kernels.tpu.plan import LANES, Plan, Shape
from pallas_kernels.tpu.schedule import program

XLA_SHARE = 16  # one part in so many of VMEM is left to XLA, which else refuses to compile
SPARE_BYTES = 6 << 20  # of the rest: what the compiler spills, and keeps for itself
LONGEST_CODE = 90_000  # modelled cycles of straight-line code; beyond that compiling takes minutes
NEAR = 1.03  # traffic hides computation, but never all of it: the lightest of the fastest
BLOCKS = (1024, 512, 256, 128, 64, 32, 16, 8)


@dataclass(frozen=True)
class Choice:
    """A plan, and what the model says about it."""

    plan: Plan
    total: Total


@lru_cache(maxsize=64)
def choose(shape: Shape, chip_name: str) -> Choice:
    """The plan of fewest modelled cycles that fits.

    Raises NotImplementedError, with reason and remedy, for a shape that the kernel does not take.
    """
    chip = load(chip_name)
    check(shape)
    room = limit_bytes(chip) - SPARE_BYTES
    fitting = [plan for plan in plans(shape) if plan.vmem_bytes <= room]
    if not fitting:
        least = min(plan.vmem_bytes for plan in plans(shape))
        raise NotImplementedError(
            f"the smallest tiles need {least / 1e6:.1f} MB of VMEM, {chip_name} has "
            f"{room / 1e6:.1f} MB to give; use fewer sessions or a smaller window, or backend xla"
        )
    choices = [Choice(plan, total(program(plan), plan, chip)) for plan in fitting]
    short = [choice for choice in choices if choice.total.code_cycles <= LONGEST_CODE]
    if not short:
        return min(choices, key=lambda choice: choice.total.code_cycles)
    best = min(choice.total.cycles for choice in short)
    near = [choice for choice in short if choice.total.cycles <= NEAR * best]
    return min(near, key=lambda choice: choice.total.compute_cycles)


def limit_bytes(chip: Chip) -> int:
    """VMEM that the compiler may give to the kernel: its plan, and what it spills."""
    return int(chip["vmem_bytes"]) // XLA_SHARE * (XLA_SHARE - 1)


def check(shape: Shape) -> None:
    """Raises NotImplementedError where the kernel's layouts do not hold this shape."""
    if shape.dtype not in ("bfloat16", "float32"):
        raise NotImplementedError(f"{shape.dtype} is not streamed; use bfloat16")
    sublanes = 32 // shape.itemsize
    for name, multiple in (
        ("dim", LANES),
        ("head_dim", LANES),
        ("mlp", LANES),
        ("tokens", sublanes),
        ("ageless", sublanes),
    ):
        size = getattr(shape, name)
        if size % multiple:
            raise NotImplementedError(
                f"{name}={size} is no multiple of {multiple} ({shape.dtype} tiles); use "
                f"{name}={-(-size // multiple) * multiple}, or backend xla"
            )
    if not shape.keys:
        raise NotImplementedError("the buffer has no keys; pin some tokens, or backend xla")


def plans(shape: Shape) -> Iterator[Plan]:
    """All plans worth a look: whole tiles, and equal blocks of rows."""
    groups = [n for n in range(1, shape.heads + 1) if shape.heads % n == 0]
    chunks = [n for n in range(LANES, shape.mlp + 1, LANES) if shape.mlp % n == 0]
    whole = shape.rows if shape.modulations == 1 else shape.tokens
    rows = [n for n in {whole, *BLOCKS} if whole % n == 0 and _fits_sessions(n, shape)]
    queries = [n for n in {shape.tokens, *BLOCKS} if shape.tokens % n == 0]
    sublanes = 32 // shape.itemsize
    plan = Plan(shape, groups[0], chunks[0], shape.tokens, shape.tokens)
    for r in rows:
        for q in queries:
            if max(r, q) <= BLOCKS[0] and r % sublanes == 0 and q % sublanes == 0:
                for group in groups:
                    for chunk in chunks:
                        yield replace(plan, group=group, chunk=chunk, rows=r, queries=q)


def _fits_sessions(rows: int, shape: Shape) -> bool:
    return rows % shape.tokens == 0 or shape.tokens % rows == 0
