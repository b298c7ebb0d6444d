"""How long the frames of a stream take, in memory that does not grow with its age."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

_LEAST_MS, _WIDTH = 1e-3, math.log(1.001)
_BINS = math.ceil(math.log(1e9) / _WIDTH)  # to a quarter of an hour


class Times:
    """Milliseconds of frames. The first, which warms caches, counts in none but `max`.

    Percentiles are NumPy's of times that are rounded to bins of 0.1 %, so right within 0.05 %, or
    a microsecond where they are that short. `count`, `max` and `recent`, the last 250, are exact.
    """

    def __init__(self):
        self.count, self.max = 0, 0.0
        self.recent: deque[float] = deque(maxlen=250)
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, ms: float) -> None:
        """Counts one frame's time."""
        if self.count:
            place = int(math.log(max(ms / _LEAST_MS, 1.0)) / _WIDTH)
            self._bins[min(place, _BINS - 1)] += 1
        self.count += 1
        self.max = max(self.max, ms)
        self.recent.append(ms)

    def percentile(self, percent: float) -> float:
        """In milliseconds, between its neighbours as NumPy has it; of the first frame alone, its
        own time."""
        until = np.cumsum(self._bins)
        if not until[-1]:
            return self.max
        rank = percent / 100 * (until[-1] - 1)
        places = np.searchsorted(until, [math.floor(rank), math.ceil(rank)], side="right")
        below, above = _LEAST_MS * np.exp((places + 0.5) * _WIDTH)
        return min(float(below + (above - below) * (rank % 1)), self.max)
