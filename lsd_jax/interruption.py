"""Ctrl-C as a request that is met between two frames or steps, so that nothing is left torn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Received(list[int]):
    """The signals that came; empty until then."""

    _waiting = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For what may wait without end and can be left at any point: a signal raises
        KeyboardInterrupt here."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False


@contextmanager
def stop_on_signal() -> Iterator[Received]:
    """Yields a list that the first Ctrl-C or termination fills; a second one is not caught. Outside
    the main thread, to which Python gives all signals, none is."""
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number, _):
        received.append(number)
        for name, handler in before.items():
            signal.signal(name, handler)
        if received._waiting:
            raise KeyboardInterrupt

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    for name in before:
        signal.signal(name, note)
    try:
        yield received
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
