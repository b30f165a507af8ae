"""What the C library (glibc) does with memory that is freed: training wants it kept, drawing tiles wants it given back.

Other C libraries are left alone.
"""

from __future__ import annotations

import ctypes
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TRIM, _OPTION = (getattr(_LIBC, name, None) for name in ("malloc_trim", "mallopt"))
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_LARGE_BYTES = 16 * 2**20
_MOST_BLOCKS = 65_536  # that are mapped one by one; glibc's own value


def keep_memory() -> None:
    """Keep freed memory for the next allocation, from now on.

    Each step of a training needs the same blocks again. Given back, the system has to clear them anew, which at patches
    of 768 px takes as long as the network (docs/benchmarks.md).
    """
    if _OPTION is not None:
        _OPTION(_MMAP_MAX, 0)
        _OPTION(_TRIM_THRESHOLD, -1)


def bound_memory() -> None:
    """Give large blocks back to the system as soon as they are freed, from now on, and what was kept until now.

    Otherwise more freed memory is kept while a tile is drawn than the tile uses, and the more the more shapes of tiles
    there are. It takes 7 % more time (docs/benchmarks.md).
    """
    if _OPTION is not None:
        _OPTION(_MMAP_MAX, _MOST_BLOCKS)
        _OPTION(_MMAP_THRESHOLD, _LARGE_BYTES)
        _OPTION(_TRIM_THRESHOLD, _LARGE_BYTES)
    give_back_memory()


def give_back_memory() -> None:
    """Give freed memory back to the system.

    What is kept lies in pieces between what is in use, and arrays of another size do not fit: over hundreds of tiles
    of different sizes it adds up to gigabytes.
    """
    if _TRIM is not None:
        _TRIM(0)
