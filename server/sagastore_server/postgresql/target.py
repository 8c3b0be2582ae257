"""PostgreSQLTarget: `MigrationTarget` on one PostgreSQL database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql import auxiliary_rows, indexes, journal_apply
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.ddl_locks import TableLocks, patiently
from sagastore_server.postgresql.diagnosis import cannot_open
from sagastore_server.postgresql.errors import DRIVER_ERRORS, translating
from sagastore_server.postgresql.holder import announce
from sagastore_server.postgresql.lease import (
    GUARDED,
    Claim,
    check_mark,
    hold,
    note_mark,
    record_from_row,
    take,
)
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.schema import (
    HAS_SEQUENCES,
    HAS_SESSIONS,
    MIGRATES_FROM,
    SCHEMA_VERSION,
    check_server,
    check_table_names,
    version_of,
)
from sagastore_server.postgresql.session import BEGIN_SNAPSHOT
from sagastore_server.runtime.supervisor import Supervisor
from sagastore_server.storage.counts import (
    CommonCounts,
    PendingSince,
    RecordCounts,
    at_position,
)
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import Message, Store, StoreHealth
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import (
    AuxiliaryRows,
    AuxiliaryTally,
    BackfillMark,
    Entry,
    IndexState,
    Lease,
    MigrationTarget,
    PreparedRows,
    TargetRecord,
    TargetState,
)

T = TypeVar("T")

CLAIM_PATIENCE = 10.0
"""Seconds for which a claim waits for a table that is in use."""


class PostgreSQLTarget(PostgreSQLStorage, MigrationTarget):
    """Migration target, and a normal `PostgreSQLStorage` after ``finish``.

    Every writing transaction starts with a check of the lease, which locks the single row of
    ``migration`` (``lease.hold``). So:

    * these transactions run one at a time, whichever server holds the lease;
    * triggers refuse all other writers until ``finish``.
    """

    def __init__(
        self,
        options: PostgreSQLOptions,
        supervisor: Supervisor | None = None,
        *,
        tracer: Tracer = NO_TRACER,
        instruments: Instruments | None = None,
        advertised: Callable[[], str] = str,
    ) -> None:
        """As ``PostgreSQLStorage``.

        ``advertised`` returns the address at which other servers reach this one; empty: none.
        """
        super().__init__(options, supervisor, tracer=tracer, instruments=instruments)
        self._advertised = advertised
        self._opening = asyncio.Lock()
        self._pool.tells_positions = False

    async def open(self) -> None:
        """See the contract. Does nothing if the store is open, even if it does not answer."""
        # One at a time: a failed attempt closes the pool, which must not be another attempt's.
        async with self._opening:
            if self._writer is None:
                await self._open()

    async def _open(self) -> None:
        try:
            await self._pool.open()
            self._start_watcher()
            async with self._pool.connection() as connection:
                await check_server(connection)
        except (*DRIVER_ERRORS, ValueError, StorageError) as exc:
            await self.close()
            raise cannot_open(self.place, exc, self._pool.connector) from exc
        except BaseException:
            await self.close()
            raise
        self._start_writer()

    async def health(self) -> StoreHealth:
        """See the contract; a database without the schema is healthy and empty."""
        if not self._schema_version:
            try:
                there = await self._pool.value(QUERIES["has_versions"])
            except StorageError as exc:
                return StoreHealth(Store.POSTGRESQL, False, str(exc), -1, 0)
            if not there:
                return StoreHealth(Store.POSTGRESQL, True, "", 0, 0)
        return await super().health()

    def on_connection_loss(self, listener: Callable[[], None]) -> None:
        """See the contract."""
        self._pool.on_loss.append(listener)

    async def count_beside(self, pending_since: PendingSince) -> CommonCounts | None:
        """See the contract."""
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        with translating():
            async with (
                self._pool.connection() as connection,
                self._pool.transaction(connection, begin),
            ):
                record = await connection.fetchrow(MIGRATION["count_at_position"])
                pending = None if record is None else await pending_since(record["applied"])
                if pending is None:
                    return None
                ids = (pending.messages, pending.sessions, pending.files)
                held = await connection.fetchrow(MIGRATION["count_pending"], *ids)
        position, *counts = record
        return at_position(position, RecordCounts(*counts), RecordCounts(*held), pending)

    # ------------------------------------------------------------------ the record

    async def inspect(self) -> TargetState:
        """See the contract."""
        with translating():
            async with (
                self._pool.connection() as connection,
                self._pool.transaction(connection, BEGIN_SNAPSHOT),
            ):
                return await _inspected(connection)

    async def claim(
        self, lease: Lease, source: str, phase: Phase, epoch: int, *, steal: bool = False
    ) -> TargetRecord:
        """See the contract."""
        wanted = Claim(lease, source, phase, epoch, steal)

        async def attempt(locks: TableLocks) -> TargetRecord:
            record = await take(locks, wanted, self.place, self._compatibility)
            await announce(locks.connection, lease.session, self._advertised())
            return record

        with translating():
            async with self._pool.connection() as connection:
                record = await patiently(self._pool, connection, attempt, CLAIM_PATIENCE)
        await self._reanalyser.start(partial(hold, lease=lease, compatibility=self._compatibility))
        self._schema_version = max(self._schema_version, SCHEMA_VERSION)
        return record

    async def renew(self, lease: Lease) -> TargetRecord:
        """See the contract."""
        return await self._holding(lease, _nothing)

    async def release(self, lease: Lease) -> None:
        """See the contract."""
        await self._reanalyser.stop()
        with translating():
            async with (
                self._pool.connection() as connection,
                self._pool.transaction(connection, QUERIES["begin"]),
            ):
                await connection.execute(MIGRATION["release"], *lease)

    async def set_phase(
        self, lease: Lease, phase: Phase, epoch: int, base: int, after: int | None = None
    ) -> TargetRecord:
        """See the contract."""

        async def note(connection: Connection) -> None:
            await connection.execute(MIGRATION["set_phase"], phase.value, epoch)

        record = await self._holding(lease, note, base, after)
        return record._replace(phase=phase, epoch=epoch)

    async def finish(
        self,
        lease: Lease,
        epoch: int,
        last_revision: int,
        after: int | None = None,
        before: BackfillMark | None = None,
    ) -> None:
        """See the contract."""

        async def end(connection: Connection) -> None:
            await connection.execute(MIGRATION["raise_numbers"], last_revision)
            await connection.execute(MIGRATION["finish"], epoch)
            await connection.execute(MIGRATION["drop_guard"])

        await self._holding(lease, end, after=after, before=before)
        # The migration is finished, whether or not this succeeds; every start repeats it.
        with contextlib.suppress(StorageError, *DRIVER_ERRORS):
            await self._enter_timelines()

    def serve_alone(self) -> None:
        """See the contract."""
        self._pool.tells_positions = True
        if self._writer is not None:
            self._replicas.start()

    # ------------------------------------------------------------------ the rows

    async def apply(self, lease: Lease, entries: Sequence[Entry], after: int | None = None) -> None:
        """See the contract."""
        if not entries:
            return
        steps = await journal_apply.steps_of(entries, self._worker_pool)
        last = max(entry.sequence for entry in entries)
        began = time.perf_counter()
        await self._holding(lease, partial(journal_apply.run, steps=steps), last, after)
        seconds = time.perf_counter() - began
        self._on_group(Store.POSTGRESQL, len(entries), len(entries), seconds)

    async def prepare(self, messages: Sequence[Message]) -> PreparedRows:
        """See the contract."""
        return journal_apply.ReadyEntries(
            await journal_apply.rows_once(messages, self._worker_pool)
        )

    async def copy(
        self,
        lease: Lease,
        messages: Sequence[Message] | PreparedRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        least: int = 0,
    ) -> BackfillMark:
        """See the contract."""
        ready = messages if isinstance(messages, PreparedRows) else await self.prepare(messages)
        assert isinstance(ready, journal_apply.ReadyEntries)  # noqa: S101 - no other kind is made here
        rows = ready.rows

        async def store(connection: Connection) -> None:
            await note_mark(connection, mark)
            if rows:
                await journal_apply.fill(connection, rows)

        await self._holding(lease, store, before=before, least=least)
        return mark

    async def carry(
        self,
        lease: Lease,
        rows: AuxiliaryRows,
        mark: BackfillMark,
        before: BackfillMark | None = None,
        *,
        first: bool,
    ) -> None:
        """See the contract."""

        async def store(connection: Connection) -> None:
            await note_mark(connection, mark)
            await auxiliary_rows.store(connection, rows, first=first)

        await self._holding(lease, store, before=before)

    async def carried(self) -> AuxiliaryTally:
        """See the contract."""
        with translating():
            async with (
                self._pool.dedicated() as connection,
                self._pool.transaction(connection, BEGIN_SNAPSHOT),
            ):
                return await auxiliary_rows.tally(connection)

    async def count(self) -> int:
        """See the contract."""
        with translating():
            async with self._pool.dedicated() as connection:
                count: int = await connection.fetchval(QUERIES["count_messages"])
                return count

    # ------------------------------------------------------------------ the indexes

    async def indexes(self) -> list[IndexState]:
        """See the contract."""
        return await indexes.states(self._pool)

    async def build_index(self, name: str, progress: Callable[[float], None]) -> None:
        """See the contract."""
        with translating():
            await indexes.build(self._pool, name, progress)

    async def refresh_statistics(self) -> None:
        """See the contract."""
        with translating():
            async with self._pool.dedicated() as connection:
                await connection.execute(f"ANALYZE {', '.join(GUARDED)}")

    # ------------------------------------------------------------------ transactions

    async def _holding(
        self,
        lease: Lease,
        work: Callable[[Connection], Awaitable[None]],
        applied: int = 0,
        after: int | None = None,
        before: BackfillMark | None = None,
        *,
        least: int = 0,
    ) -> TargetRecord:
        """Run ``work`` in a transaction that holds the lease; return the previous record.

        Unlike other reads and writes, it is not retried if an idle connection had died: the new
        connection may lead to a restored database, or to a standby that lacks the last commits.
        The replicator must inspect the target first.

        Args:
            lease: The lease.
            work: Runs in the transaction.
            applied: New journal position, if it is greater than the stored one.
            after: Journal position that the record must have; None for any.
            before: Backfill mark that the record must have; None for any.
            least: Journal position that the record must have reached.

        """
        # A renewal stores nothing, so the lease survives the loss of a required standby.
        stores = work is not _nothing
        with translating():
            async with (
                self._pool.connection() as connection,
                self._pool.transaction(connection, QUERIES["begin"], acknowledged=stores),
            ):
                record = await hold(
                    connection, lease, applied, after, compatibility=self._compatibility
                )
                check_mark(record, before, least)
                await work(connection)
            return record


async def _nothing(_: Connection) -> None:
    """Do nothing but hold the lease."""


async def _inspected(connection: Connection) -> TargetState:
    version = await version_of(connection)
    if version == 0:
        await check_table_names(connection)
        return TargetState(0, True, None)
    record = None
    if version >= MIGRATES_FROM:
        statement = "record" if version >= HAS_SEQUENCES else "record_before_order"
        row = await connection.fetchrow(MIGRATION[statement])
        record = None if row is None else record_from_row(row)
    contents = "contents" if version >= HAS_SESSIONS else "contents_before_sessions"
    return TargetState(version, not await connection.fetch(MIGRATION[contents]), record)
