"""The heap, as glibc itself and the kernel count it."""

import ctypes
import subprocess
import sys

import pytest

ALLOCATE = """
import ctypes, sys, threading
from lsd_jax.heap import share_arenas

if sys.argv[1] == "shared":
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)
def allocate():
    libc.malloc(ctypes.c_size_t(1000))
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


AGAIN = """
import ctypes, resource, sys
from lsd_jax.heap import keep_memory

if sys.argv[1] == "kept":
    keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def fill():
    piece = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(64 << 20)))
    ctypes.memset(piece, 1, 64 << 20)
    libc.free(piece)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HOLES = """
import asyncio, ctypes, sys
from pathlib import Path
from lsd_jax.heap import give_back

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
pieces = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(100_000))) for _ in range(640)]
for piece in pieces:
    ctypes.memset(piece, 1, 100_000)
for piece in pieces[::2]:
    libc.free(piece)
async def wait():
    task = asyncio.create_task(give_back(0.1))
    await asyncio.sleep(1)
    task.cancel()
if sys.argv[1] == "given back":
    asyncio.run(wait())
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""
glibc = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_info"), reason="glibc's malloc alone"
)


@glibc
def test_threads_share_two_heaps():
    def heaps(how: str) -> int:
        command = [sys.executable, "-c", ALLOCATE, how]
        return subprocess.run(command, capture_output=True, check=True).stdout.count(b"<heap nr=")

    assert heaps("shared") <= 2 < heaps("each its own")


@glibc
def test_what_was_freed_is_had_again_without_a_page_fault():
    def faults(how: str) -> int:
        command = [sys.executable, "-c", AGAIN, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    pages = (64 << 20) // (2 << 20)  # at least, should the kernel give them by 2 MB
    assert faults("kept") < pages <= faults("given back")


@glibc
def test_what_is_free_between_pieces_is_given_back():
    def resident(how: str) -> int:
        command = [sys.executable, "-c", HOLES, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert resident("given back") < resident("kept") - 16e6
