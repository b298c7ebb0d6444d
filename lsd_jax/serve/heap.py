"""Keeps the C heap of a process that runs for weeks from growing without a leak."""

from __future__ import annotations

import ctypes

ARENAS = 2
M_ARENA_MAX = -8  # malloc.h of glibc


def share_arenas() -> None:
    """Has all threads allocate from `ARENAS` heaps, from now on; nothing where libc is not glibc.

    Else glibc gives every new thread a heap of its own, up to eight for each core, and none gives
    back what pictures of another thread have left it: mallopt(3).
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_ARENA_MAX, ARENAS)
