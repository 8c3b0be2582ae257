"""The storage contract.

One interface for everything above storage: SQLite, PostgreSQL, and the router of
the live migration, which is a backend made of two. ``tests/contract`` holds every
implementation to what is written here.

Guarantees that hold for every method:

* Values given were checked by ``validation``; values returned are canonical.
* A write returns only after its store has committed it to disk. A write that
  raises, or is cancelled, is stored wholly or not at all, and may be repeated.
* After a write has returned, every read that begins later sees it.
* Ids compare by their UTF-8 bytes; chronological order is by timestamp, then id.
* ``UnavailableError`` (store down or closing), ``StorageFullError`` (disk full) and
  ``CorruptStoreError`` may come from every method; other errors are named.
* Methods may run concurrently, and may be cancelled at any time.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sagastore_server.storage.load import Load, OnGroup
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    Page,
    QuarantinedRow,
    SaveResult,
    StoreHealth,
)
from sagastore_server.storage.query import Criteria, Scan

Indexer = Callable[[NewMessage], Any]
"""Makes what a store's search index holds of a draft: a function of a module, so that it can be
called in another process, and pure. What it returns is that store's own business."""


class PreparedTerms(NamedTuple):
    """What a search index is to hold of some drafts, made beforehand."""

    by: Indexer
    """Who made it; a store takes nobody's but its own."""
    of: list[Any]
    """What ``by`` returned of each draft."""


class StorageBackend(abc.ABC):
    """Keeps messages durably and finds them."""

    @property
    def indexer(self) -> Indexer | None:
        """What makes the terms that ``bulk_save`` takes, if it takes any.

        After a change of phase it may be another.
        """
        return None

    @abc.abstractmethod
    async def open(self) -> None:
        """Make the store ready: create, take over or upgrade its schema.

        Once, before any other method.

        Raises:
            CannotOpenError: It cannot be used; it is as it was before.

        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish the writes under way, refuse new ones, and leave the store tidy.

        Safe to call twice, and after a failed ``open``.
        """

    @abc.abstractmethod
    async def save(
        self,
        draft: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """Store one message.

        The same message again changes nothing and returns the stored revision; a
        different one replaces it under a new, greater revision. ``created_at`` is
        the moment of the first save since the id last did not exist. A draft
        without a timestamp takes the stored one, or now.

        ``if_revision`` 0 requires the id to be new; another value must be the
        stored revision. It is checked first: a repeated save with a stale
        ``if_revision`` fails even if nothing would change.

        ``everywhere_within`` asks that every store of the phase has committed the
        message, within so many seconds. A backend of one store has nothing to add.

        Raises:
            UnavailableError: Also when ``everywhere_within`` has passed; the message
                is stored where ``durable_on`` would have said, and follows elsewhere.
            AlreadyExistsError: ``if_revision`` is 0 and the id exists.
            RevisionMismatchError: ``if_revision`` is not the stored revision.

        """

    @abc.abstractmethod
    async def bulk_save(
        self,
        drafts: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """Store up to 1000 messages, all of them or none.

        Of several drafts with one id the last counts; the others are skipped.
        Each is otherwise treated as by ``save``. ``terms``, one for each draft, save the
        store from making them; those of another store are made anew.
        """

    @abc.abstractmethod
    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """Remove a message, leaving a tombstone with a greater revision.

        Raises:
            NotFoundError: No message has the id.
            RevisionMismatchError: ``if_revision`` is not the stored revision.

        """

    @abc.abstractmethod
    async def get(self, message_id: str) -> Message:
        """Return a message.

        Raises:
            NotFoundError: No message has the id.

        """

    @abc.abstractmethod
    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        """Return those of up to 1000 messages that exist, by id."""

    @abc.abstractmethod
    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """Return a session's messages in chronological order, as ``scan`` says.

        No more than ``scan.limit``, and no more than fit into one response (see
        ``limits``), but at least one if there is one. ``Page.more`` tells whether
        the stretch goes on.
        """

    @abc.abstractmethod
    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """Return the messages that meet ``criteria``, in chronological order.

        As many as ``list_session`` does. Every backend returns the same messages
        to the same criteria.
        """

    @abc.abstractmethod
    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """Return messages with ``after < id <= upto``, ordered by id.

        As many as ``list_session`` does. Holds no transaction open afterwards.
        """

    @abc.abstractmethod
    async def last_id(self) -> str | None:
        """Return the greatest id stored, or None from an empty store."""

    @abc.abstractmethod
    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """Return quarantined rows with a number greater than ``after``, in order."""

    @abc.abstractmethod
    async def quarantine_count(self) -> int:
        """Return how many rows are in quarantine."""

    @abc.abstractmethod
    async def health(self) -> StoreHealth:
        """Ask the store how it does. Never raises; answers within seconds."""

    def observe(self, on_group: OnGroup) -> None:
        """Let ``on_group`` hear of each group of writes that is committed; before ``open``."""
        del on_group

    def loads(self) -> list[Load]:
        """Tell how busy each store is; one that is not open is left out.

        Asks no database: looks at what is in memory, and at the sizes of files.
        """
        return []
