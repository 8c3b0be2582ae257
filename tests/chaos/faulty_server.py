"""The usual command with something wrong in it: planted faults, a clock that jumps, delays.

Nothing of this is in the product. As a module it patches the real modules and then runs
the real command: ``CHAOS_PLANT`` names a planted fault (see ``planted``), ``CHAOS_CLOCK``
a file of two numbers: by how many seconds the clock is wrong, and how long it takes from
reading what goes to PostgreSQL to sending it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def set_clock(file: Path) -> None:
    """Let ``time.time`` and ``time.time_ns`` be wrong by what ``file`` says at the moment.

    The monotonic clock is as it should be, as it is where somebody sets the clock of a
    machine. What C code asks the system for itself is not changed.
    """
    with file.open("r+b") as opened:
        offset = mmap.mmap(opened.fileno(), 16)
    true_time, true_time_ns = time.time, time.time_ns

    def wrong_by() -> float:
        (seconds,) = struct.unpack("d", offset[:8])
        return float(seconds)

    def wrong_time() -> float:
        return true_time() + wrong_by()

    def wrong_time_ns() -> int:
        return true_time_ns() + int(wrong_by() * 1_000_000_000)

    time.time, time.time_ns = wrong_time, wrong_time_ns


def set_delay(file: Path) -> None:
    """Let time pass where a process may be held up, by what ``file`` says at the moment.

    Rows that the backfill has read are old by then, as are the entries of the journal.
    """
    from sagastore_server.postgresql import follow  # noqa: PLC0415 - only where it is wanted

    with file.open("r+b") as opened:
        delay = mmap.mmap(opened.fileno(), 16)

    def held_up(original: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def slowly(*args: Any) -> T:
            found = await original(*args)
            (seconds,) = struct.unpack("d", delay[8:])
            await asyncio.sleep(seconds)
            return found

        return slowly

    follow.rows_once = held_up(follow.rows_once)  # type: ignore[assignment]
    follow.steps_of = held_up(follow.steps_of)  # type: ignore[assignment]


def main() -> None:
    """Patch, and run the command."""
    if clock := os.environ.get("CHAOS_CLOCK"):
        set_clock(Path(clock))
        set_delay(Path(clock))
    if name := os.environ.get("CHAOS_PLANT"):
        from tests.chaos import planted  # noqa: PLC0415 - it imports the whole server

        planted.put(name)
    from sagastore_server import cli  # noqa: PLC0415 - after the patches

    cli.main()


if __name__ == "__main__":
    main()
