"""Reader of the write-ahead log file: how much of it is in use.

The length of the file does not say. When SQLite restarts the log it keeps the file's length and
overwrites it from the start, because overwriting is cheaper than appending: a commit does not
have to sync a new length. The part in use is the run of frames at the start whose salts equal
those of the header (sqlite.org/fileformat2.html, 4.1 and 4.2).

Opening and closing this file is safe: SQLite's locks are on the database and on the ``-shm``
file, never on the log.
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
    """The part of the log that is in use. Approximate during a write."""

    salts: bytes
    """Random values that change with each restart of the log; empty if there is no log."""
    frames: int
    """Pages in use."""
    frame_size: int
    """Bytes of one frame."""

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self.frames * self.frame_size


NO_LOG = WalUsage(b"", 0, 0)


def read_log(path: Path) -> WalUsage:
    """Return the usage of the log in the file at ``path``; `NO_LOG` if there is none.

    Raises:
        OSError: The file exists and cannot be read.

    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
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
    finally:
        os.close(descriptor)


def _in_use(descriptor: int, salts: bytes, frame_size: int, most: int) -> int:
    """Return how many frames have the salts, by bisection: they are a run from the start."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        frame = os.pread(descriptor, _FRAME_HEADER, _HEADER + middle * frame_size)
        if frame[_FRAME_SALTS] == salts:
            low = middle + 1
        else:
            high = middle
    return low
