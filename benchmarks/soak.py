"""Streams for long, changing prompt and reference, and fails where anything grows or recompiles.

python -m benchmarks.soak --frames 10000 --json soak.json
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

from lsd_jax.data.sample import PATH
from lsd_jax.data.video import VideoSource
from lsd_jax.pretrained import load_model
from lsd_jax.reports import provenance, write_json
from lsd_jax.session import Clock, Session, count_compiles, figures

PROMPTS = ("make it night", "film noir", "oil painting", "use the reference as the background")
CHANGE_EVERY = 97
GROWTH_MB = 32  # 10,000 frames of 128x128, if they were kept, would be 490


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--checkpoint")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    model, config = load_model(args.checkpoint, [])
    session = Session(model, config)
    with VideoSource(PATH, config.model.height, config.model.width) as source:
        clip = [image for image, _ in source]
    report = soak(session, clip, args.frames)
    report |= {"config": config.name, "kind": "measured", **provenance()}
    write_json(args.json, report)
    print(
        f"{report['frames']} frames, {report['changes']} changes of prompt or reference: "
        f"{report['recompiles_after_warmup']} recompiles, resident memory "
        f"{report['resident_mb'][0]:.0f} -> {report['resident_mb'][-1]:.0f} MB, "
        f"p50 {report['latency_ms']['p50']:.1f} p99 {report['latency_ms']['p99']:.1f} ms (measured)"
    )
    grown_mb = report["resident_mb"][-1] - report["resident_mb"][0]
    return int(report["recompiles_after_warmup"] > 0 or grown_mb > GROWTH_MB)


def soak(session: Session, clip: list[np.ndarray], frames: int) -> dict:
    """Streams `frames` frames of `clip`, over and over; memory is sampled eighteen times after
    the first tenth."""
    changes, resident, begun = 0, [], time.perf_counter()
    session.condition(PROMPTS[0], None)
    session.step(clip[0])
    session.clock = Clock()  # what came before is warm-up
    with count_compiles(session.clock):
        for i in range(frames):
            if i % CHANGE_EVERY == 0:
                prompt = PROMPTS[changes % len(PROMPTS)]
                session.condition(prompt, clip[i % len(clip)] if changes % 2 else None)
                changes += 1
            asked = time.perf_counter()
            session.step(clip[i % len(clip)])
            latency_ms = (time.perf_counter() - asked) * 1e3
            session.clock.latency_ms.add(latency_ms)
            session.clock.host_ms.add(latency_ms - session.clock.execute_ms.recent[-1])
            if i >= frames // 10 and i % max(frames // 20, 1) == 0:
                resident.append(resident_mb())
    found = figures(session.clock, time.perf_counter() - begun, session.dispatch_ms())
    return {**found, "changes": changes, "resident_mb": resident}


def resident_mb() -> float:
    """Resident memory of this process now (Linux), or its peak elsewhere, in 1e6 bytes."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    sys.exit(main())
