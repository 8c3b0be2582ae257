"""Server command with planted faults, a controllable clock, and delays.

The product contains none of this. As a module it patches the real modules and then runs the real
command: ``CHAOS_PLANT`` names a planted fault (see ``plants``), ``CHAOS_CLOCK`` the file of the
`FaultSwitches`, with which the campaign controls the other faults while the server runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from tools.chaos.fault_switches import FaultSwitches

T = TypeVar("T")


def set_clock(switches: FaultSwitches) -> None:
    """Offset ``time.time`` and ``time.time_ns`` by the value of the switch.

    The monotonic clock is unchanged, as when an operator sets the clock of a machine. Times that C
    code reads from the system are unchanged, too.
    """
    true_time, true_time_ns = time.time, time.time_ns

    def wrong_time() -> float:
        return true_time() + switches["clock"]

    def wrong_time_ns() -> int:
        return true_time_ns() + int(switches["clock"] * 1_000_000_000)

    time.time, time.time_ns = wrong_time, wrong_time_ns


def set_delay(switches: FaultSwitches) -> None:
    """Delay deliveries to PostgreSQL by the value of the switch.

    Rows read by the backfill and entries of the journal are then outdated when they are sent.
    """
    from sagastore_server.postgresql import journal_apply  # noqa: PLC0415 - only where it is wanted

    def held_up(original: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def slowly(*args: Any) -> T:
            found = await original(*args)
            await asyncio.sleep(switches["delivery"])
            return found

        return slowly

    journal_apply.rows_once = held_up(journal_apply.rows_once)  # type: ignore[assignment]
    journal_apply.steps_of = held_up(journal_apply.steps_of)  # type: ignore[assignment]


def set_reads(switches: FaultSwitches) -> None:
    """Make reads of PostgreSQL fail, and reads of SQLite wait for a connection."""
    import asyncpg  # noqa: PLC0415 - only where it is wanted

    from sagastore_server.postgresql.pool import Pool  # noqa: PLC0415
    from sagastore_server.sqlite.readers import ReaderPool  # noqa: PLC0415

    read_once, acquire = Pool._read_once, ReaderPool._acquire

    async def failing(self: Pool, read: Any, begin: str) -> Any:
        if random.random() < switches["postgres reads fail"]:
            raise asyncpg.QueryCanceledError("canceling statement due to statement timeout")
        return await read_once(self, read, begin)

    async def waiting(self: ReaderPool) -> Any:
        # As behind long searches that occupy every connection: the snapshot is taken after the
        # wait.
        if self._admitting.is_set() and not self._closing:
            await asyncio.sleep(random.random() * switches["sqlite reads wait"])
        return await acquire(self)

    Pool._read_once, ReaderPool._acquire = failing, waiting  # type: ignore[method-assign]


def set_commits(switches: FaultSwitches) -> None:
    """Delay commits of SQLite, as on a slow disk, and report them a little late."""
    from sagastore_server.sqlite.writer import SQLiteGroupWriter  # noqa: PLC0415

    attempt = SQLiteGroupWriter._commit_once

    def slowly(self: SQLiteGroupWriter, group: Any) -> Any:
        time.sleep(switches["commits wait"])
        outcomes = attempt(self, group)
        # Readers of the file can see the rows now; the event loop does not know of the commit yet.
        time.sleep(switches["commits wait"] / 4)
        return outcomes

    SQLiteGroupWriter._commit_once = slowly  # type: ignore[method-assign]


def main() -> None:
    """Apply the patches and run the command."""
    from sagastore_server.cli.main import main as run_command  # noqa: PLC0415 - in this process only

    if name := os.environ.get("CHAOS_PLANT"):
        from tools.chaos import plants  # noqa: PLC0415 - it imports the whole server

        plants.put(name)
    if file := os.environ.get("CHAOS_CLOCK"):
        switches = FaultSwitches(Path(file))
        for patch in (set_clock, set_delay, set_reads, set_commits):
            patch(switches)

    run_command()


if __name__ == "__main__":
    main()
