"""SQL of one group of writes: locks and reads the stored rows, then writes all changes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sagastore_server.postgresql.compatibility import Compatibility
from sagastore_server.postgresql.files import flush_files, lock_files
from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.rows import (
    COLUMNS,
    Row,
    SearchColumns,
    message_from_row,
    row_of,
    search_columns,
)
from sagastore_server.postgresql.sessions import (
    locked_session,
    session_columns,
    session_from_row,
)
from sagastore_server.runtime.worker_pool import FEW, SHORT, WorkerPool
from sagastore_server.storage.changes import Changes, Revisions
from sagastore_server.storage.model import Message, Store
from sagastore_server.storage.session_changes import SessionChange, SessionEnds
from sagastore_server.storage.sessions import Session

DURABLE_ON = (Store.POSTGRESQL,)

_NONE: Mapping[str, SearchColumns] = MappingProxyType({})

BLOCK = 1024
"""Revisions of one value of the sequence ``message_revisions``: its increment."""

_REVISION = COLUMNS.index("revision")

COPY_FROM = 100
"""New rows from which COPY is faster than INSERT."""


class LostRaceError(Exception):
    """Another server wrote one of the new ids first: the transaction must not commit."""


async def load(
    connection: Connection,
    compatibility: Compatibility,
    ids: Iterable[Sequence[str]],
    sessions: Iterable[Sequence[str]],
    files: Iterable[Sequence[str]] = (),
) -> Changes:
    """Lock and read the rows that each write names, in an open transaction.

    Args:
        connection: The connection of the transaction.
        compatibility: Says whether this server may write.
        ids: The ids of each write.
        sessions: The sessions of each write, apart from those of stored messages.
        files: The ids of the file records of each write. Every transaction locks these first.

    Raises:
        LostRaceError: The revisions taken are not greater than the stored ones.
        OutdatedServerError: A newer server has upgraded the schema.

    """
    wanted_ids, wanted_sessions = list(ids), list(sessions)
    wanted = sorted({key for write in wanted_ids for key in write})
    named = sorted({key for write in wanted_sessions for key in write})
    # A message that leaves a session changes the session under a separate revision.
    count = 2 * sum(map(len, wanted_ids)) + sum(map(len, wanted_sessions))
    wanted_files = [key for write in files for key in write]
    count += len(wanted_files)
    records = await lock_files(connection, set(wanted_files))
    # A write of many messages does not begin in a block that it does not fit into, so at least half
    # of every block is used.
    blocks = 2 * count // BLOCK + 1
    rows = await connection.fetch(QUERIES["lock"], wanted, blocks, named)
    before = {row[0]: message_from_row(row) for row in rows if row[0] is not None}
    known = {row[7]: locked_session(row) for row in rows if row[0] is None and row[7] is not None}
    blocks_taken = [row for row in rows if row[0] is None and row[7] is None]
    compatibility.check(blocks_taken[0][10])
    ends = sorted(row[9] for row in blocks_taken)
    known |= await _further_sessions(connection, before, {*known, *named})
    stored = [one.revision for one in before.values()]
    stored += [one.revision for one in known.values()]
    stored += [one.revision for one in records.values()]
    if ends[0] - BLOCK < max(stored, default=0):
        raise LostRaceError
    revisions = Revisions([range(end - BLOCK + 1, end + 1) for end in ends])
    return Changes(before, known, revisions, time.time_ns() // 1000, DURABLE_ON, files=records)


async def _further_sessions(
    connection: Connection, messages: Mapping[str, Message], known: set[str]
) -> dict[str, Session]:
    """Lock and read the sessions of messages that are not known yet.

    That is rare: a message has moved to another session between the two locks, or the row of its
    session is missing, because the tables were changed directly. Then it is counted again.
    """
    named = {one.session_id for one in messages.values() if one.session_id is not None}
    missing = sorted(named - known)
    if not missing:
        return {}
    await connection.execute(QUERIES["complete_sessions"], missing)
    rows = await connection.fetch(QUERIES["lock_sessions"], missing)
    return {row[0]: session_from_row(row) for row in rows}


async def flush(
    connection: Connection,
    changes: Changes,
    worker_pool: WorkerPool,
    known: Mapping[str, SearchColumns],
    *,
    copy: bool,
) -> None:
    """Write the changes, in the transaction of ``load``.

    Args:
        connection: The connection of the transaction.
        changes: The changes.
        worker_pool: Computes the search columns that are not known.
        known: Search columns by content, as far as they are known.
        copy: Whether COPY is allowed, whose errors do not name the conflicting row.

    Raises:
        LostRaceError: Another server saved a new id or created a new session since ``load``, or
            saved and deleted a new id under a greater revision.

    """
    stored = changes.before
    gone = [key for key, message in changes.after.items() if message is None and key in stored]
    kept = [message for message in changes.after.values() if message is not None]
    if gone:
        await connection.execute(QUERIES["delete"], gone)
    if changes.buried:
        await _bury(connection, changes)
    if kept:
        rows = await rows_of(kept, worker_pool, known)
        await _change(connection, [row for row in rows if row[0] in stored], "update")
        await _insert(connection, [row for row in rows if row[0] not in stored], copy)
    if changes.sessions:
        await _write_sessions(connection, changes.sessions)
    if changes.files.after and not await flush_files(connection, changes.files, changes.now):
        raise LostRaceError


async def _write_sessions(connection: Connection, changed: list[SessionChange]) -> None:
    """Store sessions, once their messages are stored."""
    stale = {change.session_id: change for change in changed if change.stale}
    if stale:
        for session_id, *ends in await connection.fetch(QUERIES["session_ends"], list(stale)):
            stale[session_id].settle(SessionEnds(*ends))
    rows = [(*session_columns(one.value()), int(one.before is not None)) for one in changed]
    if await connection.fetchval(QUERIES["write_sessions"], *columns_of(rows)) != len(rows):
        raise LostRaceError


async def _bury(connection: Connection, changes: Changes) -> None:
    count = len(changes.buried)
    await connection.execute(
        QUERIES["bury"],
        list(changes.buried),
        list(changes.buried.values()),
        [changes.now] * count,
    )


async def _insert(connection: Connection, rows: list[Row], copy: bool) -> None:
    if not rows:
        return
    if copy and len(rows) >= COPY_FROM:
        await copy_rows(connection, rows)
    else:
        await _change(connection, rows, "insert")
    lowest = min(row[9] for row in rows)
    if await connection.fetchval(QUERIES["outlived"], [row[0] for row in rows], lowest):
        raise LostRaceError


async def copy_rows(connection: Connection, rows: Iterable[Row]) -> None:
    """Store new rows by COPY. Their terms are those of this analysis version (``reanalysis``)."""
    records = [(*row, row[_REVISION]) for row in rows]
    columns = (*COLUMNS, "analysed_3")
    await connection.copy_records_to_table("messages", records=records, columns=columns)


async def _change(connection: Connection, rows: list[Row], query: str) -> None:
    if rows and len(await connection.fetch(QUERIES[query], *columns_of(rows))) != len(rows):
        raise LostRaceError


def columns_of(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return the columns of rows, for ``unnest``. There must be at least one row."""
    return [list(column) for column in zip(*rows, strict=True)]


async def rows_of(
    messages: list[Message], worker_pool: WorkerPool, known: Mapping[str, SearchColumns] = _NONE
) -> list[Row]:
    """Return rows in the order of their ids, in which every transaction locks them.

    It sorts ``messages``. ``known`` are search columns by content; ``worker_pool`` computes
    missing ones if they are many or long.
    """
    messages.sort()
    missing = [(one.content,) for one in messages if one.content not in known]
    if len(missing) < FEW and sum(len(content) for (content,) in missing) < SHORT:
        made = [search_columns(*one) for one in missing]
    else:
        made = await worker_pool.map(search_columns, missing)
    rest = iter(made)
    return [row_of(one, known.get(one.content) or next(rest)) for one in messages]
