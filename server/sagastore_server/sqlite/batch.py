"""A group of writes, worked out against what is stored and then written at once.

Each write sees the ones before it in its group. What several of them do to one
message is written once; each still gets its own answer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sagastore_server.sqlite.connect import message_from_row
from sagastore_server.sqlite.index_terms import fts_columns
from sagastore_server.sqlite.queries import QUERIES
from sagastore_server.storage.errors import (
    AlreadyExistsError,
    NotFoundError,
    RevisionMismatchError,
)
from sagastore_server.storage.jsontext import canonical_tags
from sagastore_server.storage.model import (
    BulkResult,
    Draft,
    Message,
    OnConflict,
    SaveResult,
    Store,
)

DURABLE_ON = (Store.SQLITE,)


class Counters(NamedTuple):
    """The last numbers given out."""

    revision: int
    number: int


class _Stored(NamedTuple):
    message: Message
    number: int


class Batch:
    """The writes of one transaction."""

    def __init__(self, connection: sqlite3.Connection, counters: Counters, now: int) -> None:
        """Begin within a transaction of ``connection``; ``now`` is in microseconds."""
        self._connection = connection
        self._revision, self._number = counters
        self._now = now
        self._before: dict[str, _Stored] = {}
        self._after: dict[str, Message | None] = {}
        self._buried: dict[str, int] = {}

    @property
    def counters(self) -> Counters:
        """The last numbers given out, this batch included."""
        return Counters(self._revision, self._number)

    def load(self, ids: Iterable[str]) -> None:
        """Read what is stored under ``ids``; every id must be loaded before it is written."""
        wanted = json.dumps(list(ids), ensure_ascii=False)
        for row in self._connection.execute(QUERIES["stored"], (wanted,)):
            self._before[row[0]] = _Stored(message_from_row(row), row[10])

    def save(self, draft: Draft, if_revision: int | None) -> SaveResult:
        """As ``StorageBackend.save``."""
        stored = self._current(draft.id)
        if if_revision == 0:
            if stored is not None:
                raise AlreadyExistsError(draft.id, stored.revision)
        elif if_revision is not None:
            self._check_revision(draft.id, stored, if_revision)
        message = self._put(draft, stored)
        return SaveResult(draft.id, message.revision, stored is None, DURABLE_ON)

    def bulk_save(self, drafts: Sequence[Draft], on_conflict: OnConflict) -> BulkResult:
        """As ``StorageBackend.bulk_save``."""
        last = {draft.id: draft for draft in drafts}
        saved = unchanged = 0
        skipped = len(drafts) - len(last)
        for draft in last.values():
            stored = self._current(draft.id)
            if stored is not None and on_conflict is OnConflict.SKIP:
                skipped += 1
            elif self._put(draft, stored) is stored:
                unchanged += 1
            else:
                saved += 1
        return BulkResult(saved, unchanged, skipped)

    def delete(self, message_id: str, if_revision: int | None) -> None:
        """As ``StorageBackend.delete``."""
        stored = self._current(message_id)
        if stored is None:
            raise NotFoundError(message_id)
        if if_revision is not None:
            self._check_revision(message_id, stored, if_revision)
        self._revision += 1
        self._after[message_id] = None
        self._buried[message_id] = self._revision

    def flush(self) -> None:
        """Write what has changed; nothing is executed where nothing has."""
        changed = [(self._before.get(key), message) for key, message in self._after.items()]
        inserted, updated, deleted = [], [], []
        unindex, index = [], []
        for before, message in changed:
            if message is None:
                if before is not None:
                    deleted.append((before.number,))
                    unindex.append((before.number, *_terms(before.message)))
                continue
            if before is None:
                self._number += 1
                inserted.append((*_columns(message), self._number))
                index.append((self._number, *_terms(message)))
                continue
            updated.append((*_columns(message)[1:], before.number))
            if _terms_differ(before.message, message):
                unindex.append((before.number, *_terms(before.message)))
                index.append((before.number, *_terms(message)))
        buried = [(key, revision, self._now) for key, revision in self._buried.items()]
        for name, rows in (
            ("unindex", unindex),
            ("delete", deleted),
            ("update", updated),
            ("insert", inserted),
            ("index", index),
            ("bury", buried),
        ):
            if rows:
                self._connection.executemany(QUERIES[name], rows)
        if changed:
            self._connection.execute(QUERIES["set_state"], ("revision", self._revision))

    @property
    def changes_anything(self) -> bool:
        """Whether ``flush`` has something to write."""
        return bool(self._after)

    def _current(self, message_id: str) -> Message | None:
        if message_id in self._after:
            return self._after[message_id]
        before = self._before.get(message_id)
        return before.message if before else None

    def _put(self, draft: Draft, stored: Message | None) -> Message:
        """Replace ``stored``; return it itself where nothing changes."""
        timestamp, created_at = draft.timestamp, self._now
        if stored is not None:
            timestamp = stored.timestamp if timestamp is None else timestamp
            if (*draft[:5], timestamp, *draft[6:]) == stored[:8]:
                return stored
            created_at = stored.created_at  # type: ignore[assignment]  # None where a legacy row had none
        elif timestamp is None:
            timestamp = self._now
        self._revision += 1
        message = Message(*draft[:5], timestamp, *draft[6:], created_at, self._revision)
        self._after[draft.id] = message
        return message

    @staticmethod
    def _check_revision(message_id: str, stored: Message | None, expected: int) -> None:
        found = stored.revision if stored else None
        if found != expected:
            raise RevisionMismatchError(message_id, expected, found)


def _columns(message: Message) -> tuple[object, ...]:
    return (*message[:4], canonical_tags(message.tags), *message[5:])


def _terms(message: Message) -> tuple[str, str, str]:
    return fts_columns(message.content, message.tags, message.metadata)


def _terms_differ(before: Message, after: Message) -> bool:
    return (before.content, before.tags, before.metadata) != (
        after.content,
        after.tags,
        after.metadata,
    )
