"""The C library's allocator, told to give back what a server of many threads has freed.

glibc gives each thread an arena of its own and returns a freed block to the system only from an arena's end; and it
learns from large blocks to keep ever larger ones, up to 32 MB. So each decoder, worker and parser keeps the most that
it ever needed: a detector at twice its capacity still grew by 16 MB per 1,000 requests after a minute. With one arena
and these bounds it stood still at 440 MB within half a minute, and a request of 602 KB cost no more
(benchmarks/serve_soak.py on two busy cores). Threads rarely wait for each other in that arena: most of what they
allocate is Python's own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping

# Names and numbers of <malloc.h>; variables of the environment that say the same, and win.
_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
_VARIABLES = (
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)
# Tensors of usual images stay in the arena, where the next request finds them; bodies in JSON and large pictures go.
_MMAP_BYTES, _TRIM_BYTES = 4 * 2**20, 32 * 2**20

Mallopt = Callable[[int, int], int]


def bound_memory(mallopt: Mallopt | None = None, environment: Mapping[str, str] = os.environ) -> bool:
    """Bound what freed memory the process keeps; return whether that was done. Before the server's threads begin.

    Nothing is done where the environment already says how glibc shall allocate, or the C library is another one.

    Args:
        mallopt: of the C library; returns 0 for what it refuses.
    """
    if any(name in environment for name in _VARIABLES):
        return False
    found = mallopt or _of_this_process()
    if found is None:
        return False
    bounds = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MMAP_BYTES), (_TRIM_THRESHOLD, _TRIM_BYTES))
    accepted = [found(name, value) for name, value in bounds]
    return all(accepted)


def _of_this_process() -> Mallopt | None:
    return getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
