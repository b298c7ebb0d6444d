"""`lsd demo`: minutes of the bundled clip through the shipped model, prompt after prompt.

The clip runs there and back, so that at the end of each prompt's time the input is what it was at
the beginning: where the output is too, nothing has drifted.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lsd_jax.cli.options import a_seed
from lsd_jax.files import make_folder

PROMPTS = (
    "make it night",
    "make it a pencil sketch",
    "thermal camera",
    "film noir",
    "make it snow",
    "colour negative",
)
MINUTES = 2.4  # the bundled clip there and back for each prompt
LEAST_MINUTES = 0.1  # a second for each
MOST_MINUTES = 10_000  # a week


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"of stream, shared by {len(PROMPTS)} prompts (default: {MINUTES}: for each of them "
        "the clip once there and back)",
    )
    parser.add_argument("--checkpoint", help="default: the shipped checkpoints/tiny")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    if not LEAST_MINUTES <= args.minutes <= MOST_MINUTES:
        raise ValueError(
            f"--minutes {args.minutes}: give at least {LEAST_MINUTES}, at most {MOST_MINUTES}"
        )
    a_seed(args.seed)

    from rich.console import Console
    from rich.table import Table

    from lsd_jax.data.sample import PATH
    from lsd_jax.data.video import VideoSink, VideoSource
    from lsd_jax.pretrained import load_model
    from lsd_jax.reports import write_json
    from lsd_jax.session import Session, play

    make_folder(args.out)
    with Console(stderr=True).status("loading and compiling"):
        model, config = load_model(args.checkpoint, args.set)
        session = Session(model, config, args.seed)
    size = (config.model.height, config.model.width)
    with VideoSource(PATH, *size) as source:
        fps = float(source.fps)
        hold = round(args.minutes * 60 * fps / len(PROMPTS))
        schedule = [(i * hold / fps, prompt) for i, prompt in enumerate(PROMPTS)]
        session.check(schedule)
        wide, total = (size[0], 2 * size[1]), hold * len(PROMPTS)
        with VideoSink(args.out / "demo.mp4", size=wide, fps=source.fps) as video:
            pairs = SideBySide(video, hold, round(fps / 2))
            frames = pairs.watch(there_and_back(source, fps, total))
            report = play(session, frames, pairs, schedule, None, started, total)
    report["drift"] = [row for held in pairs.held if (row := held.drift())]
    contact_sheet(args.out / "demo.png", pairs.held, fps)
    write_json(args.json or str(args.out / "demo.json"), report)

    table = Table(title=f"{config.name} on {report['backend']} (measured)", show_header=False)
    latency, rate = report["latency_ms"], report["fps"]
    table.add_row("frames", f"{report['frames']} at {size[1]}x{size[0]}")
    table.add_row("frames per second, decode to encode", f"{rate:.1f}" if rate else "-")
    table.add_row(
        "latency p50 / p99 / max", "{p50:.1f} / {p99:.1f} / {max:.1f} ms".format(**latency)
    )
    table.add_row("host time per frame, p50", f"{report['host_ms_p50']:.2f} ms")
    first_s = report["time_to_first_frame_ms"] / 1e3
    table.add_row("time to first frame, loading and compiling included", f"{first_s:.1f} s")
    table.add_row("launches per frame", f"{report['launches_per_frame']:g}")
    table.add_row("recompiles after warm-up", str(report["recompiles_after_warmup"]))
    for row in report["drift"]:
        drifted = f"{row['first_db']:.1f} / {row['last_db']:.1f} dB"
        table.add_row(
            f"“{row['prompt']}”: PSNR to the truth, first / last half second of "
            f"{row['frames'] / fps:.0f} s",
            f"{drifted} (untouched input: {row['input_db']:.1f})",
        )
    Console().print(table)
    if report["interrupted"]:
        raise KeyboardInterrupt(f"interrupted; what was done is kept in {args.out}")
    print(f"{args.out / 'demo.mp4'}  {args.out / 'demo.png'}  {args.out / 'demo.json'}")


def there_and_back(source: Iterable, fps: float, total: int) -> Iterator:
    """`total` frames of a clip that runs forwards, then backwards, and so on."""
    kept = []
    for image, _ in source:
        if len(kept) == total:
            return
        kept.append(image)
        yield image, (len(kept) - 1) / fps
    again = itertools.cycle(kept[::-1] + kept)
    for number, image in zip(range(len(kept), total), again, strict=False):
        yield image, number / fps


@dataclass
class Held:
    """What is kept of a prompt's time: inputs and outputs of its first and its last moment, and
    the number in the stream of each one's first frame."""

    prompt: str
    start: int
    moment: int
    frames: int = 0
    early: list = field(default_factory=list)
    late: deque = field(init=False)

    def __post_init__(self):
        self.late = deque(maxlen=self.moment)

    def add(self, image, output) -> None:
        if self.frames < self.moment:
            self.early.append((image, output))
        self.late.append((image, output))
        self.frames += 1

    def moments(self) -> list[tuple[int, list]]:
        """The number in the stream of the first frame of each moment, and its pairs."""
        last = self.start + self.frames - len(self.late)
        return [(self.start, self.early), (last, list(self.late))]

    def drift(self) -> dict | None:
        """PSNR to the ground truth in either moment; None where the stream ended before they were
        apart."""
        import numpy as np

        from lsd_jax.data import edits
        from lsd_jax.evaluate.metrics import frame_psnr_db

        if self.frames < 2 * self.moment:
            return None
        found, unchanged = [], []
        for first, pairs in self.moments():
            inputs, outputs = (np.stack(images) for images in zip(*pairs, strict=True))
            truth = edits.apply(self.prompt, inputs, first)
            found.append(float(frame_psnr_db(outputs, truth).mean()))
            unchanged.append(frame_psnr_db(inputs, truth))
        return {
            "prompt": self.prompt,
            "frames": self.frames,
            "first_db": found[0],
            "last_db": found[1],
            "input_db": float(np.mean(unchanged)),
        }


class SideBySide:
    """A sink that shows both streams beside each other in a video, the prompt changing every
    `hold` frames, and keeps no more of them than moments of so many frames."""

    def __init__(self, video, hold: int, moment: int):
        self.video, self.held = video, list[Held]()
        self._hold, self._moment, self._count = hold, moment, 0
        self._image: Any = None  # the newest frame of the source

    def watch(self, source):
        """Hands on `source`, remembering its newest frame."""
        for self._image, time_s in source:
            yield self._image, time_s

    def write(self, image, time_s=None) -> None:
        import numpy as np

        if self._count % self._hold == 0:
            self.held.append(Held(PROMPTS[len(self.held)], self._count, self._moment))
        self.held[-1].add(self._image, image)
        self._count += 1
        self.video.write(np.concatenate([self._image, image], axis=1), time_s)

    def keep_partial(self) -> None:
        self.video.keep_partial()


def contact_sheet(path: Path, held: list[Held], fps: float) -> None:
    """A column per prompt: the end of its first moment, and the beginning of its last one, when the
    clip that ran there and back shows the same again."""
    import numpy as np
    from matplotlib.figure import Figure

    from lsd_jax.files import replacing

    early, late = ([one.moments()[i] for one in held] for i in (0, 1))
    before = [pairs[-1] for _, pairs in early]
    after = [pairs[0] for _, pairs in late]
    ages = [len(early[0][1]) - 1, late[0][0] - held[0].start]
    labels = [f"after {age / fps:.1f} s" for age in ages]
    rows = [("input", [x for x, _ in before]), (labels[0], [y for _, y in before])]
    if not all(np.array_equal(x, z) for (x, _), (z, _) in zip(before, after, strict=True)):
        rows.append(("input", [x for x, _ in after]))
    rows.append((labels[1], [y for _, y in after]))
    figure = Figure(figsize=(2.2 * len(held) + 0.3, 2.2 * len(rows) + 0.3))
    axes = figure.subplots(len(rows), len(held), squeeze=False)
    for (label, images), along in zip(rows, axes, strict=True):
        along[0].set_ylabel(label, fontsize=9)
        for axis, image in zip(along, images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
    for axis, one in zip(axes[0], held, strict=True):
        axis.set_title(f"“{one.prompt}”", fontsize=9)
    figure.subplots_adjust(0.025, 0.005, 0.995, 0.96, 0.03, 0.03)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
