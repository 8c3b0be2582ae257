"""The usual command with something wrong in it: planted faults, and a clock that jumps.

Nothing of this is in the product. As a module it patches the real modules and then runs
the real command: ``CHAOS_PLANT`` names a planted fault (see ``planted``), ``CHAOS_CLOCK``
a file of eight bytes, by how many seconds the clock is wrong.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path


def set_clock(file: Path) -> None:
    """Let ``time.time`` and ``time.time_ns`` be wrong by what ``file`` says at the moment.

    The monotonic clock is as it should be, as it is where somebody sets the clock of a
    machine. What C code asks the system for itself is not changed.
    """
    with file.open("r+b") as opened:
        offset = mmap.mmap(opened.fileno(), 8)
    true_time, true_time_ns = time.time, time.time_ns

    def wrong_by() -> float:
        (seconds,) = struct.unpack("d", offset[:8])
        return float(seconds)

    def wrong_time() -> float:
        return true_time() + wrong_by()

    def wrong_time_ns() -> int:
        return true_time_ns() + int(wrong_by() * 1_000_000_000)

    time.time, time.time_ns = wrong_time, wrong_time_ns


def main() -> None:
    """Patch, and run the command."""
    if clock := os.environ.get("CHAOS_CLOCK"):
        set_clock(Path(clock))
    if name := os.environ.get("CHAOS_PLANT"):
        from tests.chaos import planted  # noqa: PLC0415 - it imports the whole server

        planted.put(name)
    from sagastore_server import cli  # noqa: PLC0415 - after the patches

    cli.main()


if __name__ == "__main__":
    main()
