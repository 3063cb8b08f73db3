"""Memory that a chunk took goes back to the system when the chunk is gone.

glibc raises, on its own, the size from which a block is mapped by itself, to that of the largest block freed so far; after
the first chunks of 1 MiB they all come from per-thread arenas, which shrink hardly ever. With the size fixed and two
arenas, eight uploads at once take 2 to 4 MiB less of resident memory each (`benchmarks/upload_memory.py`).
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_THRESHOLD: Final = 128 * 1024
_ARENAS: Final = 2


def return_freed_chunks() -> bool:
    """Set glibc's allocator for this process; returns False, and changes nothing, where the C library is another."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_ARENA_MAX, _ARENAS))
