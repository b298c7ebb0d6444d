"""Ctrl-C as a request that is met between two frames or steps, so that nothing is left torn."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Yields a list that the first Ctrl-C or termination fills; a second one is not caught."""
    received: list[int] = []

    def note(number, _):
        received.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, note)
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
