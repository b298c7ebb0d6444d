"""Chooses the tiles of a megakernel: a function of its shape and the chip, by modelled cycles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lsd_jax.hw import stack
from lsd_jax.hw.chips import Chip, cores_of_device, load
from pallas_kernels.tpu.cost import Total, total
from pallas_kernels.tpu.plan import LANES, TURNED_QUERIES, Plan, Shape, filling, sublanes, up
from pallas_kernels.tpu.schedule import program

TURNED_LEAST = 4096  # keys: stacks of 2,176 lost a tenth, one of 6,400 gained as much (compiled)
XLA_SHARE = 16  # one part in so many of VMEM is left to XLA, which else refuses to compile
SPARE_BYTES = 6 << 20  # of the rest: what the compiler spills, and keeps for itself
LONGEST_CODE = 90_000  # modelled cycles of straight-line code; beyond that compiling takes minutes
COPIED = 8  # rows of which a copy to HBM moves a multiple
NEAR = 1.08  # of the fastest by the model, whose account of the first tile is rough
LONGER = 1.25  # than the shortest code, at most, where all code is long
TOGETHER = 4096  # shapes whose plans are compared in one go, to bound memory
BLOCKS = (1024, 512, 256, 128, 64, 32, 16, 8)


@dataclass(frozen=True)
class Choice:
    """A plan, and what the model says about it."""

    plan: Plan
    total: Total


def choose(shape: Shape, chip_name: str, chips: int = 1, cores: int = 1) -> Choice:
    """The plan of fewest modelled cycles that fits, on one core of a shipped chip, on one core of
    several chips that share the stack, or on so many cores of one chip; the plan's shape is then
    the share of one.

    Raises NotImplementedError, with reason and remedy, for a shape that the kernel does not take.
    """
    return choose_for(shape, load(chip_name), chips, cores)


@lru_cache(maxsize=64)
def choose_for(shape: Shape, chip: Chip, chips: int = 1, cores: int = 1) -> Choice:
    """`choose` on any chip."""
    shape = stack.share(shape, chips * cores)
    each = f" (on each of {chips} chips)" if chips > 1 else ""
    each = f" (on each of {cores} cores)" if cores > 1 else each
    if refusal := _refusal(shape, chip):
        raise NotImplementedError(refusal + each)
    options = plans(shape, chip, chips, cores)
    costs = total(program(options), options, chip)
    room = limit_bytes(chip) - SPARE_BYTES
    fits = options.vmem_bytes <= room
    if not np.any(fits):
        raise NotImplementedError(
            f"the smallest tiles need {np.min(options.vmem_bytes) / 1e6:.1f} MB of VMEM, "
            f"{chip.name} has {room / 1e6:.1f} MB to give; use fewer sessions or a smaller window, "
            "or backend xla"
        )
    (best,) = preferred(costs, fits, np.zeros(1, int))
    tiles = (x[best].item() for x in tiles_of(options))
    plan = Plan(shape, *tiles, chips=chips, filled=options.filled, cores=cores)
    return Choice(plan, total(program(plan), plan, chip))


def fastest(shape: Shape, chip: Chip, chips: int = 1) -> Choice:
    """The better one of `choose_for` on one core of the chip and on all that are one device; on
    several chips on one core of each.

    Raises NotImplementedError where one core is refused.
    """
    alone = choose_for(shape, chip, chips)
    if chips > 1 or (cores := cores_of_device(chip)) == 1:
        return alone
    try:
        shared = choose_for(shape, chip, 1, cores)
    except NotImplementedError:
        return alone
    return min(shared, alone, key=lambda choice: choice.total.cycles)


def choose_cycles(shapes: list[Shape], chip: Chip, chips: int = 1, cores: int = 1) -> np.ndarray:
    """Cycles of the plan that `choose` takes for each of these shapes, of the same dtypes and one
    row of modulation a layer; infinity where it refuses."""
    cycles = np.full(len(shapes), np.inf)
    taken = {}
    for i, whole in enumerate(shapes):
        try:
            shape = stack.share(whole, chips * cores)
        except NotImplementedError:
            continue
        if _refusal(shape, chip) is None:
            taken[i] = plans(shape, chip, chips, cores)
    for first in range(0, len(taken), TOGETHER):
        numbers = list(taken)[first : first + TOGETHER]
        options = [taken[i] for i in numbers]
        counts = [len(option.group) for option in options]
        starts = np.cumsum([0, *counts[:-1]])
        sizes: dict[str, Any] = {
            name: np.repeat([getattr(option.shape, name) for option in options], counts)
            for name in Shape.__dataclass_fields__
            if "dtype" not in name
        }
        dtypes = {name: getattr(shapes[numbers[0]], name) for name in ("dtype", "weight_dtype")}
        tiles: Any = (np.concatenate(each) for each in zip(*map(tiles_of, options), strict=True))
        filled: Any = np.repeat([option.filled for option in options], counts)
        sharers = {"chips": chips, "cores": cores}
        many: Any = Plan(Shape(**sizes, **dtypes), *tiles, filled=filled, **sharers)
        costs = total(program(many), many, chip)
        fits = many.vmem_bytes <= limit_bytes(chip) - SPARE_BYTES
        best = preferred(costs, fits, starts)
        cycles[numbers] = np.where(fits[best], costs.cycles[best], np.inf)
    return cycles


def preferred(costs: Total, fits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The number of the best plan of each run of plans, which begin at `starts`.

    Of those that fit and whose code is soon compiled it is one of the fastest: traffic hides
    computation, but never all of it, so the lightest of those near the best. Where all code is
    long it is the fastest of those with about the shortest.
    """
    runs = np.repeat(np.arange(len(starts)), np.diff([*starts, len(fits)]))
    short = fits & (costs.code_cycles <= LONGEST_CODE)
    fast = np.where(short, costs.cycles, np.inf)
    near = short & (fast <= NEAR * np.minimum.reduceat(fast, starts)[runs])
    some = np.logical_or.reduceat(short, starts)[runs]
    rank = np.where(near, costs.compute_cycles, np.inf)
    code = np.where(fits, costs.code_cycles, np.inf)
    about = code <= LONGER * np.minimum.reduceat(code, starts)[runs]
    rank = np.where(some, rank, np.where(about & fits, costs.cycles, np.inf))
    order = np.lexsort((rank, runs))
    return order[starts]


def limit_bytes(chip: Chip) -> int:
    """VMEM that the compiler may give to the kernel: its plan, and what it spills."""
    return int(chip["vmem_bytes"]) // XLA_SHARE * (XLA_SHARE - 1)


def _refusal(shape: Shape, chip: Chip) -> str | None:
    """Why the kernel's layouts do not hold this shape, if they do not."""
    if shape.dtype not in ("bfloat16", "float32"):
        return f"{shape.dtype} is not streamed; use bfloat16"
    if shape.weight_dtype not in ("", "int8"):
        return f"weights in {shape.weight_dtype} are not streamed; use int8, or backend xla"
    if shape.weight_dtype and not chip["ops_int8"]:
        return f"{chip.name} has no matrix unit for int8; leave the weights in {shape.dtype}"
    wanted = {"dim": LANES, "head_dim": LANES, "mlp": LANES, "tokens": COPIED}
    for name, multiple in wanted.items():
        if (size := getattr(shape, name)) % multiple:
            return (
                f"{name}={size} is no multiple of {multiple}; use {name}={up(size, multiple)}, or "
                "backend xla"
            )
    return None if shape.keys else "the buffer has no keys; pin some tokens, or backend xla"


def plans(shape: Shape, chip: Chip, chips: int = 1, cores: int = 1) -> Any:
    """All plans worth a look, whole tiles and equal blocks of rows: one `Plan` of arrays."""
    groups = [n for n in range(1, shape.heads + 1) if shape.heads % n == 0]
    chunks = [n for n in range(LANES, shape.mlp + 1, LANES) if shape.mlp % n == 0]
    filled = filling(shape, chips)
    session = shape.tokens + filled
    everything = shape.sessions * session
    whole, owned = everything if shape.modulations == 1 else session, everything // chips
    blocks = {whole, owned, session, *BLOCKS}
    takes = [n for n in blocks if n <= BLOCKS[0] and n % sublanes(shape) == 0]
    rows = [
        n
        for n in takes
        if whole % n == 0 and _divides(n, session) and (chips == 1 or _divides(n, owned))
    ]
    queries = [n for n in takes if session % n == 0]
    options = np.meshgrid(groups, chunks, rows, queries, indexing="ij")
    tiles: Any = [x.ravel() for x in options]
    tiles += [(tiles[-1] == TURNED_QUERIES) & can_turn(shape, chip)]
    return Plan(shape, *tiles, chips=chips, filled=filled, cores=cores)


def can_turn(shape: Shape, chip: Chip) -> bool:
    """Whether attention gains from queries along the lanes: heads leave half of a matrix unit
    empty, all keys are whole registers, and there are many of them."""
    narrow = 2 * shape.head_dim <= chip["mxu_width"]
    many = shape.keys + shape.tokens >= TURNED_LEAST
    return bool(narrow and many and shape.tokens % LANES == 0 and shape.ageless % LANES == 0)


def tiles_of(plan: Plan) -> tuple[Any, ...]:
    """What is chosen of a plan."""
    return plan.group, plan.chunk, plan.rows, plan.queries, plan.turned


def _divides(a: int, b: int) -> bool:
    return a % b == 0 or b % a == 0
