"""Compiles for a TPU where there is none, and reads the real compiler's static model.

`libtpu` (the extra `tpu`) holds the compiler of every TPU. Each compilation runs in a process of
its own with a time limit, since the compiler's profiler may abort, and its outcome is cached by
what was compiled, for which chip, by which versions. Cycles are of the kind `compiled`: the
compiler's own simulation of the code that it made. It knows issue slots, latencies and loops, but
lets copies share HBM without a price, so a time is at least `bytes / bandwidth`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lsd_jax.files import replacing
from lsd_jax.hw.chips import Chip

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
"""The smallest of each chip that every libtpu knows; one device of it is compiled for, or some."""

LARGER = {"v5e": "v5e:2x4", "v6e": "v6e:2x4", "v5p": "v5p:2x2x2", "tpu7x": "tpu7x:2x2x2"}
SMALL = 4  # devices of any of `TOPOLOGIES`
LARGE = 8
"""Devices of any of `LARGER`."""

LIMIT_S = 900
_ROOT = Path(__file__).parent.parent
_LOGGED = re.compile(r"^[A-Z]\d{4} [\d:.]+ +\d+ ")  # severity, date, time and process
_ABORTED = (-signal.SIGABRT, -signal.SIGSEGV)  # how the profiler stops: a failed check, or a fault


@dataclass(frozen=True)
class Compiled:
    """What the compiler says about one executable. A figure that it does not give is None."""

    cycles: int | None  # of all operations, one after the other; None where its profiler stops
    launches: int  # of operations that compute or copy: those of a loop in each of its turns
    kernels: int  # of them, Pallas kernels
    operations: dict[str, int | None]  # their cycles by name, each once; below 30 left out
    described: dict[str, str]  # what each of them is, makes and belongs to
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    code_bytes: int
    libtpu: str
    no_profile: str | None = None  # why its profiler stopped, where it did
    temp_bytes: int = 0  # of HBM, for what lies there between two operations
    hbm_bytes: int = 0  # that its operations read and write there, see `aot_worker.hbm_bytes`
    vmem_bytes: int | None = None  # of the Pallas kernel that needs most of them, spills and all


def compile_for(
    chip: str,
    case: str,
    options: dict,
    limit_s: int = LIMIT_S,
    free: dict[str, list[bool]] | None = None,
    profile: bool = True,
    chips: int = 1,
) -> Compiled:
    """Compiles the case `package.module:function` with its options, or looks up how that went.

    `function(**options)` gives a function to compile and its abstract arguments, and the numbers of
    those donated. The compiler chooses how all of its arguments and outputs lie in HBM, as for
    weights that are placed once; with `free`, only those for which the lists under `arguments` and
    `outputs` say so, and the rest lies as JAX puts it. Without `profile` there are no cycles, in a
    fraction of the time and memory. For several `chips` it is compiled under a mesh of them along
    the axis `tensor`, and the case says how its arguments lie there.

    Raises ValueError, with the remedy, where libtpu is absent, the chip unknown to it, the case
    does not fit, or the limit is passed.
    """
    if chip not in TOPOLOGIES:
        raise ValueError(f"libtpu compiles for {', '.join(TOPOLOGIES)}, not for {chip!r}")
    if chips > LARGE:
        raise ValueError(f"compiled for up to {LARGE} devices, not for {chips}")
    topology = (TOPOLOGIES if chips <= SMALL else LARGER)[chip]
    wanted = {"topology": topology, "case": case, "options": options}
    wanted |= {"free": free, "profile": profile, "chips": chips}
    cache = _cache_folder() / f"{_key(wanted)}.json"
    if not cache.is_file():
        found = _compile(wanted, limit_s)
        with replacing(cache) as beside:
            beside.write_text(json.dumps(found))
    return Compiled(**json.loads(cache.read_text()))


def libtpu_version() -> str:
    """Of the libtpu installed. Raises ValueError where there is none."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            "compiling for TPU needs libtpu (Linux, x86-64): pip install -e '.[tpu]'"
        ) from None


def _compile(wanted: dict, limit_s: int) -> dict:
    found, status, reason = _run(wanted, limit_s, wanted["profile"])
    no_profile = None
    if found is None and status in _ABORTED:  # it cannot simulate some code of its own compiler
        no_profile = reason
        found, status, reason = _run(wanted, limit_s, profile=False)
    if found is None:
        raise ValueError(f"compiling {wanted['case']} for {wanted['topology']} died: {reason}")
    if "error" in found:
        raise ValueError(f"{wanted['case']} for {wanted['topology']}: {found['error']}")
    return found | {"libtpu": libtpu_version(), "no_profile": no_profile}


def _run(wanted: dict, limit_s: int, profile: bool) -> tuple[dict | None, int, str]:
    """What the worker found, or None; its exit status; and why it died, if it did."""
    with tempfile.TemporaryDirectory(prefix="lsd-aot-") as folder:
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": (
                f"--xla_jf_dump_static_llo_profile_to={folder}" if profile else ""
            ),
            "XLA_FLAGS": "",
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "pallas_kernels.aot_worker", json.dumps(wanted), str(out)]
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"compiling {wanted['case']} for {wanted['topology']} took more than {limit_s} s"
            ) from None
        found = json.loads(out.read_text()) if out.is_file() else None
    return found, done.returncode, _reason(done.returncode, done.stderr)


def _reason(status: int, stderr: str) -> str:
    """How a process ended, and the line of its last words that says why."""
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    if status == -signal.SIGKILL:
        return f"{how}, most likely for want of memory: give it more, or a smaller case"
    said = [line for line in stderr.splitlines() if re.match(r"\w.*(failed|Error)", line)]
    return f"{how}, {_LOGGED.sub('', said[0])[:300]}" if said else how


def _key(wanted: dict) -> str:
    versions = [libtpu_version(), *(importlib.metadata.version(p) for p in ("jax", "jaxlib"))]
    text = json.dumps([wanted, versions, _sources(_ROOT), platform.machine()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _sources(root: Path) -> str:
    """A hash of all that may change what is compiled: code, and the numbers of chips."""
    found = hashlib.sha256()
    for package in ("pallas_kernels", "lsd_jax"):
        for path in sorted((root / package).rglob("*")):
            inside = path.relative_to(root)
            if path.suffix in (".py", ".json") and inside.parts[:2] != ("lsd_jax", "train"):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found.update(f"{inside.as_posix()} {content}\n".encode())
    return found.hexdigest()


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "lsd-jax" / "aot"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def time_us(cycles: int, hbm_bytes: int, chip: Chip) -> float:
    """Microseconds of a computation: its cycles, or its bytes, whichever takes longer."""
    return 1e6 * max(cycles / chip["clock"], hbm_bytes / chip["hbm_bandwidth"])
