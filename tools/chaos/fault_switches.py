"""Switches that change the behaviour of a patched server at run time.

The campaign and the server process (`faulty_server`) map the same file. Each switch is a number:
seconds or a share; 0 switches the fault off.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

SWITCHES = ("clock", "delivery", "postgres reads fail", "sqlite reads wait", "commits wait")
"""By name: offset of the wall clock in seconds; seconds between reading rows for PostgreSQL and
sending them; share of failing reads of PostgreSQL; seconds that a read of SQLite waits for a
connection; additional seconds of a SQLite commit.
"""

_SIZE = struct.calcsize("d")


class FaultSwitches:
    """Switch values in a file that both processes map."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Map the file at ``path``; ``create`` makes it, with every switch at 0."""
        if create:
            path.write_bytes(bytes(_SIZE * len(SWITCHES)))
        with path.open("r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), _SIZE * len(SWITCHES))

    def __getitem__(self, name: str) -> float:
        """Return the value of a switch."""
        (number,) = struct.unpack_from("d", self._numbers, _SIZE * SWITCHES.index(name))
        return float(number)

    def __setitem__(self, name: str, number: float) -> None:
        """Set the value of a switch."""
        struct.pack_into("d", self._numbers, _SIZE * SWITCHES.index(name), number)

    def reset(self) -> None:
        """Switch off all faults."""
        for name in SWITCHES:
            self[name] = 0.0

    def close(self) -> None:
        """Unmap the file."""
        self._numbers.close()
