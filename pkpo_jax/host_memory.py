"""The host's memory between steps, which costs CPU runs time if it goes back to the system."""

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
