"""A model's sound on its way to a WebRTC client: evenly paced, never far behind the pictures."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from typing import Any

import numpy as np
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError
from av import AudioFrame, AudioResampler
from jaxtyping import Int16

RATE_HZ = 48_000
FRAME = RATE_HZ // 50
"""Samples of a frame: the 20 ms that Opus takes."""
WAITING = 10
"""Frames that may wait to be sent. More is a model ahead of its clock: its oldest gives way."""


class Sound:
    """The samples of an audio output that wait to be sent, as stereo of 48 kHz.

    `output` is the manifest's. Of more than two channels the first two are sent.
    """

    def __init__(self, output: dict[str, Any]):
        self._output, self._resampler = output, AudioResampler("s16", "stereo", RATE_HZ, FRAME)
        self._frames: list[AudioFrame] = []
        self.dropped = 0
        self.closed = False

    def put(self, data: bytes) -> None:
        """Samples as the model gave them, `[samples, channels]`."""
        dtype = self._output["sample_format"]
        samples = np.frombuffer(data, dtype).reshape(-1, self._output["channels"])[:, :2]
        if not samples.size:
            return
        if dtype == "float32":
            samples = (np.clip(samples, -1.0, 1.0) * 32_767).astype(np.int16)
        if samples.shape[1] == 1:
            samples = np.repeat(samples, 2, axis=1)
        frame = _frame(samples)
        frame.sample_rate = self._output["sample_rate_hz"]
        self._frames += self._resampler.resample(frame)
        late = max(0, len(self._frames) - WAITING)
        self.dropped += late
        del self._frames[:late]

    def take(self) -> AudioFrame:
        """The next 20 ms, or silence where there is nothing."""
        if self._frames:
            return self._frames.pop(0)
        return _frame(np.zeros((FRAME, 2), np.int16))


def _frame(samples: Int16[np.ndarray, "samples 2"]) -> AudioFrame:
    packed = np.ascontiguousarray(samples).reshape(1, -1)
    frame = AudioFrame.from_ndarray(packed, format="s16", layout="stereo")
    frame.sample_rate = RATE_HZ
    return frame


class SoundTrack(AudioStreamTrack):
    """A frame of `sound` each 20 ms; ends when it is closed."""

    def __init__(self, sound: Sound):
        super().__init__()
        self._sound, self._sent = sound, 0
        self._began_s: float | None = None

    async def recv(self) -> AudioFrame:
        """The next frame, when it is due."""
        if self._began_s is None:
            self._began_s = time.perf_counter()
        due_s = self._began_s + self._sent * FRAME / RATE_HZ
        await asyncio.sleep(due_s - time.perf_counter())
        if self._sound.closed:
            self.stop()
            raise MediaStreamError
        frame = self._sound.take()
        frame.pts, frame.time_base = self._sent * FRAME, Fraction(1, RATE_HZ)
        self._sent += 1
        return frame
