"""A log as one HTML page that needs no other file, and its pictures as PNG."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from lsd_jax.files import replacing
from lsd_jax.hw.micro import plots
from lsd_jax.hw.micro.case import Measurement

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}
</style>
<h1>{title}</h1><p>{about}</p>{pictures}<h2>Cases</h2>
<table><tr><th>case<th>p50 us<th>p99 us<th>max us<th>samples<th>Gop/s<th>GB/s</tr>{rows}</table>
{refused}</html>
"""


def write_report(found: Sequence[Measurement], folder: Path) -> Path:
    """Writes `index.html` and a PNG a picture into `folder`, and gives the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, picture in plots.pictures(found).items():
        with replacing(folder / f"{name}.png") as beside:
            beside.write_bytes(picture)
        data = base64.b64encode(picture).decode()
        pictures.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}">')
    with replacing(folder / "index.html") as beside:
        beside.write_text(page(found, "".join(pictures)), encoding="utf-8")
    return folder / "index.html"


def page(found: Sequence[Measurement], pictures: str = "") -> str:
    """The page's text."""
    first = found[0]
    versions = ", ".join(f"{name} {version}" for name, version in first.versions.items())
    about = f"{first.kind}, with {versions}; commit {first.commit or 'unknown'}."
    if first.kind == "measured":
        about += " Percentiles are of all samples; none is left out."
    rows = "".join(f"<tr>{_cells(m)}</tr>" for m in found if m.samples)
    refused = "".join(
        f"<li>{html.escape(m.name)}: {html.escape(m.refused)}" for m in found if m.refused
    )
    return _PAGE.format(
        title=html.escape(f"Microbenchmarks: {first.chip}"), about=html.escape(about),
        pictures=pictures, rows=rows,
        refused=f"<h2>No figure</h2><ul>{refused}</ul>" if refused else "",
    )  # fmt: skip


def _cells(m: Measurement) -> str:
    times = (f"{1e6 * s:,.2f}" for s in (m.p50, m.p99, m.max))
    rates = (f"{x / m.p50 / 1e9:,.2f}" if x and m.p50 > 0 else "" for x in (m.operations, m.bytes))
    values = (html.escape(m.name), *times, str(len(m.samples)), *rates)
    return "".join(f"<td>{value}" for value in values)
