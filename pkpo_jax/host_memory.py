"""The memory that a process has freed: what it keeps for its next steps, and what it gives back."""

from __future__ import annotations

import ctypes

# These are glibc's numbers of the parameters in malloc.h, and its largest value of the second.
_M_TOP_PAD, _M_MMAP_THRESHOLD = -2, -3
_LARGEST_THRESHOLD = 2**25


def keep_freed(size: int = 2**28) -> bool:
    """Makes this process keep up to `size` bytes of freed memory for its next allocations.

    XLA allocates the temporary arrays of a step on CPUs when the step starts, and frees them when
    it ends. glibc maps large arrays one by one and gives the system back what is free at the end of
    the heap, so that each step waits until the system has filled the same pages with zeros again.

    Returns:
      Whether that was set: other C libraries than glibc do not have these parameters.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_TOP_PAD, size) and mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD))


def return_freed() -> bool:
    """Gives the system back the memory that this process has freed, also what `keep_freed` keeps.

    Threads that write a checkpoint leave freed memory of its size in regions that glibc has for
    each thread. The next checkpoint is written by other threads, which may get other regions.

    Returns:
      Whether that was done: other C libraries than glibc have no such function.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    return True
