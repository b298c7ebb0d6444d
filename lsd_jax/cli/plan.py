"""`lsd plan`: whether a config holds a frame rate on a chip, and where the time goes; modelled."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a .py file or a shipped name, such as lucy_1080p")
    parser.add_argument(
        "--chip", required=True, help="such as v6e, a path ending in .json, or all of them: all"
    )
    parser.add_argument("--chips", type=int, help="that one stream may be shared by; default: 1")
    parser.add_argument("--fps", type=float, default=30.0, help="frames a second to hold")
    parser.add_argument("--price", type=float, help="of a chip for an hour, in any currency")
    parser.add_argument("--plot", metavar="PNG", help="draw the stages as a waterfall")


def run(args: argparse.Namespace) -> None:
    from lsd_jax import config as configs
    from lsd_jax.cli.options import a_rate, at_least
    from lsd_jax.hw import chips
    from lsd_jax.reports import provenance, write_json

    a_rate(args.fps)
    of_one = [f"--{name}" for name in ("chips", "price", "plot") if vars(args)[name] is not None]
    if args.chip == ALL and of_one:
        raise ValueError(f"--chip {ALL} takes no {', '.join(of_one)}: name one chip for that")
    args.chips = 1 if args.chips is None else args.chips
    at_least(args, chips=1)
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise ValueError(f"--price {args.price}: give at least 0, and a finite number")
    config = configs.override(configs.load(args.config), args.set)
    if args.chip == ALL:
        report = {"config": config.name, "fps": args.fps, "chips": smallest(config, args.fps)}
    else:
        chip = chips.load(args.chip)
        if args.plot:
            Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
        report = planned(config, chip, args)
    write_json(args.json, report | provenance())


def planned(config: Any, chip: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Prints the plan for one chip; the report for machines."""
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.hw import capacity

    plan = capacity.fastest(config, chip, args.chips)
    sessions = capacity.sessions_per_chip(config, chip, args.fps)
    changes = capacity.helpful(config, chip, plan)
    hourly = None
    if args.price is not None and capacity.holds(plan, args.fps):
        hourly = args.price / sessions if sessions else args.price * chips_of(plan, chip)
    table = Table(title=f"{config.name} on {chip.name}, one frame of one stream ({plan.kind})")
    for heading in ("stage", "ms", "share", "bound by"):
        table.add_column(heading, justify="right" if heading in ("ms", "share") else "left")
    for stage in plan.stages:
        table.add_row(stage.name, f"{stage.ms:.3f}", f"{stage.ms / plan.ms:.0%}", stage.bound_by)
    table.add_row("all", f"{plan.ms:.3f}", "", f"{1000 / plan.ms:,.0f} frames/s")
    Console().print(table)
    for line in remarks(plan, chip, args.fps):
        print(line)
    print(f"sessions per chip at {args.fps:g} fps: {sessions}")
    if hourly is not None:
        print(f"cost per stream and hour: {hourly:.4f}")
    for change in changes:
        saved = f"{change.ms:.3f} ms, {1 - change.ms / plan.ms:.0%} less"
        anew = " (wants training anew)" if change.anew else ""
        print(f"would help: {change.what}: {saved}{anew}")
    if args.plot:
        draw(args.plot, f"{config.name} on {chip.name}", plan, 1000 / args.fps)
    return {
        "config": config.name, "chip": chip.name, "chips": chips_of(plan, chip),
        "cores": plan.ranks, "fps": args.fps, "kind": plan.kind, "ms_per_frame": plan.ms,
        "ms_to_picture": plan.picture_ms, "fits": capacity.holds(plan, args.fps),
        "stages": [vars(s) for s in plan.stages],
        "bytes_held": plan.held.total, "bytes": vars(plan.held),
        "bytes_room": finite(plan.room_bytes),
        "sessions_per_chip": sessions, "cost_per_stream_hour": hourly,
        "changes": [vars(change) for change in changes], "notes": list(plan.notes),
    }  # fmt: skip


def remarks(plan: Any, chip: Any, fps: float) -> list[str]:
    """What decides whether it holds, in lines: by how much it does not, and who computes."""
    budget = 1000 / fps
    chips = chips_of(plan, chip)
    cores = f" on {plan.ranks} cores of {chips} chip{'s' * (chips > 1)}" if plan.ranks > 1 else ""
    if plan.ms <= budget:
        lines = [f"holds {fps:g} fps{cores}: {plan.ms:.2f} of {budget:.2f} ms"]
    else:
        times = f"{plan.ms:.2f} ms is {plan.ms / budget:.2f} times the {budget:.2f} ms of a frame"
        lines = [f"does not hold {fps:g} fps{cores}: {times}"]
    lines.append(f"a server shows the picture after {plan.picture_ms:.2f} ms, then remembers it")
    kept = f"{plan.held.total / 1e9:.2f} GB held"
    if finite(plan.room_bytes) is None:
        return [*lines, kept, *plan.notes]
    over = plan.held.total - plan.room_bytes
    room = f"{plan.room_bytes / 1e9:.2f} GB"
    if over > 0:
        return [*lines, f"does not fit: {kept}, {over / 1e9:.2f} GB more than {room}", *plan.notes]
    return [*lines, f"{kept} of {room}", *plan.notes]


def smallest(config: Any, fps: float) -> list[dict[str, Any]]:
    """Prints the fewest of each chip known that hold the rate, and why; the same for machines."""
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.hw import capacity, chips

    rows = []
    for chip in map(chips.load, chips.known()):
        found = capacity.chips_needed(config, chip, fps)
        plan = found[1] if found else capacity.fastest(config, chip, capacity.MOST_CHIPS)
        longest = max(plan.stages, key=lambda stage: stage.ms)
        why = f"{longest.name} takes {longest.ms:.1f} ms, bound by {longest.bound_by}"
        if not found and chip.family != "cpu":
            limit = "more cores are no faster"
            if plan.ranks == capacity.share_counts(config, chip, capacity.MOST_CHIPS)[-1]:
                blocks = f"{config.model.key_heads} heads of keys, {config.model.mlp} MLP features"
                limit = f"{blocks} share no more cores than these"
            why = f"{limit}; {why}"
        rows.append({
            "chip": chip.name, "chips": found[0] if found else None, "cores": plan.ranks,
            "ms_per_frame": plan.ms, "bytes_held": plan.held.total, "kind": plan.kind,
            "reason": "; ".join((why, *plan.notes)),
        })  # fmt: skip
    table = Table(title=f"{config.name} at {fps:g} fps: the fewest chips (modelled)")
    for heading in ("chip", "chips", "cores", "ms", "why"):
        table.add_column(heading)
    for row in rows:
        chips_text = str(row["chips"] or "none")
        table.add_row(
            row["chip"], chips_text, str(row["cores"]), f"{row['ms_per_frame']:.1f}", row["reason"]
        )
    Console().print(table)
    return rows


def draw(path: str, title: str, plan: Any, budget_ms: float) -> None:
    """The stages one after the other, as a waterfall."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lsd_jax.files import replacing

    bounds = list(dict.fromkeys(stage.bound_by for stage in plan.stages))
    figure = Figure(figsize=(9, 0.32 * len(plan.stages) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    start = 0.0
    for row, stage in enumerate(plan.stages):
        colour = f"C{bounds.index(stage.bound_by)}"
        axes.barh(row, stage.ms, left=start, color=colour)
        start += stage.ms
    for i, bound in enumerate(bounds):
        axes.barh(0, 0, color=f"C{i}", label=bound)
    axes.axvline(budget_ms, color="black", linewidth=1, linestyle=":", label="the next frame")
    axes.set_yticks(range(len(plan.stages)), [stage.name for stage in plan.stages])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05 * (start if start < 0.3 * budget_ms else max(start, budget_ms)))
    axes.set_xlabel(f"milliseconds, {plan.kind}")
    axes.set_title(title)
    axes.legend(frameon=False, fontsize="small")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def chips_of(plan: Any, chip: Any) -> int:
    """Chips whose cores a plan takes."""
    from lsd_jax.hw.plan import cores_per_chip

    return -(-plan.ranks // cores_per_chip(chip))


def finite(amount: float) -> float | None:
    """None for what nobody knows."""
    return amount if amount < float("inf") else None
