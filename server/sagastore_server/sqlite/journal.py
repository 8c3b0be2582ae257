"""Change journal: an entry per change, written in the transaction of the change itself.

These functions run on the writing connection, in a transaction between two groups. ``batch``
writes the entries of a group. See schema/0002_journal.sql.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

from sagastore_server.sqlite.connection import (
    file_from_row,
    message_from_row,
    session_from_row,
)
from sagastore_server.sqlite.migration_state import (
    load_pruned,
    load_state,
    save_pruned,
    save_state,
    write_value,
)
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.storage.counts import PendingRecords, RecordCounts
from sagastore_server.storage.replication import Entry, MigrationState
from sagastore_server.storage.sessions import RecordKind

ROWS_AT_ONCE = 5000
"""Entries that one transaction removes or adds. Writes wait for it, some milliseconds."""


def change_state(
    connection: sqlite3.Connection, state: MigrationState, rejournal_after: int | None
) -> int:
    """Store ``state`` and apply its consequences; see ``MigrationSource.set_state``.

    The journal contains every change after ``pruned``, apart from entries journalled again. So
    when journalling begins, ``pruned`` is the last revision.
    """
    revision = last_revision(connection)
    journalled = load_state(connection).phase.journals
    save_state(connection, state)
    if not state.phase.journals:
        connection.execute(QUERIES["empty_journal"])
    elif rejournal_after is not None:
        now = time.time_ns() // 1000
        connection.execute(QUERIES["rejournal_messages"], (rejournal_after, now))
        connection.execute(QUERIES["rejournal_tombstones"], (rejournal_after, now))
        connection.execute(QUERIES["rejournal_sessions"], (rejournal_after, now))
        connection.execute(QUERIES["rejournal_files"], (rejournal_after, now))
        connection.execute(QUERIES["rejournal_file_tombstones"], (rejournal_after, now))
        last = revision
        for name in ("rejournal_older_sessions", "rejournal_older_files"):
            last += connection.execute(QUERIES[name], (rejournal_after, now, last)).rowcount
        write_value(connection, "revision", last)
        save_pruned(connection, rejournal_after)
    elif not journalled:
        save_pruned(connection, revision)
    return revision


def journal_some_sessions(connection: sqlite3.Connection, after: str | None) -> str | None:
    """Add the next sessions after the session ``after`` to the journal; None: the first ones.

    Returns:
        The last of them; None: there were no more.

    """
    return _journal_some(connection, "journal_some_sessions", after or "", after is None)


def journal_some_files(connection: sqlite3.Connection, after: str | None) -> str | None:
    """Add the next files after the file ``after``, as ``journal_some_sessions`` does."""
    return _journal_some(connection, "journal_some_files", after or "")


def _journal_some(
    connection: sqlite3.Connection, statement: str, after: str, *more: bool
) -> str | None:
    last = last_revision(connection)
    now = time.time_ns() // 1000
    parameters = (last, after, now, ROWS_AT_ONCE, *more)
    added = connection.execute(QUERIES[statement], parameters).rowcount
    if not added:
        return None
    write_value(connection, "revision", last + added)
    (key,) = connection.execute(QUERIES["journalled_id"], (last + added,)).fetchone()
    return str(key)


def force(connection: sqlite3.Connection, ids: Sequence[str], kind: RecordKind) -> int:
    """Add ``forced`` entries for ``ids``; return the last sequence assigned."""
    first = last_revision(connection) + 1
    now = time.time_ns() // 1000
    entries = [(first + place, kind, key, now) for place, key in enumerate(ids)]
    connection.executemany(QUERIES["journal_forced"], entries)
    last = first + len(entries) - 1
    write_value(connection, "revision", last)
    return last


def prune_some(connection: sqlite3.Connection, upto: int) -> bool:
    """Remove the first entries up to ``upto``; return whether there may be more."""
    (last,) = connection.execute(QUERIES["prunable"], (upto, ROWS_AT_ONCE)).fetchone()
    if last is None:
        return False
    removed = connection.execute(QUERIES["prune"], (last,)).rowcount
    if last > load_pruned(connection):
        save_pruned(connection, last)
    return removed >= ROWS_AT_ONCE


def last_revision(connection: sqlite3.Connection) -> int:
    """Return the greatest revision assigned."""
    (revision,) = connection.execute(QUERIES["get_state"], ("revision",)).fetchone()
    return int(revision)


def entry_from_row(row: Sequence[Any]) -> Entry:
    """Return the entry of a row of the statement ``entries``."""
    sequence, kind, key, buried, forced, written_at, *stored = row
    message = None if stored[0] is None else message_from_row(stored)
    session = None if stored[11] is None else session_from_row(stored[11:26])
    record = None if stored[26] is None else file_from_row(stored[26:])
    values = (buried, bool(forced), written_at, RecordKind(kind))
    return Entry(sequence, key, message, *values, session, record)


def pending_from_rows(
    rows: Iterable[Sequence[Any]], after: int, limit: int
) -> PendingRecords | None:
    """Return the rows of the statement ``pending_records``; see the contract of the source."""
    totals: dict[str, int] = {}
    ids: dict[int, list[str]] = {kind.value: [] for kind in RecordKind}
    stored = dict.fromkeys(ids, 0)
    for kind, key, value in rows:
        if kind < 0:
            totals[key] = int(value)
        else:
            ids[kind].append(key)
            stored[kind] += value
    if totals["pruned"] > after or totals["entries"] > limit:
        return None
    counts = RecordCounts(totals["messages"], totals["sessions"], totals["files"])
    kinds = (RecordKind.MESSAGE, RecordKind.SESSION, RecordKind.FILE)
    return PendingRecords(
        counts, RecordCounts(*(stored[kind] for kind in kinds)), *(ids[kind] for kind in kinds)
    )
