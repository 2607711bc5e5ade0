"""Memory of the training process: let glibc keep what NumPy frees, and how much was used at most.

Every step allocates and frees the same large arrays. glibc hands a large freed block back to the operating system,
so the next one of that size is made of fresh pages, each of which the kernel has to find and fill with zeros on
first touch. For an element-wise operation on 32 MiB that costs about as much as the operation itself.
"""

import ctypes
import sys
from typing import Any

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory instead of returning it to the operating system.

    Blocks of any size come from the heap (``M_MMAP_MAX`` = 0: without it, every block above 32 MiB, the largest
    threshold that glibc takes, would be mapped and unmapped each time), and the heap is never trimmed. The process
    holds on to its peak until it ends.

    Returns:
        Whether it was done. Other C libraries (macOS, Windows, musl) have no such switch, and nothing happens there.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc: Any = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory_mib() -> float | None:
    """The most memory that this process ever occupied, in MiB; None on systems without ``getrusage`` (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere
