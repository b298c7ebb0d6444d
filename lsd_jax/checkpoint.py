"""Checkpoints: Orbax writes the arrays, a digest of every file says whether they are still good.

Orbax 0.12 restores flipped bits without a word, and casts a wrong dtype silently; so each save
writes `digests.json` last, and nothing is restored before every file has been checked. One layout
serves training and shipping:

    500/  or  tiny/         written as `.500.partial/`, then renamed
        arrays/             Orbax (OCDBT: a dozen files, however many leaves)
        config.json         the `Config` it was trained with
        extra.json          what else a training run must remember, if anything
        digests.json        size and SHA-256 of each file above, and a digest of itself

Trees are pytrees of non-empty arrays; saved on one mesh, they restore on any other, by the
shardings of the abstract tree. Orbax is imported on first use, for it takes a quarter second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from lsd_jax import digests
from lsd_jax.config import Config, ModelConfig, differences, from_dict
from lsd_jax.digests import CheckpointError, read_verified, verify

_ARRAYS, _CONFIG, _EXTRA = "arrays", "config.json", "extra.json"


class Checkpoints:
    """A directory of training steps, written in the background; the newest `keep` stay.

    One run writes to it, any may read. Only whole steps count: a save that was killed leaves a
    `.partial` directory, which the next save sweeps away.
    """

    def __init__(self, directory: Path | str, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        self.directory, self.keep = Path(directory).resolve(), keep
        self._damaged: set[int] = set()  # found by restore; the first to be pruned
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.wait()

    def save(self, step: int, tree, config: Config, extra: dict | None = None) -> None:
        """Copy `tree` off the devices and write it as `step`, in the background.

        The arrays may be donated as soon as this returns. `extra` is any JSON. A step of that
        number is replaced. Raises CheckpointError where this save fails at once; that the one
        before it failed is only logged, for there may be room again.
        """
        try:
            self.wait()
        except CheckpointError as error:
            logging.error("%s", error)
        for leftover in self.directory.glob(".*.partial"):
            _tidy(self.directory / leftover.name[1 : -len(".partial")])
        path = self.directory / str(step)
        with _saving(path):
            orbax = _begin(path, tree, config, extra)
        self._pending = self._thread.submit(self._finish, orbax, path, step)

    def _finish(self, orbax, path: Path, step: int) -> None:
        with _saving(path):
            _commit(orbax, path)
        if jax.process_index() == 0:
            self._damaged.discard(step)
            whole = set(self.steps()) - self._damaged
            older = sorted(set(self._directories()) - {step}, key=lambda s: (s in whole, s))
            for stale in older[: max(0, len(older) + 1 - self.keep)]:
                shutil.rmtree(self.directory / str(stale), ignore_errors=True)

    def wait(self) -> None:
        """Return once the last save is whole on disk; raise CheckpointError where it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        finally:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoint is whole")

    def steps(self) -> list[int]:
        """The steps that are whole, oldest first; whether they are undamaged, `restore` tells."""
        return [
            s for s in self._directories() if (self.directory / str(s) / digests.FILE).is_file()
        ]

    def restore(self, abstract_tree, step: int | None = None) -> tuple[Any, int, dict]:
        """The newest good step (or `step`) as `(tree, step, extra)`, shaped like `abstract_tree`.

        Leaves of `abstract_tree` have `shape`, `dtype` and, to be placed anywhere but on the first
        device, `sharding`. A damaged step is logged and the one before it used, unless `step` asks
        for it. Raises CheckpointError where none is good or where leaves differ.
        """
        self.wait()
        if step is None:
            step, _ = self._newest(verify)
        else:
            verify(self.directory / str(step))
        path = self.directory / str(step)
        extra = read_verified(path, _EXTRA) if (path / _EXTRA).exists() else {}
        return _read(path, abstract_tree), step, extra

    def config(self) -> Config:
        """The config of the newest step where it is undamaged; CheckpointError if there is none."""
        self.wait()
        return self._newest(_config)[1]

    def _directories(self) -> list[int]:
        found = self.directory.iterdir() if self.directory.is_dir() else ()
        return sorted(int(p.name) for p in found if re.fullmatch(r"0|[1-9][0-9]*", p.name))

    def _newest(self, check: Callable[[Path], Any]) -> tuple[int, Any]:
        problems = []
        for step in reversed(self._directories()):
            try:
                return step, check(self.directory / str(step))
            except CheckpointError as error:
                logging.warning("step %d is damaged, trying the one before: %s", step, error)
                self._damaged.add(step)
                problems.append(str(error))
        reason = f"no good one is left: {problems[0]}" if problems else "none has been saved here"
        raise CheckpointError(f"{self.directory}: no checkpoint, {reason}")


def save_weights(path: Path | str, tree, config: Config) -> None:
    """Write `tree`, dtypes as they are, as one self-contained directory, replacing `path`.

    Orbax is the one way here too: a dozen files, compressed, restored on any mesh. Raises
    CheckpointError, with `path` as it was, where it cannot be written or holds something else.
    """
    path = Path(path).resolve()  # through a link: to the disk that it names
    digests.check_place(path)
    with _saving(path):
        _commit(_begin(path, tree, config, None), path)


def load_weights(
    path: Path | str, abstract_tree=None, config: ModelConfig | None = None
) -> tuple[Any, Config]:
    """Verify and read what `save_weights` wrote, or one step of `Checkpoints`.

    Without an `abstract_tree` the arrays come on the first device, in nested dicts and lists.
    Raises CheckpointError where a file is damaged, where `config` is given and differs (naming the
    fields), and where a leaf differs in shape or dtype.
    """
    path = Path(path)
    verify(path)
    found = _config(path)
    if config is not None and (fields := differences(config, found.model)):
        raise CheckpointError(f"{path}: another architecture (asked != found): {', '.join(fields)}")
    return _read(path, abstract_tree), found


def load_config(path: Path | str) -> Config:
    """The config of what `load_weights` reads; CheckpointError where it is damaged or absent."""
    return _config(Path(path))


def _checkpointer():
    import orbax.checkpoint as ocp

    _quieten()
    return ocp.StandardCheckpointer()


@functools.cache
def _quieten() -> None:
    """Keep back the tracebacks of a failed write from Orbax's threads: the error is raised too."""
    getLogger("absl").addFilter(lambda r: r.levelno < ERROR or "/orbax/" not in r.pathname)
    getLogger("asyncio").addFilter(lambda r: "/orbax/" not in r.getMessage())
    shown = sys.unraisablehook

    def unraisable(arguments) -> None:
        if "Event loop is closed" not in str(arguments.exc_value):
            shown(arguments)

    sys.unraisablehook = unraisable


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


@contextlib.contextmanager
def _saving(path: Path):
    """Turn whatever goes wrong into one line, and leave nothing half-written."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(_beside(path, "partial"), ignore_errors=True)
        reason = (str(error) or repr(error)).split("\n")[0]
        if "No space left" in reason:
            reason = "no space left on the disk"
        elif system := re.search(r"([^:]+) \[os_error_code", reason):  # behind Orbax's long story
            reason = system[1].strip()
        raise CheckpointError(f"{path}: not saved, earlier ones intact: {reason}") from None


def _begin(path: Path, tree, config: Config, extra: dict | None):
    """Write all but the arrays into `.partial`, start Orbax on those, and return it at work."""
    files = {_CONFIG: dataclasses.asdict(config)} | ({_EXTRA: extra} if extra else {})
    for name, leaf in _leaves(tree).items():
        if getattr(leaf, "size", 0) == 0:
            raise ValueError(f"leaf {name} is {type(leaf).__name__}; save non-empty arrays only")
    partial = _beside(path, "partial")
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path)
        # Ask first: Orbax meets a full disk in its own threads, with a traceback from each.
        need, free = sum(x.nbytes for x in jax.tree.leaves(tree)), shutil.disk_usage(path.parent)[2]
        if need > free:
            raise OSError(f"{need / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free on the disk")
        partial.mkdir()
        for name, value in files.items():
            (partial / name).write_text(json.dumps(value, indent=2) + "\n")
    orbax = _checkpointer()
    orbax.save(partial / _ARRAYS, tree)
    return orbax


def _commit(orbax, path: Path) -> None:
    """Wait for Orbax, digest every file, then move the directory to where it counts."""
    orbax.close()
    if jax.process_index() != 0:
        return
    partial = _beside(path, "partial")
    note = partial / _ARRAYS / "commit_success.txt"  # where Orbax notes the saving machine's path
    if note.exists():
        note.write_text("committed\n")
    digests.seal(partial)
    if path.exists():
        path.rename(_beside(path, "replaced"))
    partial.rename(path)
    digests.flush(path.parent)  # before an older one goes
    _tidy(path)


def _tidy(path: Path) -> None:
    """Remove what an interrupted save of `path` left; put back what it was about to replace."""
    if _beside(path, "replaced").exists() and not path.exists():
        _beside(path, "replaced").rename(path)
    for kind in ("replaced", "partial"):
        if _beside(path, kind).exists():
            shutil.rmtree(_beside(path, kind))


def _config(path: Path) -> Config:
    values = read_verified(path, _CONFIG)
    try:
        return from_dict(values)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / _CONFIG}: not of this version: {error}") from None


def _read(path: Path, abstract_tree) -> Any:
    arrays = path.absolute() / _ARRAYS
    with _checkpointer() as orbax:
        saved = orbax.metadata(arrays).item_metadata.tree
        target = saved if abstract_tree is None else abstract_tree
        _match(path, _leaves(target), _leaves(saved))
        return orbax.restore(arrays, jax.tree.map(_placed, target))


def _placed(leaf) -> jax.ShapeDtypeStruct:
    """`leaf` with a sharding; without, Orbax asks for the devices of the machine that saved."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaves(tree) -> dict[str, Any]:
    """Leaves by name, `opt.0.mu.w`: the same for a tree and for what Orbax tells of it."""
    flat = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(key, simple=True, separator="."): leaf for key, leaf in flat}


def _kind(leaf) -> str:
    if leaf is None:
        return "none"
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as its words
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _match(path: Path, asked: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raise CheckpointError, a clause for each of the first leaves that differ."""
    kinds = {name: (_kind(asked.get(name)), _kind(saved.get(name))) for name in asked | saved}
    wrong = [f"{name}: expected {a}, found {b}" for name, (a, b) in kinds.items() if a != b]
    if wrong:
        more = f"; and {len(wrong) - 4} more leaves" if len(wrong) > 4 else ""
        raise CheckpointError(f"{path}: {'; '.join(wrong[:4])}{more}")
