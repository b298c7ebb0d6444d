"""What a chip carries at a frame rate, what it costs, and what would help: on top of `plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lsd_jax.config import Config, ModelConfig, StreamConfig
from lsd_jax.hw.chips import Chip, cores_of_device
from lsd_jax.hw.plan import FramePlan, cores_per_chip, plan_frame, shareable, shared_by
from lsd_jax.hw.stack import least_macs, streamed_stack

MOST_CHIPS = 64
MOST_SESSIONS = 4096


@dataclass(frozen=True)
class Change:
    """Another setting, and what a frame would take with it."""

    what: str
    ms: float
    anew: bool  # whether it wants training anew


def share_counts(config: Config, chip: Chip, chips: int) -> list[int]:
    """Numbers of cores among which a stream can be shared on so many chips."""
    model, device = config.model, cores_of_device(chip)
    most = 1 if chip.family == "cpu" else chips * cores_per_chip(chip)
    whole = (1, *range(device, min(most, model.key_heads * device) + 1, device))
    return [n for n in dict.fromkeys(whole) if shareable(model.key_heads, model.mlp, chip, n)]


def fastest(config: Config, chip: Chip, chips: int = 1) -> FramePlan:
    """One stream on at most so many chips, shared by as many cores as make it fastest."""
    plans = [
        plan_frame(config, chip, ranks, rough=True) for ranks in share_counts(config, chip, chips)
    ]
    plans = [plan for plan in plans if plan.fits] or plans
    first, *others = sorted(plans, key=lambda plan: plan.ms)
    best = exact(first, config, chip)
    for plan in others:
        if plan.range_ms[0] < best.ms:
            best = min(best, exact(plan, config, chip), key=lambda plan: plan.ms)
    return best


def exact(plan: FramePlan, config: Config, chip: Chip) -> FramePlan:
    """What a rough plan is about."""
    return plan_frame(config, chip, plan.ranks, plan.sessions) if plan.error else plan


def sure(
    config: Config, chip: Chip, limit_ms: float, ranks: int = 1, sessions: int = 1
) -> FramePlan:
    """A plan that is on the right side of a limit, and rough where it is far from it."""
    plan = plan_frame(config, chip, ranks, sessions, rough=True)
    least, most = plan.range_ms
    return exact(plan, config, chip) if least <= limit_ms <= most else plan


def holds(plan: FramePlan, fps: int | float) -> bool:
    """Whether a frame is done before the next one comes, and all of it fits into memory."""
    return plan.fits and plan.ms <= 1000 / fps


def chips_needed(config: Config, chip: Chip, fps: int | float) -> tuple[int, FramePlan] | None:
    """The smallest number of chips that holds one stream, and how; None where no number does."""
    for ranks in share_counts(config, chip, MOST_CHIPS):
        plan = sure(config, chip, 1000 / fps, ranks)
        if holds(plan, fps):
            return -(-ranks // cores_per_chip(chip)), exact(plan, config, chip)
    return None


def sessions_per_chip(config: Config, chip: Chip, fps: int | float) -> int:
    """Streams that one chip holds at this rate, its cores shared in the best way; 0 where it holds
    none."""
    devices, best = cores_per_chip(chip) // cores_of_device(chip), 0
    for ranks in share_counts(config, chip, 1):
        sharing, _ = shared_by(chip, ranks)
        groups = devices // sharing
        better = best // groups + 1  # sessions of each group
        if devices % sharing:
            continue
        in_turn = better * plan_frame(config, chip, ranks, rough=True).ms <= 1000 / fps
        if in_turn or holds(sure(config, chip, 1000 / fps, ranks, better), fps):
            best = max(best, groups * sessions_together(config, chip, ranks, fps))
    return best


def sessions_together(config: Config, chip: Chip, ranks: int, fps: int | float) -> int:
    """The most sessions of so many cores that are done before the next frame, in one step together
    or one after the other."""

    def held(sessions: int) -> bool:
        return holds(sure(config, chip, 1000 / fps, ranks, sessions), fps)

    if not held(1):
        return 0
    alone = plan_frame(config, chip, ranks, rough=True)
    in_turn = [int(1000 / fps // ms) for ms in alone.range_ms]
    if in_turn[0] != in_turn[1]:
        in_turn = [int(1000 / fps // exact(alone, config, chip).ms)]
    room = (alone.room_bytes - alone.held.weights) / alone.held.beside_weights
    room = int(min(room, MOST_SESSIONS))
    low = max(1, min(room, in_turn[0]))  # one step after the other
    high = 2 * low
    while high <= MOST_SESSIONS and held(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if held(middle) else (low, middle)
    return low


def helpful(config: Config, chip: Chip, plan: FramePlan, most: int = 3) -> list[Change]:
    """The changes of a setting that save most of a plan of one stream, each planned anew on as many
    cores; roughly, as is what it is compared with. After the `most` that save most come those that
    leave as much to compute."""
    found, equal, now = [], set(), plan_frame(config, chip, plan.ranks, rough=True)
    for what, changed in variations(config, chip):
        try:
            then = plan_frame(changed, chip, plan.ranks, rough=True)
        except ValueError:
            continue
        ms = then.ms * (plan.ms / now.ms if then.error else 1.0)
        if ms < 0.99 * plan.ms:
            found.append(Change(what, ms, trained_anew(config.model, changed.model)))
            if computed(changed) == computed(config):
                equal.add(what)
    found.sort(key=lambda change: change.ms)
    return found[:most] + [change for change in found[most:] if change.what in equal]


def computed(config: Config) -> tuple[int, StreamConfig]:
    """How many multiply-adds the blocks have in a pass, in which dtypes, and how often."""
    return least_macs(streamed_stack(config)), config.stream


def trained_anew(model: ModelConfig, changed: ModelConfig) -> bool:
    """Whether weights of one are of no use to the other: no weight knows of memory slots or of the
    picture's width."""
    return replace(changed, memory=model.memory, width=model.width) != model


def variations(config: Config, chip: Chip) -> Iterator[tuple[str, Config]]:
    """Settings that are likely to be faster, by name."""
    model, stream = config.model, config.stream

    def streamed(**fields) -> Config:
        return replace(config, stream=replace(stream, **fields))

    def shaped(**fields) -> Config:
        return replace(config, model=replace(model, **fields))

    if stream.passes > 1:
        yield f"passes {stream.passes} to {stream.passes - 1}", streamed(passes=stream.passes - 1)
    if stream.compute_dtype == "float32" and chip.family != "cpu":
        yield "bfloat16 instead of float32", streamed(compute_dtype="bfloat16")
    eight = eight_bits_of(chip)
    if eight and not stream.weight_dtype:
        yield f"weights in {eight}", streamed(weight_dtype=eight)
    if model.window > 1:
        fewer = model.window // 2
        yield f"window {model.window} to {fewer}", shaped(window=fewer)
    if model.memory:
        yield "no memory slots", shaped(memory=0)
    if model.key_heads > 1:
        fewer = max(n for n in range(1, model.key_heads) if model.key_heads % n == 0)
        yield f"kv_heads {model.key_heads} to {fewer}", shaped(kv_heads=fewer)
    unit = int(chip["mxu_width"]) if "mxu_width" in chip.numbers else 128
    for width in sorted({128, unit} - {model.head_dim}):
        kv_heads = max(1, round(model.key_heads * model.head_dim / width))
        heads = kv_heads * model.per_kv
        wide = shaped(heads=heads, kv_heads=kv_heads if model.kv_heads else 0, head_width=width)
        yield f"heads of {width}: {heads} of them", wide
    for name in ("dim", "mlp"):
        size = getattr(model, name)
        if near := nearest(size, unit):
            fields = {name: near, "head_width": model.head_dim}
            yield f"{name} {size} to {near}, whole matrix units", shaped(**fields)
    if model.tokens % 16:
        across = nearest(model.grid[1], 16) or model.grid[1]
        size = across * model.patch
        yield f"width {model.width} to {size}: tokens in whole registers", shaped(width=size)
    if model.height % (2 * model.patch) == 0 and model.width % (2 * model.patch) == 0:
        if not model.memory or all(side % 4 == 0 for side in model.grid):
            yield f"patch {model.patch} to {2 * model.patch}", shaped(patch=2 * model.patch)
    if model.mlp >= 2 * model.dim:
        yield f"mlp {model.mlp} to {model.mlp // 2}", shaped(mlp=model.mlp // 2)


def eight_bits_of(chip: Chip) -> str:
    """The format of eight bits that a chip multiplies faster than bfloat16, or nothing."""
    if chip.family == "tpu":
        return "int8" if chip["ops_int8"] > chip["flops_bf16"] else ""
    if chip.family == "trainium":
        return "float8_e4m3" if chip["pe_flops_fp8"] > chip["pe_flops_bf16"] else ""
    return ""


def nearest(size: int, multiple: int) -> int | None:
    """The multiple nearest to a size, or None where that is one already."""
    return None if size % multiple == 0 else max(multiple, round(size / multiple) * multiple)
