"""The one training loop: any stage's loss over the same batches, resumable to the last bit."""

from __future__ import annotations

import fcntl
import json
import math
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lsd_jax import sharding
from lsd_jax.checkpoint import CheckpointError, Checkpoints, load_weights, save_weights
from lsd_jax.config import Config, differences
from lsd_jax.data.batch import Batch
from lsd_jax.digests import check_place
from lsd_jax.interruption import stop_on_signal
from lsd_jax.pretrained import load_model
from lsd_jax.train.samples import save_samples
from lsd_jax.train.step import Loss, TrainState, abstract_state, init_state, make_step
from lsd_jax.train.throughput import Throughput

T = TypeVar("T")
PATIENCE = 20  # steps in a row without a finite gradient before training gives up


def train(
    config: Config,
    loss: Loss,
    draw: Callable[[int], T],
    directory: Path,
    mesh: Mesh,
    init_from: Path | None = None,
    deadline_s: float | None = None,
    make: Callable[[int, dict, T], Batch] | None = None,
    stage: str = "",
) -> int:
    """Trains until `config.train.steps`, a signal or the deadline; returns the steps done.

    Writes `metrics.jsonl`, `samples/*.png`, `checkpoints/` and, at the end, `weights/` (the
    running mean) under `directory`. Where that holds checkpoints already, goes on from the newest
    good one exactly as if it had never stopped; where these are all, changes nothing.

    Args:
        draw: what the batch of a step is made of, by its number: the same on every host, and drawn
            ahead in a thread.
        init_from: weights to start from where there is no checkpoint to go on from.
        deadline_s: seconds after which to stop at the next step, with everything saved.
        make: the batch of a step, on the mesh, of its number, the running mean of the weights and
            what was drawn; without it, what was drawn is the batch.
        stage: kept in the checkpoints, so that no other stage goes on from them.

    Raises:
        ValueError: a checkpoint of another architecture or stage, a directory that another run
            writes to, hosts that draw differently, or `PATIENCE` steps without a finite gradient.
    """
    parts = sharding.parts(mesh)
    if config.train.batch % parts:
        raise ValueError(
            f"train.batch={config.train.batch} does not split over data x fsdp = {parts} devices; "
            f"use a multiple of {parts}, or --mesh with fewer"
        )
    check_place(directory / "weights")
    started = time.monotonic()
    place = NamedSharding(mesh, sharding.BATCH)
    with Checkpoints(directory / "checkpoints") as saved, ThreadPoolExecutor(1) as ahead:
        state = first_state(config, saved, mesh, init_from, stage)
        step = begun = int(state.step)
        end = config.train.steps
        last_saved = None
        extra = {"stage": stage} if stage else None
        run = make_step(config, loss, mesh)
        with _log(directory, step) as log, _progress() as bar, stop_on_signal() as stopped:
            if step >= end:
                if jax.process_index() == 0:
                    bar.console.print(
                        f"nothing is left to do: {directory} holds {step} steps of {end}; more by "
                        "--set train.steps=N"
                    )
                if not _holds(directory / "weights", state.ema):
                    save_weights(directory / "weights", state.ema, config)
                return step
            if step and jax.process_index() == 0:
                instead = f", not from {init_from}" if init_from else ""
                bar.console.print(f"going on from step {step} of {directory}{instead}")
            upcoming = ahead.submit(draw, step)
            task = bar.add_task("training", total=end, completed=step, note="")
            speed = None
            while step < end:
                drawn = upcoming.result()
                upcoming = ahead.submit(draw, step + 1)
                if step == begun:
                    _check_alike(drawn)
                # Here and not in the thread: hosts must start what they share in the same order.
                batch = make(step, state.ema, drawn) if make else sharding.spread(drawn, place)
                state, metrics = run(state, batch)
                step += 1
                if speed is None:
                    jax.block_until_ready(metrics)  # which is the end of all compiling
                    speed = Throughput(config, loss, mesh, step)
                if step % config.train.log_every == 0 or step == end:
                    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
                    rates = speed.lap(step, batch)
                    log(step=step, **rates, **values)
                    note = f"loss {values['loss']:.4f}"
                    if rates:
                        note += f"  {rates['clips_per_s']:.1f} clips/s"
                    if "mfu" in rates:
                        note += f"  MFU {rates['mfu']:.0%}"
                    bar.update(task, completed=step, note=note)
                    if values["skipped"] >= PATIENCE:
                        raise ValueError(
                            f"no finite gradient for {PATIENCE} steps before step {step}; lower "
                            "train.learning_rate and start again from the last checkpoint"
                        )
                if step % config.train.sample_every == 0:
                    picture = directory / "samples" / f"{step:07d}.png"
                    save_samples(config, state.ema, batch, picture)
                if step % config.train.checkpoint_every == 0:
                    saved.save(step, state, config, extra)
                    last_saved = step
                late = deadline_s is not None and time.monotonic() - started > deadline_s
                if _agreed(bool(stopped) or late):
                    break
            upcoming.cancel()
            if step != last_saved:
                saved.save(step, state, config, extra)
            saved.wait()
            save_weights(directory / "weights", state.ema, config)
    return step


def first_state(
    config: Config, saved: Checkpoints, mesh: Mesh, init_from: Path | None, stage: str = ""
) -> TrainState:
    """The newest good checkpoint's state, or a fresh one, on `mesh`.

    Raises ValueError for a checkpoint of another architecture, or of another stage (those from
    before these were kept are of any).
    """
    if saved.steps():
        try:
            state, _, extra = saved.restore(abstract_state(config, mesh))
        except CheckpointError as error:
            fields = differences(config.model, saved.config().model)
            if not fields:
                raise
            raise ValueError(
                f"{saved.directory} is of another architecture (asked != found): "
                f"{', '.join(fields)}; set these back, or give another directory"
            ) from error
        begun = extra.get("stage", stage)
        if stage and begun != stage:
            raise ValueError(
                f"{saved.directory} is of the stage {begun}, not {stage}; give another --out"
            )
        return state
    if init_from is None:
        return init_state(config, mesh)
    abstract = abstract_state(config, mesh).params
    try:
        params, _ = load_weights(init_from, abstract, config.model)
    except CheckpointError:  # in eight bits, or a step of a run: loaded as for a stream
        model, theirs = load_model(init_from, [])
        if differences(config.model, theirs.model):
            raise
        params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return init_state(config, mesh, params)


def _holds(path: Path, weights: dict) -> bool:
    """Whether these weights are saved there: a run may have been killed in front of that."""
    try:
        found, _ = load_weights(path, weights)
    except CheckpointError:
        return False
    return jax.tree.all(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), found, weights))


@contextmanager
def _log(directory: Path, step: int):
    """Appends one JSON object a line to `metrics.jsonl`, on the first host, behind those of the
    first `step` steps; null where a figure is not finite.

    Raises ValueError where another run has that file open: two would tear each other's checkpoints.
    """
    if jax.process_index():
        yield lambda **values: None
        return
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "metrics.jsonl", "a", buffering=1) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run is writing to {directory}; wait for it, or give another --out"
            ) from None
        except OSError as error:  # a file system without locks
            logging.warning("%s is not locked against other runs: %s", directory, error)

        file.truncate(_length(directory / "metrics.jsonl", step))

        def log(**values: float | int) -> None:
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            file.write(json.dumps(finite) + "\n")

        yield log


def _length(path: Path, step: int) -> int:
    """Bytes of a log up to that step. What is behind, maybe torn, is of steps that were not kept
    when a run was ended, and are done again. Lines that are no record stay where they are."""
    whole = read = 0
    with path.open("rb") as file:
        for line in file:
            read += len(line)
            try:
                entry = json.loads(line)
            except ValueError:  # empty, or torn; kept where records follow
                continue
            number = entry.get("step") if isinstance(entry, dict) else None
            if isinstance(number, int | float) and number > step:
                break
            if line.endswith(b"\n"):
                whole = read
    return whole


def _check_alike(drawn) -> None:
    """Raises ValueError, on all hosts, where one has drawn another batch than the others."""
    if jax.process_count() == 1:
        return
    digest = 0
    for leaf in jax.tree.leaves(drawn):
        digest = zlib.crc32(np.asarray(leaf).tobytes(), digest)
    if np.unique(multihost_utils.process_allgather(np.array(digest, np.uint32))).size > 1:
        raise ValueError("hosts train on different batches; give all the same settings and videos")


def _agreed(stop: bool) -> bool:
    """Whether any host wants to stop: all must leave the loop at the same step."""
    if jax.process_count() == 1:
        return stop
    return bool(np.any(multihost_utils.process_allgather(np.array(stop))))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=jax.process_index() != 0,
    )
