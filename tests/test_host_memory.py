"""Tests of the memory that a process keeps, and of what it gives back."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc has the functions.")

_START = """
import ctypes, pathlib, resource, sys, threading
from pkpo_jax import host_memory
c, pointer, number = ctypes.CDLL(None), ctypes.c_void_p, ctypes.c_size_t
c.malloc.restype, c.malloc.argtypes = pointer, [number]
c.memset.argtypes, c.free.argtypes = [pointer, ctypes.c_int, number], [pointer]

def allocate(size, count):
    arrays = [c.malloc(size) for _ in range(count)]
    for array in arrays:
        c.memset(array, 1, size)
    return arrays
"""
# The arrays are as large as the temporary ones of a small step, and lie at the end of the heap.
_STEPS = """
assert sys.argv[1] == "default" or host_memory.keep_freed()
for _ in range(20):
    for array in reversed(allocate(4 * 2**20, 12)):
        c.free(array)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
# Each thread leaves an allocation behind those that it frees, so that these are not at the end.
_THREADS = """
host_memory.keep_freed()

def write(ready):
    arrays = allocate(2**20, 32)
    allocate(2**10, 1)
    ready.wait()
    for array in arrays:
        c.free(array)

def mib():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20

before, ready = mib(), threading.Barrier(4)
threads = [threading.Thread(target=write, args=[ready]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
freed = mib()
assert host_memory.return_freed()
print(freed - before, mib() - before)
"""


def _run(program, *arguments):
    command = [sys.executable, "-c", _START + program, *arguments]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(map(int, said.split()))


def test_pages_of_freed_memory_are_kept():
    (default,), (kept,) = _run(_STEPS, "default"), _run(_STEPS, "keep")
    pages = 12 * 4 * 2**20 // 4096
    assert default - kept > 10 * pages


def test_pages_freed_by_other_threads_are_returned():
    freed, returned = _run(_THREADS)
    assert freed > 100 and returned < 20
