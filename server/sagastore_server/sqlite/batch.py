"""Batch: the SQL of one group of writes. Reads the stored rows, then writes all changes."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sagastore_server.sqlite.connection import message_from_row
from sagastore_server.sqlite.index_terms import (
    FtsColumns,
    IndexedFields,
    fts_columns,
    indexed_fields,
)
from sagastore_server.sqlite.queries import QUERIES, insert_all
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.model import Message, Store

DURABLE_ON = (Store.SQLITE,)
_INSERTS = frozenset({"unindex", "insert", "index", "bury", "journal"})
"""Statements that insert rows. FTS5 also removes an entry by an INSERT (``unindex``)."""


class Counters(NamedTuple):
    """State at the start of a group."""

    revision: int
    """The last revision assigned."""
    rows: int
    """Number of messages."""
    journals: bool
    """Whether changes are journalled."""


class Batch:
    """The writes of one transaction."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        counters: Counters,
        now: int,
        ids: Iterable[str],
        terms: Mapping[IndexedFields, FtsColumns],
    ) -> None:
        """Read the rows of ``ids``, in an open transaction of ``connection``.

        Args:
            connection: The writing connection.
            counters: State after the previous group.
            now: The current time in microseconds.
            ids: All ids that the group touches.
            terms: Index terms that are known already.

        """
        self._connection = connection
        self._terms = terms
        self._count = counters.rows
        self._journals = counters.journals
        self._revisions = itertools.count(counters.revision + 1)
        self._rows: dict[str, list[tuple[object, ...]]] = {}
        self.changes = Changes(self._stored(ids), self._revisions, now, DURABLE_ON)
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
        for name in ("unindex", "delete", "update", "insert", "index", "bury", "journal"):
            if rows := self._rows.get(name):
                self._execute(name, rows)
        counters = Counters(next(self._revisions) - 1, self._count, self._journals)
        if self.changes.after:
            state = [("revision", counters.revision), ("messages", counters.rows)]
            insert_all(self._connection, "set_state", state)
        return counters

    def _execute(self, name: str, rows: list[tuple[object, ...]]) -> None:
        if name in _INSERTS:
            insert_all(self._connection, name, rows)
        else:
            self._connection.executemany(QUERIES[name], rows)

    def _entries(self) -> list[tuple[object, ...]]:
        """Return a journal entry for each changed message."""
        changes = self.changes
        return [
            (changes.buried[key] if message is None else message.revision, key, changes.now)
            for key, message in changes.after.items()
        ]

    def _stored(self, ids: Iterable[str]) -> dict[str, Message]:
        wanted = json.dumps(list(ids), ensure_ascii=False)
        rows = self._connection.execute(QUERIES["batch_get"], (wanted,))
        return {row[0]: message_from_row(row) for row in rows}

    def _add(self, name: str, *row: object) -> None:
        self._rows.setdefault(name, []).append(row)

    def _delete(self, before: Message) -> None:
        self._count -= 1
        self._add("unindex", before.sequence, *self._fts_columns(before))
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
            self._add("unindex", before.sequence, *self._fts_columns(before))
            self._add("index", before.sequence, *self._fts_columns(after))

    def _fts_columns(self, message: Message) -> FtsColumns:
        searched = indexed_fields(message)
        return self._terms.get(searched) or fts_columns(*searched)


def _columns(message: Message) -> tuple[object, ...]:
    return (*message[:4], canonical_tags(message.tags), *message[5:])
