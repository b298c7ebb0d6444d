"""The bundled clip through the simulated NKI megakernel and through XLA, frame by frame.

    python -m benchmarks.nki_stream --frames 24 --json out/nki_stream.json

Measured are the differences of the pictures, in steps of 255; the simulated times are no times of
a chip (`lsd bench stack --chip trn2` models those).
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("NPROC", "4")  # a host callback needs a second thread in XLA's CPU client

import numpy as np  # noqa: E402

from lsd_jax.data.video import VideoSource  # noqa: E402
from lsd_jax.pretrained import load_model  # noqa: E402
from lsd_jax.reports import provenance, write_json  # noqa: E402
from lsd_jax.session import Session  # noqa: E402

CLIP = "lsd_jax/assets/sample.mp4"


def stream(backend: str, frames: int, prompt: str) -> tuple[np.ndarray, dict]:
    """The first frames of the clip as `backend` shows them, and how it went."""
    model, config = load_model(None, [f"stream.backend={backend}"])
    session, shown = Session(model, config), []
    with VideoSource(CLIP, config.model.height, config.model.width) as source:
        session.condition(prompt, None)
        for (image, _), _ in zip(source, range(frames), strict=False):
            shown.append(session.step(image))
    report = {
        "launches_per_frame": session.clock.launches / len(shown),
        "execute_ms_p50": session.clock.execute_ms.percentile(50),
        "ops": session.backends,
    }
    return np.stack(shown), report


def compared(frames: int, prompt: str) -> dict:
    """How both backends' pictures of so many frames differ."""
    ours, report = stream("nki-sim", frames, prompt)
    theirs, reference = stream("xla", frames, prompt)
    difference = np.abs(ours.astype(int) - theirs)
    return report | {
        "frames": len(ours),
        "largest_difference": int(difference.max()),
        "pixels_that_differ": float((difference > 0).mean()),
        "kind": "measured, of pictures",
        "xla": reference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--prompt", default="make it night")
    parser.add_argument("--json")
    args = parser.parse_args()
    report = compared(args.frames, args.prompt) | provenance()
    print(
        f"{report['frames']} frames: largest difference {report['largest_difference']} of 255, "
        f"{report['pixels_that_differ']:.2e} of the values differ, "
        f"{report['launches_per_frame']:.0f} launch a frame"
    )
    write_json(args.json, report)


if __name__ == "__main__":
    main()
