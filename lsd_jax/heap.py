"""How glibc's heap serves processes that run for weeks, and those that take a gigabyte each step.

All here is for the whole process, from the call on, and nothing where libc is not glibc.
"""

from __future__ import annotations

import asyncio
import ctypes

GIVE_BACK_S = 60.0
ARENAS = 2
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h of glibc
NEVER = -1


def share_arenas(count: int = ARENAS) -> None:
    """Has all threads allocate from so many heaps.

    Else glibc gives every new thread a heap of its own, up to eight for each core, and none gives
    back what pictures of another thread have left it: mallopt(3).
    """
    _set(M_ARENA_MAX, count)


def keep_memory() -> None:
    """Has what is freed kept for what is allocated next, instead of being given back.

    The temporaries of a training step are one piece of a gigabyte or more on a CPU. glibc maps such
    a piece anew each time, and the kernel then finds and clears a page for each 4 KB of it.
    """
    _set(M_MMAP_MAX, 0)
    _set(M_TRIM_THRESHOLD, NEVER)
    share_arenas(1)  # others than the first are too small for such pieces


async def give_back(every_s: float = GIVE_BACK_S) -> None:
    """Gives back, again and again, what is free between pieces in use: malloc_trim(3).

    Else it stays with the process, and what many sizes of pictures and messages leave between them
    becomes more for hours.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(trim, 0)


def _set(parameter: int, value: int) -> None:
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(parameter, value)
