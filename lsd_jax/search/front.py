"""The architectures that no other beats in both time and expected error, as config files."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsd_jax.config import SECTIONS, Config, ModelConfig
from lsd_jax.files import replacing
from lsd_jax.hw.capacity import eight_bits_of, exact
from lsd_jax.hw.chips import Chip, cores_of_device
from lsd_jax.hw.plan import FramePlan, plan_frame
from lsd_jax.search import fast
from lsd_jax.search.law import Law, supported
from lsd_jax.search.space import MOST_HEADS, Candidates, enumerate_all, histories

SHOWN = 12  # points of a front, spread evenly over the logarithm of time


@dataclass(frozen=True)
class Found:
    """A point of the front: its config, its plan by the planner proper, what the law expects."""

    config: Config
    plan: FramePlan
    predicted_loss: float
    params: int
    over: float  # bytes by which all sessions do not fit, counted as `capacity` does; else below 0


class Rival(NamedTuple):
    """A point that may be of the front, by the fast path: the candidate `i` of a few."""

    few: Candidates
    i: int
    ranks: int
    ms: float
    loss: float


@dataclass(frozen=True)
class Searched:
    """What a search saw, and what it found."""

    candidates: int
    within: int  # of the rate, the memory and the parameters asked for
    ms: np.ndarray  # of those within, by the fast path
    losses: np.ndarray
    front: list[Found]


def search(
    base: Config,
    chip: Chip,
    law: Law,
    fps: float,
    sessions: int = 1,
    params_max: float = 0.0,
    cores: int = 1,
    keep: Collection[str] = (),
) -> Searched:
    """Searches all architectures with the pictures of `base`, every history that may be worth its
    time, the precision of `base`, weights in int8 where the chip multiplies those, and the numbers
    of cores that share a stream.

    Args:
        fps: frames a second that each of `sessions` streams on these cores needs.
        params_max: the most parameters; 0: any number.
        cores: the most that may share a stream: so many, half of them, and so on.
        keep: which of the fields `space.SEARCHED` are not searched: they stay as `base` has them.

    Raises ValueError, by how much, where not even the fastest holds the rate.
    """
    budget = 1000 / fps / sessions
    options = law.history.contenders(histories(base, keep))
    groups = {(h.sinks, h.memory): [o for o in options if o[1:] == h[1:]] for h in options}
    count, least, lacking, ms, losses = 0, np.inf, np.inf, [], []
    rivals: list[Rival] = []
    sizes: list[int] = []  # parameters of whatever the law knows
    for some in groups.values():  # one after another: there may be millions
        space = enumerate_all(base, keep, some)
        sound = supported(space)
        sizes += [int(space.parameters[sound].min())] if sound.any() else []
        sound &= space.parameters <= (params_max or np.inf)
        expected = law.predict(space, space.passes)
        for choice, ranks in product(precisions(base, chip, keep), ranks_of(chip, cores)):
            each = replace(space, base=choice)
            taken = fast.frame_ms(each, chip, ranks) if len(each) else np.zeros(0)
            over = fast.held_bytes(each, sessions) - fast.room(chip, ranks)
            known = sound & np.isfinite(taken)
            lacking = over[known].min(initial=lacking)
            allowed = known & (over <= 0)
            count += len(taken)
            least = taken[allowed].min(initial=least)
            within = np.flatnonzero(allowed & (taken <= budget))
            best = within[pareto(taken[within], expected[within])]
            ms.append(taken[within])
            losses.append(expected[within])
            few = each.where(best)
            points = zip(taken[best].tolist(), expected[best].tolist(), strict=True)
            rivals += [Rival(few, i, ranks, *point) for i, point in enumerate(points)]
    if not count:
        kept = f", {', '.join(sorted(keep))} as given" if keep else ""
        raise ValueError(
            f"nothing of the space has {base.model.width}x{base.model.height} in whole patches "
            f"(and in pairs of them, for memory slots){kept}"
        )
    if not sizes:
        raise ValueError("the law knows no such proportions of width and depth; keep one of them")
    if lacking == np.inf:
        raise ValueError(
            f"nothing of at most {params_max:,.0f} parameters fits; the smallest of all has "
            f"{min(sizes):,}"
        )
    places = f"a core of {chip.name}" if cores == 1 else f"{cores} cores of {chip.name}"
    front, tried = holding(rivals, chip, law, budget, sessions)
    if tried:
        lacking = min(point.over for point in tried)
        least = min((point.plan.ms for point in tried if point.over <= 0), default=np.inf)
    if lacking > 0:
        raise ValueError(
            f"nothing fits on {places}: {sessions} sessions of whatever needs least want "
            f"{lacking / 1e9:.2f} GB more than there are"
        )
    if not front:
        raise ValueError(
            f"nothing holds {fps:g} fps for {sessions} sessions on {places}: the "
            f"fastest takes {least:.2f} ms, {least / budget:.2f} times the {budget:.2f} ms of each"
        )
    return Searched(count, sum(map(len, ms)), np.concatenate(ms), np.concatenate(losses), front)


def holding(
    rivals: list[Rival], chip: Chip, law: Law, budget: float, sessions: int
) -> tuple[list[Found], list[Found]]:
    """The front of those that hold by the planner proper, too: the fast path is a little off, and
    knows nothing of the room for arithmetic. Where none does, all that were tried."""
    fast_figures = np.array([(rival.ms, rival.loss) for rival in rivals])
    left, tried = np.arange(len(rivals)), {}
    while len(left):
        chosen = left[spread(*fast_figures[left].T)].tolist()
        tried |= {n: planned(rivals[n], chip, law, sessions) for n in chosen if n not in tried}
        short = [n for n in chosen if tried[n].over > 0 or tried[n].plan.ms > budget]
        if not short:
            found = [tried[n] for n in chosen]
            return [found[i] for i in pareto(*figures(found))], []
        left = np.setdiff1d(left, short)
    return [], list(tried.values())


def ranks_of(chip: Chip, cores: int) -> list[int]:
    """Numbers of cores that may share a stream: so many, half of them and so on."""
    if chip.family == "cpu":
        return [1]
    halved = (cores >> times for times in range(cores.bit_length()))
    whole = (ranks for ranks in halved if ranks % cores_of_device(chip) == 0)
    return sorted({1, *(ranks for ranks in whole if ranks <= MOST_HEADS)})


def precisions(base: Config, chip: Chip, keep: Collection[str] = ()) -> list[Config]:
    """The base as it is and, on a TPU with matrix units for int8, with such weights."""
    kept = base.stream.weight_dtype or "stream.weight_dtype" in keep
    if eight_bits_of(chip) != "int8" or kept:
        return [base]
    return [base, replace(base, stream=replace(base.stream, weight_dtype="int8"))]


def figures(found: list[Found]) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds and expected errors."""
    ms = np.array([point.plan.ms for point in found])
    return ms, np.array([point.predicted_loss for point in found])


def pareto(ms: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The numbers of the points that no other beats in both, fastest first."""
    order = np.lexsort((losses, ms))
    best = np.minimum.accumulate(losses[order])
    first = np.concatenate([[True], losses[order][1:] < best[:-1]]) if len(order) else order
    return order[np.asarray(first, bool)]


def spread(ms: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """`SHOWN` points of the front, evenly over the logarithm of time; its last always."""
    front = pareto(ms, losses)
    at = np.log(ms[front])
    wanted = np.linspace(at[0], at[-1], SHOWN)
    return front[np.unique([np.abs(at - w).argmin() for w in wanted])]


def planned(rival: Rival, chip: Chip, law: Law, sessions: int = 1) -> Found:
    """A candidate by the planner proper; roughly where so many sessions do not fit, since an exact
    plan of a Trainium takes seconds."""
    few, i = rival.few, rival.i
    model = few.model(i)
    config = few.config(i, name_of(model, chip, few.base.stream.weight_dtype))
    loss = float(law.predict(model, int(few.passes[i])))
    plan = plan_frame(config, chip, rival.ranks, rough=True)
    over = plan.held.weights + sessions * plan.held.beside_weights - plan.room_bytes
    plan = plan if over > 0 else exact(plan, config, chip)
    return Found(config, plan, loss, int(few.parameters[i]), over)


def name_of(model: ModelConfig, chip: Chip, weight_dtype: str = "") -> str:
    """Such as `v6e-512x6-h4x128-m2048-p16-w3-s0-r2`: chip, width and depth, heads, MLP and patch,
    slots of window, sinks and memory, and the dtype of weights where it is another."""
    heads = f"{model.heads}by{model.key_heads}" if model.kv_heads else f"{model.heads}"
    sizes = f"{model.dim}x{model.layers}-h{heads}x{model.head_dim}-m{model.mlp}"
    slots = f"w{model.window}-s{model.sinks}-r{model.memory}"
    name = f"{chip.name}-{sizes}-p{model.patch}-{slots}"
    return f"{name}-{weight_dtype}" if weight_dtype else name


def source(config: Config, docstring: str) -> str:
    """A config as a Python file that `lsd train` and `lsd plan` take."""
    sections = []
    for name in SECTIONS:
        section = getattr(config, name)
        default = type(section)()
        fields = "".join(
            f"\n        {field}={literal(value)},"
            for field, value in vars(section).items()
            if value != getattr(default, field)
        )
        if fields:
            sections.append(f"    {name}={type(section).__name__}({fields}\n    ),\n")
    kinds = sorted({part.split("=")[1].split("(")[0] for part in sections} | {"Config"})
    said = docstring.replace("\\", r"\\").replace('"""', r"\"\"\"")
    return (
        f'"""{said}"""\n\nfrom lsd_jax.config import {", ".join(kinds)}\n\n'
        f"config = Config(\n    name={literal(config.name)},\n{''.join(sections)})\n"
    )


def literal(value: Any) -> str:
    """A field's value as Python, strings in double quotes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def write(config: Config, folder: Path, docstring: str) -> Path:
    """Writes a config file and gives its path."""
    path = folder / f"{config.name}.py"
    with replacing(path) as beside:
        beside.write_text(source(config, docstring), encoding="utf-8")
    return path
