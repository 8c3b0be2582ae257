"""File descriptors: how many the process may open, and how many it has open.

Each connection needs one. Some are reserved for the stores, the ops port and the files that are
read again while the server runs: without any left, a revoked token would stay valid.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

RESERVED = 160
"""File descriptors that connections do not take: PostgreSQL up to 20, SQLite 16, the ops port 32,
gRPC 16, and half for what has not been thought of."""

_FOLDER = "/proc/self/fd"


def raise_limit() -> int:
    """Raise the limit of this process as far as it may, and return it."""
    if sys.platform == "win32":
        return 1 << 20
    import resource  # noqa: PLC0415 - not available on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 30 if limit == resource.RLIM_INFINITY else limit


def in_use() -> int:
    """Return the number of open file descriptors; 0 where it cannot be read."""
    try:
        return sum(1 for _ in Path(_FOLDER).iterdir()) - 1
    except OSError:
        return 0
