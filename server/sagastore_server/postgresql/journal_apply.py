"""Application of journal entries and of copied rows to the migration target.

All statements run in a transaction that holds the lease (``lease.hold``). So these transactions
run one at a time, and there is no other writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sagastore_server.postgresql.batch import COPY_FROM, columns_of, copy_rows, rows_of
from sagastore_server.postgresql.files import FileSteps, apply_files, file_steps_of
from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import MIGRATION, QUERIES
from sagastore_server.postgresql.rows import Row
from sagastore_server.postgresql.sessions import session_columns
from sagastore_server.runtime.worker_pool import WorkerPool
from sagastore_server.storage.model import Message
from sagastore_server.storage.replication import Entry, PreparedRows
from sagastore_server.storage.sessions import RecordKind, Session


class TombstoneWrite(NamedTuple):
    """A deletion."""

    id: str
    revision: int
    deleted_at: int


@dataclass(frozen=True)
class ReadyEntries(PreparedRows):
    """Rows in the form for PostgreSQL, one per id."""

    rows: list[Row]


class Steps(NamedTuple):
    """SQL arguments for a batch of entries."""

    forgotten: list[str]
    """Ids whose row and tombstone are removed first, because their entry is ``forced``."""
    burials: list[TombstoneWrite]
    rows: list[Row]
    forgotten_sessions: list[str]
    """Sessions whose row is removed first, because their entry is ``forced``."""
    sessions: list[Session]
    files: FileSteps


async def steps_of(entries: Iterable[Entry], worker_pool: WorkerPool) -> Steps:
    """Return the steps for the entries. Of several entries with one id, the last counts."""
    latest: dict[str, Entry] = {}
    sessions: dict[str, Session] = {}
    forgotten_sessions: list[str] = []
    given = list(entries)
    for entry in given:
        if entry.kind is RecordKind.FILE:
            continue
        if entry.session is not None:
            sessions[entry.session.session_id] = entry.session
        if entry.kind is RecordKind.SESSION:
            if entry.forced:
                forgotten_sessions.append(entry.id)
            continue
        former = latest.get(entry.id)
        forced = entry.forced or (former is not None and former.forced)
        latest[entry.id] = entry._replace(forced=forced)
    ordered = sorted(latest.values(), key=lambda entry: entry.id)
    messages = [entry.message for entry in ordered if entry.message is not None]
    return Steps(
        [entry.id for entry in ordered if entry.forced],
        [
            TombstoneWrite(entry.id, entry.buried, entry.written_at)
            for entry in ordered
            if entry.buried
        ],
        await rows_of(messages, worker_pool),
        forgotten_sessions,
        [sessions[key] for key in sorted(sessions)],
        file_steps_of(given),
    )


async def run(connection: Connection, steps: Steps) -> None:
    """Apply the steps; newer rows stay."""
    if steps.forgotten:
        await connection.execute(MIGRATION["forget"], steps.forgotten)
    if steps.burials:
        await connection.execute(MIGRATION["bury"], *columns_of(steps.burials))
    await _upsert(connection, steps.rows)
    if steps.forgotten_sessions:
        await connection.execute(QUERIES["forget_sessions"], steps.forgotten_sessions)
    if steps.sessions:
        rows = [session_columns(session) for session in steps.sessions]
        await connection.execute(QUERIES["upsert_sessions"], *columns_of(rows))
    await apply_files(connection, steps.files)


async def fill(connection: Connection, rows: Sequence[Row]) -> None:
    """Store rows of the backfill. New ids use COPY; newer rows stay."""
    ids = [row[0] for row in rows]
    known = {row[0] for row in await connection.fetch(MIGRATION["known"], ids)}
    fresh = [row for row in rows if row[0] not in known]
    if len(fresh) < COPY_FROM:
        await _upsert(connection, rows)
        return
    await copy_rows(connection, fresh)
    await _upsert(connection, [row for row in rows if row[0] in known])


async def rows_once(messages: Iterable[Message], worker_pool: WorkerPool) -> list[Row]:
    """Return the rows of messages. Of several with one id, the newest counts."""
    latest: dict[str, Message] = {}
    for message in messages:
        if message.id not in latest or latest[message.id].revision < message.revision:
            latest[message.id] = message
    return await rows_of(list(latest.values()), worker_pool)


async def _upsert(connection: Connection, rows: Sequence[Row]) -> None:
    if rows:
        await connection.execute(MIGRATION["upsert"], *columns_of(rows))
