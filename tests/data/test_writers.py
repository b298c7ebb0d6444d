"""What is written is a function of the pictures alone."""

import os
import subprocess
import sys

import av
import pytest

from lsd_jax.data import writers

ENCODE_NOISE = """
import sys
from fractions import Fraction
import numpy as np
from lsd_jax.data.video import VideoSink
blocks = np.random.default_rng(0).integers(0, 256, (12, 48, 64, 3), np.uint8)
with VideoSink(sys.argv[1], size=(240, 320), fps=Fraction(25)) as sink:
    for image in blocks.repeat(5, axis=1).repeat(5, axis=2):
        sink.write(image)
"""


@pytest.mark.parametrize("suffix", sorted(writers.FORMATS))
def test_what_is_written_does_not_hang_on_what_memory_held(tmp_path, suffix):
    written = []
    for filled in ("1", "170"):
        path = tmp_path / f"{filled}{suffix}"
        command = [sys.executable, "-c", ENCODE_NOISE, path]
        environment = os.environ | {"MALLOC_PERTURB_": filled}  # what glibc fills new memory with
        subprocess.run(command, env=environment, check=True, timeout=60)
        with av.open(str(path)) as container:
            written.append([bytes(packet) for packet in container.demux(video=0)])
    assert len(written[0]) > 12
    assert written[0] == written[1]
