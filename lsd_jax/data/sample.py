"""Makes the bundled sample clip: a rendered world that no model was trained on.

python -m lsd_jax.data.sample
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

PATH = Path(__file__).parent.parent / "assets" / "sample.mp4"
WORLD = (1 << 30) + 5
FRAMES, FPS, SIZE = 288, 24, 256


def main() -> None:
    from lsd_jax.data import worlds
    from lsd_jax.data.video import VideoSink

    world = worlds.sample_world(np.int32(WORLD))
    PATH.parent.mkdir(exist_ok=True)
    with VideoSink(PATH, size=(SIZE, SIZE), fps=Fraction(FPS)) as sink:
        for start in range(0, FRAMES, 24):
            for image in np.asarray(worlds.clip(world, start, 24, SIZE, SIZE)):
                sink.write(image)


if __name__ == "__main__":
    main()
