"""Reports for machines."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

from lsd_jax import __version__
from lsd_jax.files import replacing


def write_json(path: str | None, report: dict | list) -> None:
    """Writes a report, whole or not at all; does nothing where no path was given."""
    if path is None:
        return
    with replacing(path) as beside:
        beside.write_text(json.dumps(report, indent=2) + "\n")


def provenance() -> dict:
    """Versions of what computes the figures, and the commit of the source where it is known."""
    packages = ("jax", "jaxlib", "flax", "numpy", "av")
    versions = {p: importlib.metadata.version(p) for p in packages}
    return {"versions": {"lsd-jax": __version__, **versions}, "commit": commit()}


def commit() -> str | None:
    """The source's commit, with `+` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        rev = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True
        )
        if rev.returncode:
            return None
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True
        )
        return rev.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except FileNotFoundError:  # no git on this machine
        return None
