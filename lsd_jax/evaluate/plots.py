"""Pictures of an evaluation: a bar per edit, PSNR over time, and what the streams looked like."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lsd_jax.evaluate.fidelity import Outcome
from lsd_jax.evaluate.held_out import Ask

COLUMNS = 8  # of the contact sheet


def save_plots(report: dict, outcomes: Sequence[Outcome], directory: Path) -> list[Path]:
    """Writes `edits.png`, `drift.png` and `contact.png` (and `contact_held_out.png`)."""
    directory.mkdir(parents=True, exist_ok=True)
    first: dict[Ask, Outcome] = {}
    for outcome in outcomes:
        first.setdefault(outcome.ask, outcome)
    drawn = {"edits.png": _edits(report), "drift.png": _drift(report["drift"])}
    for name, held_out in (("contact.png", False), ("contact_held_out.png", True)):
        drawn[name] = _contact([o for ask, o in first.items() if ask.held_out == held_out])
    for name, figure in drawn.items():
        figure.savefig(directory / name, dpi=100)
    return [directory / name for name in drawn]


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


def _drift(drift: dict):
    """PSNR by frame of the short streams, and by bin of the long run if there was one."""
    long = drift.get("long")
    figure = _figure(10.0, 4.0)
    axes = np.atleast_1d(figure.subplots(1, 2 if long else 1))
    by_frame = drift["psnr_db_by_frame"]
    axes[0].plot(range(1, len(by_frame) + 1), by_frame, marker=".")
    axes[0].set_title("all edits, from a cold start", fontsize=10)
    if long:
        ends, db = long["bin_ends"], long["psnr_db_by_bin"]
        axes[1].plot(ends, db, marker=".")
        slope = long["slope_db_per_1000_frames"]
        title = f"{long['streams']} long streams, {slope:+.2f} dB per 1000 frames"
        axes[1].set_title(title, fontsize=10)
    for one in axes:
        one.set_xlabel("frame")
        one.set_ylabel("PSNR / dB")
        one.grid(alpha=0.3)
    return figure


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
