"""Freed memory kept in the process, on a CPU under Linux.

Every step allocates and frees the same few megabytes. By default the C library gives them back to the system
when they are freed, and at the next step every page of them costs a page fault.
"""

from __future__ import annotations

import ctypes
import functools
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MOST_KEPT = 2**30  # bytes free at the heap's end
_LARGEST_IN_HEAP = 2**25  # bytes; what is larger goes back at once, and glibc takes no higher limit


@functools.cache
def keep_freed_memory() -> None:
    """Let malloc keep up to 1 GiB, in pieces of up to 32 MiB, for this process; without glibc do nothing."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
