"""Outcomes to figures: the JSON for machines, and the tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from lsd_jax.evaluate.fidelity import Outcome
from lsd_jax.evaluate.metrics import texture_ratio
from lsd_jax.evaluate.returning import GONE

CHANGED_DB = 30.0
"""An edit changes the picture where the input is no nearer to its truth than this."""

COMPARED = (
    "frames", "bin_ends", "early_db", "late_db", "worst_stream_drop_db", "brightness_ratio",
    "contrast_ratio", "cold",
)  # fmt: skip
"""What is said of long streams at each number of passes."""

TITLES = {
    ("footage", False): "footage edits, trained prompts",
    ("scene", False): "scene edits, trained prompts",
    ("footage", True): "footage edits, held-out prompts",
    ("scene", True): "scene edits, held-out prompts",
    ("pair", True): "pairs of footage edits never trained together",
}


def summary(outcomes: Sequence[Outcome]) -> dict:
    """All figures. PSNR in dB; a mean over edits weighs each alike; accuracies are in [0, 1].

    `psnr_db`, `gain_db` and `drift` speak of trained prompts; `gain_db.mean` of the edits that
    change the picture (identity PSNR below `CHANGED_DB`); `texture` is a ratio, 1 where the output
    is as detailed as the truth.
    """
    trained = [o for o in outcomes if not o.ask.held_out]
    unheard = [o for o in outcomes if o.ask.held_out]
    rows, held_out = by_edit(trained), by_edit(unheard)
    changed = [r["gain"] for r in rows.values() if r["identity"] < CHANGED_DB]

    def accuracy(among: Iterable[Outcome], *groups: str) -> float | None:
        return _mean(o.right for o in among if o.ask.group in groups)

    return {
        "frames": len(outcomes[0].psnr_db),
        "streams": len(outcomes),
        "psnr_db": {
            "mean": _mean(r["psnr"] for r in rows.values()),
            "identity": _mean(r["identity"] for r in rows.values()),
            "by_edit": {name: r["psnr"] for name, r in rows.items()},
            "held_out_prompts": _mean(r["psnr"] for r in held_out.values()),
        },
        "gain_db": {"mean": _mean(changed), "edits": len(changed), "below_identity_db": CHANGED_DB},
        "prompt_accuracy": {
            "footage": accuracy(trained, "footage"),
            "scene": accuracy(trained, "scene"),
            "held_out": accuracy(unheard, "footage", "scene", "pair"),
            "held_out_footage": accuracy(unheard, "footage"),
            "held_out_scene": accuracy(unheard, "scene"),
            "held_out_pairs": accuracy(unheard, "pair"),
        },
        "by_edit": rows,
        "held_out_prompts": held_out,
        "drift": {
            "psnr_db_by_frame": np.mean([o.psnr_db for o in trained], axis=0).tolist(),
        },
    }


def digest(report: dict) -> dict:
    """The headline figures and long curves of a report, to set beside those of another number of
    passes."""
    drift = report["drift"]
    long = {name: drift[name] for name in COMPARED if name in drift}
    if long:
        long["curves"] = {name: drift["curves"][name] for name in ("psnr_db", "worst_psnr_db")}
    trained = list(report["by_edit"].values())
    return {
        "psnr_db": report["psnr_db"]["mean"],
        "prompt_accuracy": {k: report["prompt_accuracy"][k] for k in ("footage", "scene")},
        "texture": _mean(row["texture"] for row in trained),
        "drift": long,
    }


def by_edit(outcomes: Iterable[Outcome]) -> dict[str, dict]:
    """Means over the streams of each edit, and what wrong answers were nearest to instead."""
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.ask.name, []).append(outcome)
    return {name: _row(group) for name, group in grouped.items()}


def _row(outcomes: list[Outcome]) -> dict:
    psnr = float(np.mean([o.psnr_db for o in outcomes]))
    identity = float(np.mean([o.identity_db for o in outcomes]))
    ours, truth = zip(*(o.texture for o in outcomes), strict=True)
    return {
        "group": outcomes[0].ask.group,
        "psnr": psnr,
        "identity": identity,
        "gain": psnr - identity,
        "accuracy": _mean(o.right for o in outcomes),
        "texture": texture_ratio(ours, truth),
        "taken_for": dict(Counter(o.nearest for o in outcomes if not o.right).most_common()),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def tables(report: dict) -> list[Table]:
    """A table for each kind of edit, trained and held-out prompts apart."""
    made = []
    for (group, held_out), title in TITLES.items():
        source = report["held_out_prompts" if held_out else "by_edit"]
        rows = {name: row for name, row in source.items() if row["group"] == group}
        if not rows:
            continue
        table = Table(
            title=f"{title} (dB)", title_justify="left", box=SIMPLE, show_footer=True,
            pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        keys = ("psnr", "identity", "gain", "accuracy", "texture")
        means = [_mean(row[key] for row in rows.values()) for key in keys[:-1]] + [None]
        table.add_column("edit", footer="mean", no_wrap=True, min_width=max(map(len, rows)))
        for key, mean in zip(keys, means, strict=True):
            cell = _cell(key, mean)
            table.add_column(
                key, footer=cell, justify="right", no_wrap=True, min_width=max(len(key), len(cell))
            )
        table.add_column("taken for", no_wrap=True)
        for name, row in rows.items():
            table.add_row(name, *(_cell(key, row[key]) for key in keys), _first(row["taken_for"]))
        made.append(table)
    return made


def _first(taken_for: dict[str, int]) -> str:
    return next(iter(taken_for), "") + (", ..." if len(taken_for) > 1 else "")


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if key in ("accuracy", "texture") else f"{value:.1f}"


def lines(report: dict) -> list[str]:
    """The headline figures, a line each."""
    psnr, gain, accuracy = report["psnr_db"], report["gain_db"], report["prompt_accuracy"]
    frames = report["drift"]["psnr_db_by_frame"]
    said = [
        f"{report['streams']} streams of {report['frames']} frames on held-out worlds",
        f"PSNR {psnr['mean']:.2f} dB (input unchanged: {psnr['identity']:.2f} dB; held-out "
        f"prompts: {psnr['held_out_prompts']:.2f} dB)",
        f"gain {_cell('gain', gain['mean'])} dB over the {gain['edits']} edits that change "
        f"the picture",
        f"prompt accuracy: footage {accuracy['footage']:.2f}, scene {accuracy['scene']:.2f}, "
        f"held-out {accuracy['held_out']:.2f} (footage {accuracy['held_out_footage']:.2f}, scene "
        f"{accuracy['held_out_scene']:.2f}, pairs {accuracy['held_out_pairs']:.2f})",
        f"first frame {frames[0]:.2f} dB, frame {len(frames)} {frames[-1]:.2f} dB",
    ]
    drift = report["drift"]
    if "frames" in drift:
        said.append(
            f"drift over {_ends(drift)}; "
            f"brightness x{drift['brightness_ratio']:.3f}, contrast x{drift['contrast_ratio']:.3f}"
        )
        said.append(_behind_cold(drift["cold"]))
        if drift["identity"]:
            early, late = drift["identity"]["early_db"], drift["identity"]["late_db"]
            said.append(f"edited objects alone: early {early:.2f} dB, late {late:.2f} dB")
    for passes, found in sorted(report.get("by_passes", {}).items()):
        accuracy = found["prompt_accuracy"]
        said.append(
            f"passes a frame {passes}: {found['psnr_db']:.2f} dB, accuracy footage "
            f"{accuracy['footage']:.2f}, scene {accuracy['scene']:.2f}"
        )
        if long := found["drift"]:
            said.append(f"  {_ends(long)}; {_behind_cold(long['cold'])}")
    if "reactions" in report:
        said.append(
            f"frames until within {report['reactions']['within_db']} dB: after another prompt "
            f"{report['prompt_response_frames']}, after "
            f"{report['reactions']['garbage_frames']} frames of garbage "
            f"{report['recovery_frames']}"
        )
    if "memory" in report:
        memory = report["memory"]
        said.append(
            f"edited object back after {GONE} frames, prompt taken back: {memory['with']:.1f} dB "
            f"with the memory, {memory['without']:.1f} without (told all the time "
            f"{memory['told']:.1f}, input {memory['input']:.1f})"
        )
    return said


def _ends(drift: dict) -> str:
    return (
        f"{drift['frames']} frames: early {drift['early_db']:.2f} dB, late "
        f"{drift['late_db']:.2f} dB, worst stream {-drift['worst_stream_drop_db']:+.2f} dB"
    )


def _behind_cold(cold: dict) -> str:
    return (
        f"behind cold streams in the last {cold['frames']} frames: mean "
        f"{cold['behind_db']:+.2f} dB, worst {cold['worst_behind_db']:+.2f} dB"
    )
