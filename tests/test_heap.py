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
