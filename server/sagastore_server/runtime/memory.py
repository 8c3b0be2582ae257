"""Allocator settings: freed memory is returned to the system.

The C library keeps freed memory for later use. After a peak, such as requests of 30 MiB, a process
may keep hundreds of megabytes for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of ``mallopt`` in glibc's malloc.h."""

_LARGE = 1024 * 1024
"""Bytes of a block that is a separate mapping, which is returned when it is freed. The default
of glibc grows to 32 MiB with the blocks that are freed."""

_ARENAS = 2
"""Heaps; by default there are eight for each processor, each with its free memory."""

_TRIM_SECONDS = 10.0
"""Seconds between two checks for memory to return."""

_GROWTH = 8 * 1024 * 1024
"""Bytes by which the resident memory must exceed that after the last trim. A trim takes about
10 ms for each 100 MiB, in a thread."""


def configure() -> None:
    """Set up the allocator; does nothing where it is not glibc's."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        library.mallopt(_M_ARENA_MAX, _ARENAS)


async def trim_regularly(in_use: Callable[[], int]) -> None:
    """Return free memory to the system after peaks, until cancelled.

    ``in_use`` returns the bytes of requests and answers in memory. They may have been in memory for
    so long that their end is no peak.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trimmed, used = resident(), in_use()
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        if resident() - trimmed > _GROWTH or used - in_use() > _GROWTH:
            # The state of a cancelled call in gRPC refers to itself, and to its answer.
            gc.collect()
            await asyncio.to_thread(trim, 0)
            trimmed = resident()
        used = in_use()


def resident() -> int:
    """Return the resident memory of this process in bytes; 0 where it cannot be read."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * 4096
