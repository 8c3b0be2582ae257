"""The usual command with something wrong in it: planted faults, a clock that jumps, delays.

Nothing of this is in the product. As a module it patches the real modules and then runs
the real command: ``CHAOS_PLANT`` names a planted fault (see ``planted``), ``CHAOS_CLOCK``
the file of the `Levers`, by which the campaign changes the rest while the server runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from tools.chaos.levers import Levers

T = TypeVar("T")


def set_clock(levers: Levers) -> None:
    """Let ``time.time`` and ``time.time_ns`` be wrong by what the lever says at the moment.

    The monotonic clock is as it should be, as it is where somebody sets the clock of a
    machine. What C code asks the system for itself is not changed.
    """
    true_time, true_time_ns = time.time, time.time_ns

    def wrong_time() -> float:
        return true_time() + levers["clock"]

    def wrong_time_ns() -> int:
        return true_time_ns() + int(levers["clock"] * 1_000_000_000)

    time.time, time.time_ns = wrong_time, wrong_time_ns


def set_delay(levers: Levers) -> None:
    """Let time pass where a process may be held up, by what the lever says at the moment.

    Rows that the backfill has read are old by then, as are the entries of the journal.
    """
    from sagastore_server.postgresql import journal_apply  # noqa: PLC0415 - only where it is wanted

    def held_up(original: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def slowly(*args: Any) -> T:
            found = await original(*args)
            await asyncio.sleep(levers["delivery"])
            return found

        return slowly

    journal_apply.rows_once = held_up(journal_apply.rows_once)  # type: ignore[assignment]
    journal_apply.steps_of = held_up(journal_apply.steps_of)  # type: ignore[assignment]


def set_reads(levers: Levers) -> None:
    """Let reads of PostgreSQL fail alone, and reads of SQLite wait for a connection."""
    import asyncpg  # noqa: PLC0415 - only where it is wanted

    from sagastore_server.postgresql.pool import Pool  # noqa: PLC0415
    from sagastore_server.sqlite.readers import ReaderPool  # noqa: PLC0415

    read_once, acquire = Pool._read_once, ReaderPool._acquire

    async def failing(self: Pool, read: Any) -> Any:
        if random.random() < levers["postgres reads fail"]:
            raise asyncpg.QueryCanceledError("canceling statement due to statement timeout")
        return await read_once(self, read)

    async def waiting(self: ReaderPool) -> Any:
        # As behind long searches that hold every connection: the snapshot comes after it.
        if self._admitting.is_set() and not self._closing:
            await asyncio.sleep(random.random() * levers["sqlite reads wait"])
        return await acquire(self)

    Pool._read_once, ReaderPool._acquire = failing, waiting  # type: ignore[method-assign]


def set_commits(levers: Levers) -> None:
    """Let commits of SQLite take longer, as on a slow disk, and be told a little late."""
    from sagastore_server.sqlite.writer import SQLiteGroupWriter  # noqa: PLC0415

    attempt = SQLiteGroupWriter._commit_once

    def slowly(self: SQLiteGroupWriter, group: Any) -> Any:
        time.sleep(levers["commits wait"])
        outcomes = attempt(self, group)
        # Readers of the file see them by now, and the event loop has not heard of them.
        time.sleep(levers["commits wait"] / 4)
        return outcomes

    SQLiteGroupWriter._commit_once = slowly  # type: ignore[method-assign]


def main() -> None:
    """Patch, and run the command."""
    if name := os.environ.get("CHAOS_PLANT"):
        from tools.chaos import planted  # noqa: PLC0415 - it imports the whole server

        planted.put(name)
    if file := os.environ.get("CHAOS_CLOCK"):
        levers = Levers(Path(file))
        for patch in (set_clock, set_delay, set_reads, set_commits):
            patch(levers)

    main()


if __name__ == "__main__":
    main()
