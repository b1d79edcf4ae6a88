"""Tests of the memory that a process keeps."""

import subprocess
import sys

import pytest

# The arrays are as large as the temporary ones of a small step, and lie at the end of the heap.
_ALLOCATE = """
import ctypes, resource, sys
from pkpo_jax import host_memory
size, c = 4 * 2**20, ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
pointer, number = ctypes.c_void_p, ctypes.c_size_t
c.memset.argtypes, c.free.argtypes = [pointer, ctypes.c_int, number], [pointer]
assert sys.argv[1] == "default" or host_memory.keep_freed()
for _ in range(20):
    arrays = [c.malloc(size) for _ in range(12)]
    for array in arrays:
        c.memset(array, 1, size)
    for array in reversed(arrays):
        c.free(array)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc has the parameter.")
def test_pages_of_freed_memory_are_kept():
    faults = {}
    for setting in ("default", "keep"):
        command = [sys.executable, "-c", _ALLOCATE, setting]
        faults[setting] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    pages = 12 * 4 * 2**20 // 4096
    assert faults["default"] - faults["keep"] > 10 * pages
