"""Batch: the SQL of one group of writes. Reads the stored rows, then writes all changes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sagastore_server.sqlite.connection import (
    file_columns,
    file_from_row,
    message_from_row,
    session_columns,
    session_from_row,
)
from sagastore_server.sqlite.index_terms import (
    FtsColumns,
    IndexedFields,
    fts_columns,
    indexed_fields,
)
from sagastore_server.sqlite.pending import Pending
from sagastore_server.sqlite.queries import QUERIES, insert_all
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.changes import Changes, endless
from sagastore_server.storage.files import File
from sagastore_server.storage.model import Message, Store
from sagastore_server.storage.session_changes import SessionEnds
from sagastore_server.storage.sessions import RecordKind, Session

DURABLE_ON = (Store.SQLITE,)
_INSERTS = frozenset(
    {
        "unindex",
        "note_reanalysed",
        "insert",
        "index",
        "bury",
        "upsert_sessions",
        "upsert_files",
        "bury_files",
        "journal",
    }
)
"""Statements that insert rows. FTS5 also removes an entry by an INSERT (``unindex``)."""

_ORDER = (
    "unindex",
    "note_reanalysed",
    "delete",
    "update",
    "insert",
    "index",
    "bury",
    "journal",
)
"""The statements for messages, in the order in which they are executed."""


class Counters(NamedTuple):
    """State at the start of a group."""

    revision: int
    """The last revision assigned."""
    rows: int
    """Number of messages."""
    journals: bool
    """Whether changes are journalled."""
    pending: Pending = Pending(0, 0)
    """Messages whose terms may be in the former index."""


class Touched(NamedTuple):
    """The rows that a group names; it also touches the sessions of stored messages."""

    ids: Iterable[str]
    sessions: Iterable[str]
    files: Iterable[str]


class Batch:
    """The writes of one transaction."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        counters: Counters,
        now: int,
        touched: Touched,
        terms: Mapping[IndexedFields, FtsColumns],
    ) -> None:
        """Read the rows that the group touches, in an open transaction.

        Args:
            connection: The writing connection.
            counters: State after the previous group.
            now: The current time in microseconds.
            touched: The rows of the group.
            terms: Index terms that are known already.

        """
        self._connection = connection
        self._terms = terms
        self._count = counters.rows
        self._journals = counters.journals
        self._revision = counters.revision
        self._revisions = endless(counters.revision)
        self._pending = counters.pending
        self._rows: dict[str, list[tuple[object, ...]]] = {}
        stored = self._stored(touched.ids)
        self._reanalysed = self._already_reanalysed(stored.values())
        named = {one.session_id for one in stored.values() if one.session_id is not None}
        known = self._stored_sessions(named.union(touched.sessions))
        records = self._stored_files(list(touched.files))
        self.changes = Changes(stored, known, self._revisions, now, DURABLE_ON, files=records)
        """Apply the writes to it before ``flush``."""

    def flush(self) -> Counters:
        """Write the changes and return the new counters. Without changes nothing is executed."""
        for message_id, message in self.changes.after.items():
            before = self.changes.before.get(message_id)
            if message is None:
                if before is not None:
                    self._delete(before)
            elif before is None:
                self._insert(message)
            else:
                self._update(before, message)
        now = self.changes.now
        buried = [(key, revision, now) for key, revision in self.changes.buried.items()]
        self._rows["bury"] = list(buried)
        if self._journals:
            self._rows["journal"] = self._entries()
        for name in _ORDER:
            if rows := self._rows.get(name):
                self._execute(name, rows)
        self._write_sessions()
        self._write_files()
        revision = max(self._revision, self._revisions.last)
        state = [("revision", revision)] if revision > self._revision else []
        if "delete" in self._rows or "insert" in self._rows:
            state.append(("messages", self._count))
        insert_all(self._connection, "set_state", state)
        return Counters(revision, self._count, self._journals, self._pending)

    def _execute(self, name: str, rows: list[tuple[object, ...]]) -> None:
        if name in _INSERTS:
            insert_all(self._connection, name, rows)
        else:
            self._connection.executemany(QUERIES[name], rows)

    def _entries(self) -> list[tuple[object, ...]]:
        """Return a journal entry for each changed message and file, and for each session left."""
        changes = self.changes
        entries: list[tuple[object, ...]] = [
            (
                changes.buried[key] if message is None else message.revision,
                RecordKind.MESSAGE,
                key,
                changes.now,
            )
            for key, message in changes.after.items()
        ]
        # The entry of a message stands for the session that it is in, not for one that it left.
        entries += self._file_entries()
        reached = {one.session_id for one in changes.after.values() if one is not None}
        return entries + [
            (change.revision, RecordKind.SESSION, change.session_id, changes.now)
            for change in changes.sessions
            if change.session_id not in reached
        ]

    def _file_entries(self) -> list[tuple[object, ...]]:
        files, now = self.changes.files, self.changes.now
        return [
            (
                files.buried[key] if record is None else record.revision,
                RecordKind.FILE,
                key,
                now,
            )
            for key, record in files.after.items()
        ]

    def _write_files(self) -> None:
        """Store the file records and their tombstones."""
        files, now = self.changes.files, self.changes.now
        kept = [file_columns(one) for one in files.after.values() if one is not None]
        gone = [(key,) for key, one in files.after.items() if one is None]
        buried = [(key, revision, now) for key, revision in files.buried.items()]
        for name, rows in (("upsert_files", kept), ("delete_files", gone), ("bury_files", buried)):
            if rows:
                self._execute(name, list(rows))

    def _write_sessions(self) -> None:
        """Store the sessions, once their messages are stored."""
        changed = self.changes.sessions
        for change in changed:
            if change.stale:
                row = self._connection.execute(QUERIES["session_ends"], (change.session_id,))
                change.settle(SessionEnds(*row.fetchone()))
        if changed:
            self._execute("upsert_sessions", [session_columns(one.value()) for one in changed])

    def _stored(self, ids: Iterable[str]) -> dict[str, Message]:
        wanted = json.dumps(list(ids), ensure_ascii=False)
        rows = self._connection.execute(QUERIES["batch_get"], (wanted,))
        return {row[0]: message_from_row(row) for row in rows}

    def _already_reanalysed(self, stored: Iterable[Message]) -> set[int]:
        """Return which of the pending ones among ``stored`` the former index no longer has."""
        pending = [one.sequence for one in stored if self._pending.has(one.sequence)]
        if not pending:
            return set()
        rows = self._connection.execute(QUERIES["which_reanalysed"], (json.dumps(pending),))
        return {number for (number,) in rows}

    def _stored_sessions(self, ids: set[str]) -> dict[str, Session]:
        if not ids:
            return {}
        wanted = json.dumps(list(ids), ensure_ascii=False)
        rows = self._connection.execute(QUERIES["sessions_by_id"], (wanted,))
        return {row[0]: session_from_row(row) for row in rows}

    def _stored_files(self, ids: list[str]) -> dict[str, File]:
        if not ids:
            return {}
        wanted = json.dumps(ids, ensure_ascii=False)
        rows = self._connection.execute(QUERIES["files_by_id"], (wanted,))
        return {row[0]: file_from_row(row) for row in rows}

    def _add(self, name: str, *row: object) -> None:
        self._rows.setdefault(name, []).append(row)

    def _delete(self, before: Message) -> None:
        self._count -= 1
        self._unindex(before)
        self._add("delete", before.sequence)

    def _insert(self, message: Message) -> None:
        self._count += 1
        self._add("insert", *_columns(message))
        self._add("index", message.sequence, *self._fts_columns(message))

    def _update(self, before: Message, after: Message) -> None:
        if before.sequence != after.sequence:
            # Deleted and saved again in this group.
            self._delete(before)
            self._insert(after)
            return
        self._add("update", *_columns(after)[1:])
        if indexed_fields(before) != indexed_fields(after):
            self._unindex(before)
            self._add("index", before.sequence, *self._fts_columns(after))

    def _unindex(self, before: Message) -> None:
        """Remove a message from the index, or note that the former one no longer has it."""
        if self._pending.has(before.sequence) and before.sequence not in self._reanalysed:
            self._add("note_reanalysed", before.sequence)
        else:
            self._add("unindex", before.sequence, *self._fts_columns(before))

    def _fts_columns(self, message: Message) -> FtsColumns:
        searched = indexed_fields(message)
        return self._terms.get(searched) or fts_columns(*searched)


def _columns(message: Message) -> tuple[object, ...]:
    return (*message[:4], canonical_tags(message.tags), *message[5:])
