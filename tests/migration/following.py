"""A real source and a real target, with as little between them as will do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from sagastore_server.migration.auxiliary_rows import all_auxiliary_rows
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.migration import BackfillState
from sagastore_server.storage.model import Message
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    BackfillMark,
    Lease,
    MigrationState,
)


class Following:
    """Applies the journal of ``source`` to ``target`` while it runs."""

    def __init__(self, path: Path, dsn: str) -> None:
        self.dsn = dsn
        self.source = SQLiteSource(path)
        self.target = PostgreSQLTarget(PostgreSQLOptions(dsn, pool_min=1, pool_max=8))
        self.lease = Lease("here:1:2", "a-session")
        self.applied = 0
        self._progress = asyncio.Condition()
        self._committed = asyncio.Event()
        self._runs = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.source.open()
        self.source.on_commit(self._committed.set)
        self.applied = await self.source.set_state(MigrationState(Phase.DUAL_WRITE, 2))
        await self.target.open()
        await self.target.claim(self.lease, self.source.store_id, Phase.DUAL_WRITE, 2)
        await self.target.set_phase(self.lease, Phase.DUAL_WRITE, 2, self.applied)
        self.resume()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.source.close()
        await self.target.close()

    def pause(self) -> None:
        """Apply nothing for a while."""
        self._runs.clear()

    def resume(self) -> None:
        self._runs.set()

    async def reach(self, sequence: int, within: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within), self._progress:
                await self._progress.wait_for(lambda: self.applied >= sequence)
                return True
        return False

    async def settle(self) -> None:
        """Wait until all that is committed has been applied."""
        assert await self.reach(self.source.committed, 60)

    async def copy(self, upto: str = "\U0010ffff") -> None:
        """Copy what was there before the journal."""
        after, more = "", True
        while more:
            page = await self.source.scan_ids(after, upto, 500)
            more = page.more
            if page.messages:
                after = page.messages[-1].id
                mark = BackfillMark(BackfillState.RUNNING, cursor=after, upto=upto)
                await self.target.copy(self.lease, page.messages, mark)

    async def carry(self) -> None:
        mark = (await self.target.renew(self.lease)).backfill
        await self.target.carry(self.lease, AuxiliaryRows(), mark, first=True)
        async for rows in all_auxiliary_rows(self.source):
            await self.target.carry(self.lease, rows, mark, first=False)
        await self.source.journal_records()
        await self.settle()

    async def plant(self, sql: str, *arguments: object) -> None:
        """Change the target directly, without the replicator."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(f"SET sagastore.session TO '{self.lease.session}'")
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    async def _run(self) -> None:
        while True:
            await self._runs.wait()
            self._committed.clear()
            committed = self.source.committed
            entries = await self.source.journal(self.applied, 100)
            if not self._runs.is_set():
                continue  # Paused meanwhile: what was read may be newer than that.
            if entries:
                await self.target.apply(self.lease, entries)
            async with self._progress:
                self.applied = entries[-1].sequence if entries else max(self.applied, committed)
                self._progress.notify_all()
            if not entries:
                await self._committed.wait()


@asynccontextmanager
async def following(path: Path, dsn: str) -> AsyncIterator[Following]:
    """Open both stores, the one following the other."""
    pair = Following(path, dsn)
    try:
        await pair.open()
        yield pair
    finally:
        await pair.close()


def everything_is_expected(row: Message) -> bool:
    return True


async def rows_of(pair: Following, ids: Sequence[str]) -> bool:
    """Tell whether both stores hold the same under these ids."""
    truth, copy = await pair.source.batch_get(ids), await pair.target.batch_get(ids)
    return bool(truth == copy)
