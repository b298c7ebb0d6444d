"""A queue of depth one: the newest item wins, what it replaces is counted as dropped."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """One picture of a live input; `ts_ms` is when it was captured, by its sender's clock."""

    image: UInt8[np.ndarray, "h w 3"]
    ts_ms: float = 0.0
    seq: int = 0


class Mailbox(Generic[T]):
    """Holds at most one item. For one event loop; `async for` takes items until it is closed."""

    def __init__(self, on_empty: Callable[[], None] | None = None):
        self.dropped = self.received = 0
        self._item: T | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._on_empty = on_empty
        self._taken_s: float | None = None
        self._busy_s: deque[float] = deque(maxlen=8)

    def put(self, item: T) -> None:
        """Replaces what is held, if anything. Without effect once closed."""
        if self._closed:
            return
        self.received += 1
        self.dropped += self._item is not None
        self._item = item
        self._changed.set()

    def close(self) -> None:
        """Ends the iteration; what is still held is dropped."""
        self._closed, self._item = True, None
        self._changed.set()

    @property
    def busy_s(self) -> float:
        """The shortest time, of the last eight, from an item taken until another was asked for."""
        return min(self._busy_s, default=0.0)

    @property
    def closed(self) -> bool:
        """Whether nothing will come any more."""
        return self._closed

    async def take(self) -> T:
        """The newest item, as soon as there is one. Raises EOFError once closed."""
        self._note_asked()
        while self._item is None:
            if self._closed:
                raise EOFError("the input has ended")
            self._changed.clear()
            await self._changed.wait()
        item, self._item = self._item, None
        self._note_taken()
        return item

    def take_nowait(self) -> T | None:
        """The newest item, or None where there is none."""
        self._note_asked()
        item, self._item = self._item, None
        if item is not None:
            self._note_taken()
        return item

    def _note_asked(self) -> None:
        if self._taken_s is not None:
            self._busy_s.append(time.monotonic() - self._taken_s)
            self._taken_s = None

    def _note_taken(self) -> None:
        self._taken_s = time.monotonic()
        if self._on_empty:
            self._on_empty()

    def __aiter__(self) -> Mailbox[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.take()
        except EOFError:
            raise StopAsyncIteration from None
