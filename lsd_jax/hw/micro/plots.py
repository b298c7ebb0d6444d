"""Pictures of a log by the fastest run of each case: a roofline, products, rates over size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure

from lsd_jax.hw.micro.case import Measurement


def pictures(found: Sequence[Measurement]) -> dict[str, bytes]:
    """PNGs by name, of what the log holds."""
    timed = [m for m in found if m.fastest]
    drawn: dict[str, Callable[[list[Measurement]], Figure | None]] = {
        "roofline": roofline, "products": products, "memory": over_size, "attention": attention,
    }  # fmt: skip
    figures = {name: draw(timed) for name, draw in drawn.items()}
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def roofline(found: list[Measurement]) -> Figure | None:
    """Operations a second over operations a byte, under the best rates of the log itself."""
    looped = [m for m in found if m.method == "loop" and m.suite not in ("on_chip", "remote")]
    dots = [m for m in looped if m.operations and m.bytes]
    if not dots:
        return None
    peak = max(m.operations / m.seconds for m in dots)
    bandwidth = max(m.bytes / m.seconds for m in looped)
    figure, axes = _axes(found, "Roofline", "operations a byte", "operations a second")
    for suite in sorted({m.suite for m in dots}):
        some = [m for m in dots if m.suite == suite]
        x = [m.operations / m.bytes for m in some]
        axes.plot(x, [m.operations / m.seconds for m in some], "o", ms=4, alpha=0.7, label=suite)
    x = np.geomspace(min(m.operations / m.bytes for m in dots) / 2, 4 * peak / bandwidth, 50)
    axes.plot(x, np.minimum(peak, bandwidth * x), "k-", lw=1, label="best seen")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure


def products(found: list[Measurement]) -> Figure | None:
    """Rates of float32 products: rows down, inner times outer width across."""
    some = [m for m in found if m.op == "matmul" and m.dtype == "f32"]
    often = Counter((m.shapes["k"], m.shapes["n"]) for m in some)
    some = [m for m in some if often[m.shapes["k"], m.shapes["n"]] > 1] or some
    rows = sorted({m.shapes["m"] for m in some})
    columns = sorted({(m.shapes["k"], m.shapes["n"]) for m in some}, key=lambda kn: kn[0] * kn[1])
    if not some:
        return None
    rates = np.full((len(rows), len(columns)), np.nan)
    for m in some:
        at = rows.index(m.shapes["m"]), columns.index((m.shapes["k"], m.shapes["n"]))
        rates[at] = m.operations / m.seconds / 1e9
    figure, axes = _axes(found, "Products, Gop/s", "K x N", "M", (10.0, 5.0))
    image = axes.imshow(rates, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), [f"{k}x{n}" for k, n in columns], rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), [str(m) for m in rows], fontsize=7)
    figure.colorbar(image)
    return figure


def over_size(found: list[Measurement]) -> Figure | None:
    """Bytes a second over the size of an array: a fall is the end of a memory."""
    suites = ("memory", "on_chip", "load", "transfer", "collective", "remote")
    lines: dict[tuple[str, int, int], list[Measurement]] = {}
    for m in found:
        if m.suite in suites:
            at_once = m.shapes.get("arrays", m.shapes.get("flight", 1))
            lines.setdefault((m.op, at_once, m.shapes.get("ring", 1)), []).append(m)
    if not lines:
        return None
    figure, axes = _axes(found, "Copies", "bytes of an array or piece", "bytes a second")
    for (op, at_once, ring), of in sorted(lines.items()):
        label = op + f", {at_once} at once" * (at_once > 1) + f", {ring} devices" * (ring > 1)
        of.sort(key=lambda m: m.shapes["bytes"])
        axes.plot(
            [m.shapes["bytes"] for m in of], [m.bytes / m.seconds for m in of], ".-", label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return figure


def attention(found: list[Measurement]) -> Figure | None:
    """Microseconds of attention over the keys it sees, a line a number of tokens and shape of
    heads."""
    some = [m for m in found if m.op == "attention" and m.dtype == "f32"]
    if not some:
        return None
    figure, axes = _axes(found, "Attention", "keys", "us")
    for key in sorted({(m.shapes["t"], m.shapes["h"], m.shapes["d"]) for m in some}):
        of = [m for m in some if (m.shapes["t"], m.shapes["h"], m.shapes["d"]) == key]
        of.sort(key=lambda m: m.shapes["s"])
        keys = [m.shapes["t"] * (m.shapes["s"] + 1) for m in of]
        label = "{} tokens, {} heads of {}".format(*key)
        axes.plot(keys, [1e6 * m.seconds for m in of], ".-", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.legend(fontsize=7)
    return figure


def _axes(found, title: str, x: str, y: str, size: tuple[float, float] = (8.0, 5.0)):
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    by = ", fastest runs" if found[0].kind == "measured" else ""
    axes.set_title(f"{title}: {found[0].chip} ({found[0].kind}{by})")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
