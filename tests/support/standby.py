"""A primary of PostgreSQL with one standby, for tests of replication.

The standby is a real one: a base backup that streams from the primary. Both run as the processes of
``tests.support.postgres``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.support.postgres import PostgresProcess, execute, postgres_folder
from tests.support.waiting import WITHIN, until_async

NAME = "standby1"
"""Its ``application_name``, which ``synchronous_standby_names`` refers to."""

_SYNC = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"


class ReplicatedPostgres:
    """A primary and its synchronous standby."""

    def __init__(self, folder: Path) -> None:
        """Keep both below ``folder``, whose path must be short."""
        self.primary = PostgresProcess(folder / "a")
        self.standby = PostgresProcess(folder / "b")

    async def start(self) -> None:
        """Start both, and wait until the standby is synchronous."""
        self.primary.start()
        self.standby.follow(self.primary, NAME, WITHIN)
        self.standby.start()
        await self.configure(synchronous_standby_names=NAME)
        await self.until_synchronous()

    def stop(self) -> None:
        """Stop both if they run."""
        self.standby.stop()
        self.primary.stop()

    @property
    def dsn(self) -> str:
        """Connection string that names both hosts, first the one that begins as the primary."""
        hosts = f"{self.primary.data.parent},{self.standby.data.parent}"
        return f"postgresql://postgres@/postgres?host={hosts}"

    async def configure(self, **settings: str) -> None:
        """Change settings of the primary that need no restart."""
        for name, value in settings.items():
            await execute(self.primary.dsn, f"ALTER SYSTEM SET {name} = '{value}'")
        await execute(self.primary.dsn, "SELECT pg_reload_conf()")

    async def until_synchronous(self, count: int = 1) -> None:
        """Wait until ``count`` synchronous standbys stream; 0: none does."""

        async def holds() -> bool:
            found: int = await self.value(_SYNC)
            return found == count

        await until_async(holds)

    async def value(self, sql: str, *, standby: bool = False) -> Any:
        """Return a value from the primary, or from the standby."""
        process = self.standby if standby else self.primary
        connection = await asyncpg.connect(process.dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    @asynccontextmanager
    async def frozen_standby(self) -> AsyncIterator[None]:
        """Suspend the standby's process that receives the changes."""
        receiver: int = await self.value("SELECT pid FROM pg_stat_wal_receiver", standby=True)
        os.kill(receiver, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(receiver, signal.SIGCONT)


@contextmanager
def replicated_postgres() -> Iterator[ReplicatedPostgres]:
    """Provide a primary and a standby that are not started yet; stop them at the end."""
    with postgres_folder() as folder:
        both = ReplicatedPostgres(folder)
        try:
            yield both
        finally:
            both.stop()
