"""Planted faults: mutations of the product that the campaign must catch.

Each is a patch of the real modules, applied in the server process before the real command runs
(``faulty_server``). Most violate one rule of docs/explanation/migration.md. All are small, such as
an unnoticed regression could be.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sagastore_server.migration import attachment, migrating_service
from sagastore_server.migration.cutover import Cutover
from sagastore_server.migration.fallback import Fallback, ReplicaStatus
from sagastore_server.migration.migrating_service import MigratingService
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.router import Router, _NoAnswerError
from sagastore_server.migration.write_fence import WriteFence
from sagastore_server.postgresql.queries import MIGRATION
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.postgresql.writer import PostgreSQLGroupWriter as PostgresWriter
from sagastore_server.sqlite import connection, opening
from sagastore_server.sqlite.batch import DURABLE_ON, Batch, Touched, _columns
from sagastore_server.sqlite.ownership import Ownership
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import (
    CorruptStoreError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from sagastore_server.storage.model import Message, NewMessage, SaveResult
from sagastore_server.storage.replication import Entry, Lease, PreparedRows
from tools.chaos import failover_plants, reliability_plants  # noqa: F401 - they register their own
from tools.chaos.plant_registry import PLANTS, POWER_PLANTS, Plant, changed, plant, replace

__all__ = ["PLANTS", "POWER_PLANTS", "Plant", "put"]

FSYNC = 0.005
"""Seconds that a COMMIT takes on a typical disk; the campaign's own disks take none."""

ONE_IN = 40
"""Inverse share of the opportunities at which an intermittent fault occurs."""


_FAILURES = StorageFullError, UnavailableError, CorruptStoreError


def put(name: str) -> None:
    """Plant the fault of this name."""
    (PLANTS | POWER_PLANTS)[name].put()


# ---------------------------------------------------------------------- the writer


@plant("ack-before-commit", "SQLite's writer answers before COMMIT")
def _ack_before_commit() -> None:
    def attempt(self: Any, group: list[Any]) -> list[Any]:
        connection, now = self._connection, time.time_ns() // 1000
        self._reload_if_uncertain()
        connection.execute("BEGIN IMMEDIATE")
        ids = {key for one in group for key in one.ids}
        sessions = {key for one in group for key in one.sessions}
        touched = Touched(ids, sessions, {key for one in group for key in one.files})
        batch = Batch(connection, self._counters, now, touched, {})
        outcomes = []
        for write in group:
            try:
                outcomes.append(write.apply(batch.changes))
            except StorageError as exc:
                outcomes.append(exc)
        counters = batch.flush()
        self._report(group, outcomes)
        time.sleep(FSYNC)
        connection.execute("COMMIT")
        self._counters = counters
        return outcomes

    def run(self: Any) -> None:
        while (item := self._next()) is not None:
            if hasattr(item, "in_transaction"):
                self._report([item], [self._run_task(item)])
            elif group := self._group(item):
                self._commit(group)
                self._report([], [])

    replace(SQLiteGroupWriter, "_commit_once", attempt)
    replace(SQLiteGroupWriter, "_run", run)


@plant("ack-what-failed", "a group whose commit fails (for example: disk full) is acknowledged")
def _ack_what_failed() -> None:
    original = SQLiteGroupWriter._commit

    def commit(self: Any, group: list[Any]) -> list[Any]:
        outcomes = original(self, group)
        if all(isinstance(one, _FAILURES) for one in outcomes):
            return [
                SaveResult(write.ids[0], self._counters.revision + 1, True, DURABLE_ON)
                if len(write.ids) == 1
                else outcome
                for write, outcome in zip(group, outcomes, strict=True)
            ]
        return outcomes

    replace(SQLiteGroupWriter, "_commit", commit)


@plant("ignore-if-revision", "a Save sometimes ignores if_revision")
def _ignore_if_revision() -> None:
    original, times = Changes.save, itertools.count(1)

    def save(self: Changes, draft: NewMessage, if_revision: int | None) -> SaveResult:
        if if_revision is not None and next(times) % 10 == 0:
            if_revision = None
        return original(self, draft, if_revision)

    replace(Changes, "save", save)


@plant("forget-index", "a changed message keeps its old words in SQLite's search index")
def _forget_index() -> None:
    def update(self: Any, before: Any, after: Any) -> None:
        number = self._numbers[before.id]
        self._add("update", *_columns(after)[1:], number)

    replace(Batch, "_update", update)


# ---------------------------------------------------------------------- the journal


@plant("drop-journal-row", f"one change in {ONE_IN} is missing from the journal")
def _drop_journal_row() -> None:
    original, times = Batch._entries, itertools.count(1)

    def entries(self: Batch) -> list[tuple[object, ...]]:
        return [entry for entry in original(self) if next(times) % ONE_IN]

    replace(Batch, "_entries", entries)


@plant("prune-unconfirmed", "entries are pruned from the journal before PostgreSQL has them")
def _prune_unconfirmed() -> None:
    original = SQLiteSource.prune

    async def prune(self: SQLiteSource, upto: int) -> None:
        await original(self, self.committed)

    async def eager(self: Any) -> None:
        await self._source.prune(self._source.committed)

    replace(SQLiteSource, "prune", prune)
    replace(Replicator, "_prune", eager)


@plant("apply-out-of-order", "the first entry of a batch is applied last")
def _apply_out_of_order() -> None:
    original = PostgreSQLTarget.apply

    async def apply(
        self: PostgreSQLTarget, lease: Lease, entries: Sequence[Entry], after: int | None = None
    ) -> None:
        if len(entries) > 1:
            await original(self, lease, entries[1:])
            await asyncio.sleep(0.01)
        await original(self, lease, entries[:1])

    replace(PostgreSQLTarget, "apply", apply)


@plant("apply-late", "an entry is applied with the next batch, with its outdated content")
def _apply_late() -> None:
    original, late = PostgreSQLTarget.apply, list[Entry]()

    async def apply(
        self: PostgreSQLTarget, lease: Lease, entries: Sequence[Entry], after: int | None = None
    ) -> None:
        held, late[:] = list(late), list(entries[-1:])
        await original(self, lease, entries[:-1] or entries)
        if held:
            await original(self, lease, held)

    replace(PostgreSQLTarget, "apply", apply)


@plant("note-before-apply", "the journal position is stored before the rows")
def _note_before_apply() -> None:
    original = PostgreSQLTarget.apply

    async def apply(
        self: PostgreSQLTarget, lease: Lease, entries: Sequence[Entry], after: int | None = None
    ) -> None:
        async def nothing(_: object) -> None:
            """Only hold the lease and advance the position."""

        await self._holding(lease, nothing, entries[-1].sequence)
        await original(self, lease, entries)

    replace(PostgreSQLTarget, "apply", apply)


# ---------------------------------------------------------------------- guards in PostgreSQL


@plant("unguarded-upsert", "an older revision replaces a newer one in PostgreSQL")
def _unguarded_upsert() -> None:
    changed(MIGRATION, "upsert", "WHERE messages.revision < excluded.revision", "")


@plant("skip-tombstones", "PostgreSQL stores no tombstones of deleted messages")
def _skip_tombstones() -> None:
    changed(MIGRATION, "bury", "FROM gone\nON", "FROM gone WHERE false\nON")


@plant("skip-deletes", f"one deletion in {ONE_IN // 4} does not reach PostgreSQL")
def _skip_deletes() -> None:
    original, times = PostgreSQLTarget.apply, itertools.count(1)

    async def apply(
        self: PostgreSQLTarget, lease: Lease, entries: Sequence[Entry], after: int | None = None
    ) -> None:
        last = entries[-1].sequence
        kept = [one for one in entries if one.message or next(times) % (ONE_IN // 4)]
        if not kept or kept[-1].sequence != last:
            kept.append(Entry(last, "\x01nobody", None, 0, False, entries[-1].written_at))
        await original(self, lease, kept)

    replace(PostgreSQLTarget, "apply", apply)


@plant("backfill-skips", "the backfill omits the last row of each batch")
def _backfill_skips() -> None:
    original = PostgreSQLTarget.prepare

    async def prepare(self: PostgreSQLTarget, messages: Sequence[Message]) -> PreparedRows:
        return await original(self, messages[:-1])

    replace(PostgreSQLTarget, "prepare", prepare)


# ---------------------------------------------------------------------- fences and readers


@plant("fence-without-draining", "PostgreSQL answers reads before it has caught up")
def _fence_without_draining() -> None:
    async def catch_up(self: Any, commit: Callable[[], Any], within: float) -> bool:
        async with self._write_fence.closed(within):
            await commit()
            self.set_status(ReplicaStatus.CURRENT)
            return True

    replace(Fallback, "catch_up", catch_up)


@plant("fence-stays-open", "writes are not held while the phase changes")
def _fence_stays_open() -> None:
    @asynccontextmanager
    async def closed(self: Any, within: float) -> AsyncIterator[None]:
        yield

    replace(WriteFence, "closed", closed)


@plant("stale-fallback", "in READ_POSTGRES reads go to PostgreSQL even while it lags behind")
def _stale_fallback() -> None:
    async def read(self: Any, name: str, read: Callable[[Any], Any]) -> Any:
        phase = self._current_state.phase
        if phase.reads_postgres:
            with contextlib.suppress(_NoAnswerError):
                return await self._read_target(read)
        return await read(self._source)

    replace(Router, "_read", read)


@plant("confirm-too-soon", "in READ_POSTGRES a write does not wait for PostgreSQL")
def _confirm_too_soon() -> None:
    async def confirm(self: Any, position: int) -> bool:
        return bool(self.current)

    replace(Fallback, "confirm", confirm)


@plant("claim-both", "durable_on always contains both stores")
def _claim_both() -> None:
    original = Router._confirmed

    async def confirmed(self: Any) -> bool:
        await original(self)
        return bool(self._current_state.phase.journals)

    replace(Router, "_confirmed", confirmed)


@plant("return-too-soon", "PostgreSQL answers reads after an outage before it has caught up")
def _return_too_soon() -> None:
    def consider_return(self: Any, entries: int) -> None:
        phase = self._current_state.phase
        if phase.reads_postgres and phase.writes_sqlite and self.attached:
            self.set_status(ReplicaStatus.CURRENT)

    attach = Replicator._attach

    async def attached(self: Any) -> None:
        await attach(self)
        consider_return(self.fallback, 0)

    replace(Fallback, "consider_return", consider_return)
    replace(Replicator, "_attach", attached)


# ---------------------------------------------------------------------- start and completion


@plant("trust-old-phase", "at startup the phase in the file is trusted without asking PostgreSQL")
def _trust_old_phase() -> None:
    async def resume(self: Any) -> None:
        """Trust the phase in the file."""

    replace(MigratingService, "_resume_cutover", resume)
    for module in (migrating_service, attachment):
        replace(module, "check", lambda *_: None)


@plant("two-owners", "the file is not locked, so a second server starts on it")
def _two_owners() -> None:
    replace(Ownership, "acquire", lambda self: None)
    replace(Ownership, "release", lambda self: None)


@plant("complete-without-draining", "the last step does not wait for the journal")
def _complete_without_draining() -> None:
    async def final_check(self: Any, compared: int) -> dict[str, object]:
        return {"postgresql": {}, "verification": None}

    replace(Cutover, "_final_check", final_check)


@plant("gap-before-journal", "journalling starts a moment after the change to dual write")
def _gap_before_journal() -> None:
    original = Batch._entries
    begun: list[float] = []

    def entries(self: Batch) -> list[tuple[object, ...]]:
        begun.append(time.monotonic())
        return original(self) if time.monotonic() - begun[0] > 0.05 else []

    replace(Batch, "_entries", entries)


@plant("postgres-ack-before-commit", "in POSTGRES_ONLY a write is answered before COMMIT")
def _postgres_ack_before_commit() -> None:
    original = PostgresWriter.submit

    async def submit(
        self: Any,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Any], Any],
        *rest: Any,
    ) -> Any:
        results: list[Any] = []

        def seen(changes: Any) -> Any:
            results.append(apply(changes))
            return results[-1]

        work = asyncio.ensure_future(original(self, ids, sessions, seen, *rest))
        while not results and not work.done():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return results[0] if results else await work

    replace(PostgresWriter, "submit", submit)


# ---------------------------------------------------------------------- power loss


def _not_synced(mode: str) -> Callable[[], None]:
    def put() -> None:
        original = connection.writer_connection

        def writer_connection(path: Path) -> sqlite3.Connection:
            connection = original(path)
            connection.execute(f"PRAGMA synchronous = {mode}")
            return connection

        replace(opening, "writer_connection", writer_connection)

    return put


for _mode in ("NORMAL", "OFF"):
    _name = f"synchronous-{_mode.lower()}"
    _what = f"SQLite commits with synchronous={_mode}"
    POWER_PLANTS[_name] = Plant(_name, _what, _not_synced(_mode))
