"""How much of a write-ahead log is in use, read from the file itself.

SQLite begins the log anew at its start and leaves the file as long as it is, because to
overwrite is cheaper than to append: the size of the file does not change, so a commit need not
sync that as well. So the size of the file says little. What is in use are the frames that bear
the salts of the header, in a row from the start (sqlite.org/fileformat2.html, 4.1 and 4.2).

The file may be opened and closed freely: SQLite's locks are on the database and on the
``-shm`` file, never on this one.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

_HEADER = 32
_FRAME_HEADER = 24
_SALTS = slice(16, 24)
_FRAME_SALTS = slice(8, 16)
_LARGEST_PAGE = 65_536


class WalUsage(NamedTuple):
    """The log at one moment; approximately, while somebody writes."""

    salts: bytes
    """Others each time that it begins anew; empty where there is no log."""
    frames: int
    """Pages in use."""
    frame_size: int
    """Bytes of each."""

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self.frames * self.frame_size


NO_LOG = WalUsage(b"", 0, 0)


def read_log(path: Path) -> WalUsage:
    """Look at the log in the file at ``path``."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return NO_LOG
    try:
        header = os.pread(descriptor, _HEADER, 0)
        if len(header) < _HEADER:
            return NO_LOG
        (page_size,) = struct.unpack_from(">I", header, 8)
        frame_size = _FRAME_HEADER + (_LARGEST_PAGE if page_size == 1 else page_size)
        length = os.fstat(descriptor).st_size
        frames = _in_use(descriptor, header[_SALTS], frame_size, (length - _HEADER) // frame_size)
        return WalUsage(header[_SALTS], frames, frame_size)
    except OSError:
        return NO_LOG
    finally:
        os.close(descriptor)


def _in_use(descriptor: int, salts: bytes, frame_size: int, most: int) -> int:
    """Return how many frames bear the salts, by bisection: all up to one, and none behind it."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        frame = os.pread(descriptor, _FRAME_HEADER, _HEADER + middle * frame_size)
        if frame[_FRAME_SALTS] == salts:
            low = middle + 1
        else:
            high = middle
    return low
