"""What a timeline shows: figures, a trace for Chrome or Perfetto, a picture of the engines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lsd_jax.files import replacing
from lsd_jax.hw.chips import Chip
from nki_kernels.sim.timeline import LANES, Timeline, schedule
from nki_kernels.sim.trace import NAMES, Trace


def figures(traces: list[Trace], chip: Chip) -> dict[str, Any]:
    """The first core's figures, with the time on either edge of the chip's uncertainty, and that
    of the naive schedule, in which nothing overlaps and nothing is fetched ahead."""
    timeline = schedule(traces, chip)[0]
    fast, slow = (schedule(traces, chip.at(edge))[0].total_ns for edge in ("fast", "slow"))
    return {
        "us": timeline.total_ns / 1e3,
        "us_low": fast / 1e3,
        "us_high": slow / 1e3,
        "us_serial": schedule(traces, chip, "serial")[0].total_ns / 1e3,
        "cycles": round(timeline.total_ns * chip["pe_clock"] / 1e9),
        "pe_busy": timeline.busy("pe"),
        "act_busy": timeline.busy("act"),
        "dve_busy": timeline.busy("dve"),
        "pool_busy": timeline.busy("pool"),
        "dma_busy": timeline.busy("dma"),
        "cc_busy": timeline.busy("cc"),
        "mfu": timeline.mfu,
        "mbu": timeline.mbu,
        "hbm_bytes": timeline.hbm_bytes,
        "table_loads": timeline.table_loads,
        "instructions": timeline.instructions,
        "critical_path_us": {k: v / 1e3 for k, v in timeline.critical_path().items()},
        "operations": dict(Counter(i.op for i in traces[0].instructions).most_common()),
    }


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """Events of chrome://tracing and ui.perfetto.dev, a thread for each lane, microseconds."""
    lanes = {lane: i for i, lane in enumerate(LANES)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": i, "args": {"name": NAMES[lane]}}
        for lane, i in lanes.items()
    ]
    for span in timeline.spans:
        events.append({
            "ph": "X", "name": span.op, "pid": 0, "tid": lanes[span.lane],
            "ts": span.start / 1e3, "dur": (span.end - span.start) / 1e3,
            "args": {"instruction": span.number, "waited for": span.why},
        })  # fmt: skip
    kind = {"kind": "modelled", "chip": timeline.chip.name}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": kind}


def write_chrome_trace(path: str | Path, timeline: Timeline) -> None:
    """Writes `chrome_trace` as JSON, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(chrome_trace(timeline)), encoding="utf-8")


def write_picture(path: str | Path, timeline: Timeline, until_us: float | None = None) -> None:
    """Draws what each engine does over time as a PNG, whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, lane in enumerate(LANES):
        bars = [(s.start / 1e3, (s.end - s.start) / 1e3) for s in timeline.spans if s.lane == lane]
        axes.broken_barh(bars, (row - 0.4, 0.8), facecolors=f"C{row}", linewidth=0)
    labels = [f"{NAMES[lane]} {timeline.busy(lane):.0%}" for lane in LANES]
    axes.set_yticks(range(len(LANES)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, until_us or timeline.total_ns / 1e3)
    axes.set_xlabel(f"microseconds, modelled on {timeline.chip.name}")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
