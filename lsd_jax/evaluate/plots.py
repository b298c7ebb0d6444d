"""Pictures of an evaluation: a bar per edit, PSNR over time, and what the streams looked like."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lsd_jax.evaluate.fidelity import Outcome
from lsd_jax.evaluate.held_out import Ask
from lsd_jax.files import replacing

COLUMNS = 8  # of the contact sheet


def save_plots(
    report: dict,
    outcomes: Sequence[Outcome],
    visits: dict[str, np.ndarray],
    directory: Path,
) -> list[Path]:
    """Writes `edits.png`, `drift.png` and `contact.png` (and `contact_held_out.png`), and
    `memory.png` of the pictures from `returning.measure`, if there are any."""
    directory.mkdir(parents=True, exist_ok=True)
    first: dict[Ask, Outcome] = {}
    for outcome in outcomes:
        first.setdefault(outcome.ask, outcome)
    drawn = {"edits.png": _edits(report), "drift.png": _drift(report)}
    for name, held_out in (("contact.png", False), ("contact_held_out.png", True)):
        drawn[name] = _contact([o for ask, o in first.items() if ask.held_out == held_out])
    if visits:
        drawn["memory.png"] = _memory(visits)
    for name, figure in drawn.items():
        _save(figure, directory / name)
    return [directory / name for name in drawn]


def save_memory(visits: dict[str, np.ndarray], path: Path) -> None:
    """Writes the pictures from `returning.measure` alone."""
    _save(_memory(visits), path)


def _save(figure, path: Path) -> None:
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=100)


def _figure(width: float, height: float, layout: str | None = "constrained"):
    """A figure without a screen or global state; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def _edits(report: dict):
    """PSNR of the model beside that of the input unchanged, per edit."""
    figure = _figure(12.0, 9.0)
    parts = (("by_edit", "trained prompts"), ("held_out_prompts", "held-out prompts"))
    for axes, (key, title) in zip(figure.subplots(2, 1), parts, strict=True):
        rows = report[key]
        at = np.arange(len(rows))
        for shift, value, colour, label in (
            (-0.2, "identity", "0.75", "input unchanged"),
            (0.2, "psnr", "tab:blue", "model"),
        ):
            axes.bar(at + shift, [r[value] for r in rows.values()], 0.4, color=colour, label=label)
        names = [
            name.replace("_from_", "\nfrom ") + f"\n{row['accuracy']:.2f}"
            for name, row in rows.items()
        ]
        axes.set_xticks(at, names, rotation=90, fontsize=8)
        axes.margins(x=0.01)
        axes.set_ylabel("PSNR / dB")
        axes.set_title(f"{title} (below each edit: prompt accuracy)", fontsize=10, loc="left")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
    return figure


def _drift(report: dict):
    """PSNR by frame of the short streams; the reactions; and the curves of a long run."""
    drift, panels = report["drift"], []
    by_frame = drift["psnr_db_by_frame"]
    panels.append(("all edits, from a cold start", "PSNR / dB", {"mean": by_frame}, None))
    if "reactions" in report:
        curves = {
            name.removesuffix("_psnr_db").replace("prompt", "another prompt"): curve
            for name, curve in report["reactions"].items()
            if name.endswith("_psnr_db")
        }
        panels.append(("after a disturbance", "PSNR / dB", curves, None))
    if "frames" in drift:
        curves, ends = drift["curves"], drift["bin_ends"]
        both = {"mean": curves["psnr_db"], "worst stream": curves["worst_psnr_db"]}
        panels.append((f"{drift['streams']} long streams", "PSNR / dB", both, ends))
        ratios = {name: curves[name] for name in ("brightness", "contrast", "texture")}
        panels.append(("output over truth", "ratio", ratios, ends))
        panels.append(("likeness", "SSIM", {"mean": curves["ssim"]}, ends))
        panels.append(("grain and structure", "distance / dB", {"mean": curves["features"]}, ends))
        if "by_passes" in report:
            panels.append(("passes a frame", "PSNR / dB", _of_passes(report["by_passes"]), ends))
    rows = -(-len(panels) // 2)
    figure = _figure(10.0, 3.2 * rows)
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, unit, curves, ends) in zip(grid.flat, panels, strict=False):
        for name, values in curves.items():
            axes.plot(ends or range(1, len(values) + 1), values, marker=".", label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("frame")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=8, frameon=False)
    return figure


def _of_passes(found: dict[str, dict]) -> dict[str, list[float]]:
    """The long curves at each number of passes: the mean of the streams, and the worst of them."""
    curves = {}
    for passes, digest in sorted(found.items()):
        curves[f"{passes}, mean"] = digest["drift"]["curves"]["psnr_db"]
        curves[f"{passes}, worst stream"] = digest["drift"]["curves"]["worst_psnr_db"]
    return curves


def _contact(outcomes: Sequence[Outcome]):
    """Bands of `COLUMNS` streams: input, output and truth of the last frame under the prompt."""
    bands = -(-len(outcomes) // COLUMNS)
    height = 5.7 * bands
    figure = _figure(1.5 * COLUMNS, height, layout=None)  # by hand: many axes take seconds
    figure.subplots_adjust(0.003, 0.1 / height, 0.997, 1 - 0.5 / height, wspace=0.05, hspace=0.33)
    grid = figure.subplots(3 * bands, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, outcome in enumerate(outcomes):
        band, column = divmod(i, COLUMNS)
        for row, name in enumerate(("input", "output", "truth")):
            axes = grid[3 * band + row, column]
            axes.imshow(outcome.last[row], interpolation="nearest")
            title = f"{name}, {outcome.psnr_db[-1]:.1f} dB" if row == 1 else name
            if row == 0:
                title = "\n".join(textwrap.wrap(outcome.prompt, 22)[:3])
            axes.set_title(title, fontsize=8, color="black" if outcome.right else "tab:red")
    return figure


def _memory(visits: dict[str, np.ndarray]):
    """A stream of each kind of edit: what it was given, should show and showed over time."""
    names = ("input", "truth", "told", "with", "without")
    titles = ("input", "truth", "prompt kept", "with memory", "without memory")
    edits = visits["truth"].shape[0]
    figure = _figure(9.0, 4.0 * edits)
    figure.suptitle("the prompt is taken back when the object goes away", fontsize=10)
    for i, axes in enumerate(figure.subplots(edits * len(names), 1, squeeze=False).flat):
        edit, row = divmod(i, len(names))
        axes.imshow(np.concatenate(list(visits[names[row]][edit]), axis=1))
        axes.set_axis_off()
        axes.set_title(titles[row], fontsize=7, loc="left", pad=2)
    return figure
