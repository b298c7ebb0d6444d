"""The rules of the house: what may import what, how long a file may be, what no file may name."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("lsd_jax", "pallas_kernels", "nki_kernels", "configs", "tests", "benchmarks")
FILES = sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
LONGEST = 500

# Package to the modules it must never import, and to the only ones of ours that it may.
FORBIDDEN = {
    "lsd_jax.runtime": (
        *("lsd_jax.train", "lsd_jax.serve", "lsd_jax.live", "lsd_jax.model"),
        *("aiohttp", "aiortc", "jax"),
    ),
    "lsd_jax.serve": ("lsd_jax.train", "lsd_jax.model", "lsd_jax.stream", "lsd_jax.live"),
    "lsd_jax.live": ("lsd_jax.train", "lsd_jax.serve", "aiohttp", "aiortc"),
    "lsd_jax.ops": ("pallas_kernels", "nki_kernels"),
}
ALLOWED = {
    kernels: (kernels, "lsd_jax.ops", "lsd_jax.types", "lsd_jax.hw", "lsd_jax.files")
    for kernels in ("pallas_kernels", "nki_kernels")
}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, anywhere in it, or names as `lsd_jax.module:function`
    for others to import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"lsd_jax(\.\w+)*:\w+", node.value):
                found.add(node.value.replace(":", "."))
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_a_module_named_by_a_string_counts_as_imported(tmp_path):
    path = tmp_path / "bench.py"
    path.write_text('case = "lsd_jax.cli.bench_cases:frame"')
    assert violations("pallas_kernels.bench", imports(path))


def violations(name: str, imported: set[str]) -> list[str]:
    found = []
    for other in sorted(imported):
        if within(other, "lsd_jax.cli") and not name.startswith(("lsd_jax.cli", "tests")):
            found.append(f"{name} imports {other}: nothing imports cli")
        for package, names in FORBIDDEN.items():
            if within(name, package) and any(within(other, n) for n in names):
                found.append(f"{name} imports {other}")
        for package, names in ALLOWED.items():
            ours = other.startswith(("lsd_jax", "pallas_kernels", "nki_kernels"))
            if within(name, package) and ours and not any(within(other, n) for n in names):
                found.append(f"{name} imports {other}")
    return found


def test_import_rules_hold():
    assert [v for path in FILES for v in violations(module(path), imports(path))] == []


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("lsd_jax.stream", "lsd_jax.cli.main"),
        ("lsd_jax.runtime.session", "lsd_jax.train.loop"),
        ("lsd_jax.serve.app", "lsd_jax.model"),
        ("lsd_jax.ops.dispatch", "pallas_kernels.tpu"),
        ("pallas_kernels.tpu.kernel", "lsd_jax.model"),
    ],
)
def test_import_rules_can_be_broken(name, imported):
    assert violations(name, {imported})


def test_files_are_short():
    lengths = {module(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_modules_open_with_a_sentence():
    silent = [module(p) for p in FILES if p.read_text().strip() and p.name != "conftest.py"]
    silent = [n for n in silent if not ast.get_docstring(ast.parse(path_of(n).read_text()))]
    assert silent == []


def path_of(name: str) -> Path:
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def test_no_file_names_a_machine_or_a_registry():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    named = re.compile(r"/(?:work|home|root)/[a-z]|https?://[^ ]*/simple\b")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file() or b"\0" in path.read_bytes():
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{name}: {match[0]}" for match in named.finditer(text)]
    assert found == []


def test_the_readme_names_every_file():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1]
    ours = [f for f in FILES if f.parts[len(ROOT.parts)] not in ("tests", "configs")]
    missing = [f.name for f in ours if f.stem not in tree and f.stem != "__init__"]
    assert not missing
