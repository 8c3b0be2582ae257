"""Levers: numbers in a file that change how a patched server behaves while it runs.

The campaign writes them, the server's process reads them (`faulty_server`); both map the
same file. Every lever is a number of seconds or a share, and 0 switches it off.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

SWITCHES = ("clock", "delivery", "postgres reads fail", "sqlite reads wait", "commits wait")
"""By name: seconds that the wall clock is wrong; seconds between reading what goes to PostgreSQL
and sending it; share of the reads of PostgreSQL that fail; seconds that a read of SQLite waits
for a connection; seconds that a commit of SQLite takes longer."""

_SIZE = struct.calcsize("d")


class FaultSwitches:
    """The numbers, in a file that both processes map."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Map the file at ``path``; ``create``: make it, with every lever at 0."""
        if create:
            path.write_bytes(bytes(_SIZE * len(SWITCHES)))
        with path.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), _SIZE * len(SWITCHES))

    def __getitem__(self, name: str) -> float:
        """Return the number of a lever."""
        (number,) = struct.unpack_from("d", self._numbers, _SIZE * SWITCHES.index(name))
        return float(number)

    def __setitem__(self, name: str, number: float) -> None:
        """Change the number of a lever."""
        struct.pack_into("d", self._numbers, _SIZE * SWITCHES.index(name), number)

    def reset(self) -> None:
        """Switch all of them off."""
        for name in SWITCHES:
            self[name] = 0.0

    def close(self) -> None:
        """Unmap the file."""
        self._numbers.close()
