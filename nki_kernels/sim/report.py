"""What a timeline shows: figures, a trace for Chrome or Perfetto, a picture of the engines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lsd_jax.files import replacing
from lsd_jax.hw.chips import Chip
from nki_kernels.sim.timeline import LANES, Span, Timeline, schedule
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


def chrome_trace(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Events of chrome://tracing and ui.perfetto.dev, microseconds: a process for each core, in it
    a thread for each compute engine, for collectives and for each of the DMA engines."""
    lanes = {lane: i for i, lane in enumerate(lane for lane in LANES if lane != "dma")}
    chip = timelines[0].chip
    names = [NAMES[lane] for lane in lanes]
    names += [f"{NAMES['dma']} {i}" for i in range(int(chip["dma_engines"]))]
    events: list[dict[str, Any]] = []
    for core, timeline in enumerate(timelines):
        named = {"ph": "M", "pid": core}
        events.append({**named, "name": "process_name", "args": {"name": f"core {core}"}})
        for i, name in enumerate(names):
            events.append({**named, "name": "thread_name", "tid": i, "args": {"name": name}})
        for span in timeline.spans:
            begun = {
                "ph": "X", "name": span.op, "pid": core,
                "args": {"instruction": span.number, "waited for": span.why},
            }  # fmt: skip
            for tid, start, ns in _threads(span, lanes):
                events.append({**begun, "tid": tid, "ts": start / 1e3, "dur": ns / 1e3})
    kind = {"kind": "modelled", "chip": chip.name}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": kind}


def _threads(span: Span, lanes: dict[str, int]) -> Iterator[tuple[int, float, float]]:
    """The threads that show a span, from when and for how long."""
    if span.queued is None:
        yield lanes[span.lane], span.start, span.end - span.start
        return
    for engine, start in zip(span.queued.engines, span.queued.starts, strict=True):
        yield len(lanes) + int(engine), float(start), span.queued.service


def write_chrome_trace(path: str | Path, *timelines: Timeline) -> None:
    """Writes `chrome_trace` of the cores as JSON, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(chrome_trace(timelines)), encoding="utf-8")


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
