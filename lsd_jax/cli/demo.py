"""`lsd demo`: the bundled clip through the shipped model, the prompt changing as it runs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

SCHEDULE = [
    (0.0, "make it night"),
    (2.0, "make it a pencil sketch"),
    (4.0, "thermal camera"),
    (6.0, "film noir"),
    (8.0, "make it snow"),
    (10.0, "colour negative"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument("--checkpoint", help="default: the shipped checkpoints/tiny")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from lsd_jax.data.sample import PATH
    from lsd_jax.data.video import VideoSink, VideoSource
    from lsd_jax.pretrained import load_model
    from lsd_jax.reports import write_json
    from lsd_jax.session import Session, play

    args.out.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status("loading and compiling"):
        model, config = load_model(args.checkpoint, args.set)
        session = Session(model, config, args.seed)
    size = (config.model.height, config.model.width)
    session.check(SCHEDULE)
    with VideoSource(PATH, *size) as source:
        wide = (size[0], 2 * size[1])
        with VideoSink(args.out / "demo.mp4", size=wide, fps=source.fps) as video:
            pairs = SideBySide(video)
            report = play(
                session, pairs.watch(source), pairs, SCHEDULE, None, started, source.frames
            )
        fps = float(source.fps)
    outputs = np.stack(pairs.outputs)
    inputs = np.stack(pairs.inputs[: len(outputs)])
    report["drift"] = drift(inputs, outputs, fps)
    contact_sheet(args.out / "demo.png", inputs, outputs, fps)
    write_json(args.json or str(args.out / "demo.json"), report)

    table = Table(title=f"{config.name} on {report['backend']} (measured)", show_header=False)
    latency = report["latency_ms"]
    table.add_row("frames", f"{report['frames']} at {size[1]}x{size[0]}")
    table.add_row("frames per second, decode to encode", f"{report['fps']:.1f}")
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
            f"“{row['prompt']}”: PSNR to the truth, first / last half second",
            f"{drifted} (untouched input: {row['input_db']:.1f})",
        )
    Console().print(table)
    if report["interrupted"]:
        raise KeyboardInterrupt(f"interrupted; what was done is kept in {args.out}")
    print(f"{args.out / 'demo.mp4'}  {args.out / 'demo.png'}  {args.out / 'demo.json'}")


class SideBySide:
    """A sink that keeps both streams and shows them beside each other in a video."""

    def __init__(self, video):
        self.video, self.inputs, self.outputs = video, [], []

    def watch(self, source):
        """Hands on `source`, remembering its frames."""
        for image, time_s in source:
            self.inputs.append(image)
            yield image, time_s

    def write(self, image, time_s=None) -> None:
        import numpy as np

        self.outputs.append(image)
        self.video.write(np.concatenate([self.inputs[-1], image], axis=1), time_s)

    def keep_partial(self) -> None:
        self.video.keep_partial()


def drift(inputs, outputs, fps: float) -> list[dict]:
    """For each prompt, PSNR to its ground truth in the first and the last half second it ran."""
    import numpy as np

    from lsd_jax.data import edits
    from lsd_jax.evaluate.metrics import psnr_db, squared_errors

    def psnr(frames, truth):
        return psnr_db(np.asarray(squared_errors(frames, truth[None])[0]))

    rows, half = [], round(fps / 2)
    ends = [min(round(t * fps), len(inputs)) for t, _ in SCHEDULE[1:]] + [len(inputs)]
    for (start_s, prompt), end in zip(SCHEDULE, ends, strict=True):
        start = round(start_s * fps)
        if end - start < 2 * half:  # the stream ended early
            continue
        truth = edits.apply(prompt, inputs[start:end], start)
        values = psnr(outputs[start:end], truth)
        rows.append(
            {
                "prompt": prompt,
                "first_db": float(values[:half].mean()),
                "last_db": float(values[-half:].mean()),
                "input_db": float(psnr(inputs[start:end], truth).mean()),
            }
        )
    return rows


def contact_sheet(path: Path, inputs, outputs, fps: float) -> None:
    """A column per prompt: input, output halfway through it, and the prompt below."""
    from matplotlib.figure import Figure

    from lsd_jax.files import replacing

    starts = [t for t, _ in SCHEDULE if t * fps < len(inputs)]
    figure = Figure(figsize=(2.2 * len(starts), 4.9))
    axes = figure.subplots(2, len(starts), squeeze=False)
    for column, start in enumerate(starts):
        end = SCHEDULE[column + 1][0] if column + 1 < len(SCHEDULE) else len(inputs) / fps
        frame = min(round((start + end) / 2 * fps), len(inputs) - 1)
        for axis, images in zip(axes[:, column], (inputs, outputs), strict=True):
            axis.imshow(images[frame])
            axis.set_axis_off()
        axes[1, column].set_title(f"“{SCHEDULE[column][1]}”", fontsize=9, y=-0.2)
    figure.subplots_adjust(0.01, 0.08, 0.99, 0.99, 0.03, 0.03)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
