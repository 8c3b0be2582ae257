"""StorageBackend: the storage contract.

SQLite, PostgreSQL and the router of the live migration, which combines both, implement it.
``tests/contract`` verifies every implementation.

Guarantees of every method:

* **Values**: arguments have passed ``validation``; returned values are canonical.
* **Durability**: a write returns only after its store has committed it to disk.
* **Atomicity**: a write that raises, or is cancelled, is stored completely or not at all. It
  may be repeated.
* **Read-your-writes**: a read that begins after a write has returned sees the write.
* **Consistency** (``interfaces.consistency``): a store that is the only one of its phase may tell
  positions. Then every write notes, for the running call, a position that includes what it stored,
  or found stored already; every read of the API notes one that includes everything it saw, also if
  that is nothing. A read meets the requirement of its call: the latest state, or at least a
  position. It raises ``InvalidRequestError`` for a position of another cluster, and
  ``UnavailableError`` if no server that it reaches has the position; it never answers with an
  older state. A store that tells no positions answers with the latest state, which meets every
  requirement. After a change of phase to one whose store tells positions, only calls that began
  after it tell them: the others may lack a write that was acknowledged without one.
* **Order**: ids compare by their UTF-8 bytes. Chronological order is by timestamp, then by
  sequence: the order in which messages were first stored. A write that begins after another was
  acknowledged gets the greater sequence; messages of one ``bulk_save`` get theirs in its order.
* **Errors**: every method may raise ``UnavailableError`` (store down or closing),
  ``StorageFullError`` (disk full) and ``CorruptStoreError``. Its docstring names all others.
* **Concurrency**: methods may run concurrently, and may be cancelled at any time.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sagastore_server.storage.file_base import FileBackend
from sagastore_server.storage.load import Load, OnGroup
from sagastore_server.storage.model import (
    BulkResult,
    Message,
    NewMessage,
    OnConflict,
    Page,
    QuarantinedRow,
    SaveRequest,
    SaveResult,
    StoreHealth,
)
from sagastore_server.storage.query import Criteria, RankedPage, RankedScan, Scan
from sagastore_server.storage.reanalysis import Reanalysis
from sagastore_server.storage.session_base import SessionBackend

Indexer = Callable[[NewMessage], Any]
"""Computes the search index terms of a new message. A pure module-level function, so that another
process can call it. Only the store that provides it interprets the result."""


T = TypeVar("T")


class PreparedTerms(NamedTuple):
    """Search index terms of new messages, computed in advance."""

    by: Indexer
    """The function that computed them; a store ignores terms of another function."""
    of: list[Any]
    """The result of ``by`` for each message."""


class StorageBackend(SessionBackend, FileBackend):
    """Stores messages durably, and reads and searches them."""

    @property
    def indexer(self) -> Indexer | None:
        """Computes the terms that ``bulk_save`` accepts; None: it accepts none.

        A change of phase may change it.
        """
        return None

    @property
    def reanalysis(self) -> Reanalysis | None:
        """Progress of the analysis of the stored messages by a newer version; None: it is done.

        Until then, ``search`` finds a message that is not analysed yet by the terms that the
        former version gave it.
        """
        return None

    @abc.abstractmethod
    async def open(self) -> None:
        """Open the store: create, import or upgrade its schema.

        Called once, before any other method.

        Raises:
            CannotOpenError: The store cannot be used; it is unchanged.

        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish pending writes, refuse new ones, and close the store.

        Safe to call twice, and after a failed ``open``.
        """

    @abc.abstractmethod
    async def save(
        self,
        message: NewMessage,
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> SaveResult:
        """Store one message.

        Guarantees:

        * Saving an identical message changes nothing and returns the stored revision.
        * A different message replaces the stored one under a new, greater revision.
        * ``created_at`` is the time of the first save since the id last did not exist, or
          ``message.created_at`` if that is set.
        * ``sequence`` is assigned by that first save, and kept by every later one.
        * A message without a timestamp gets the stored timestamp, or else the current time.

        Args:
            message: The message.
            if_revision: 0 requires the id to be new; another value must be the stored
                revision. It is checked first: a repeated save with a stale value fails even if
                nothing would change.
            everywhere_within: Seconds within which every store of the phase must have committed
                the message; None: the phase decides. A backend of one store ignores it.

        Raises:
            UnavailableError: Also if ``everywhere_within`` has passed. SQLite has the message
                then, and PostgreSQL gets it later.
            AlreadyExistsError: ``if_revision`` is 0 and the id exists.
            RevisionMismatchError: ``if_revision`` is not the stored revision.

        """

    async def batch_save(self, requests: Sequence[SaveRequest]) -> list[SaveResult | Exception]:
        """Store messages, each as by ``save``, and return the result or the error of each.

        Guarantees:

        * Each request is handled as if it had come alone, after the ones before it. One that
          fails does not affect the others.
        * Every store of SagaStore commits the requests together. This implementation saves them
          one after the other.

        Args:
            requests: Up to 1000 requests. The call takes as long as the slowest of them.

        Raises:
            StorageError: The store failed; no request has a result.

        """
        return [await outcome_of(self.save(*request)) for request in requests]

    @abc.abstractmethod
    async def bulk_save(
        self,
        messages: Sequence[NewMessage],
        on_conflict: OnConflict,
        terms: PreparedTerms | None = None,
    ) -> BulkResult:
        """Store up to 1000 messages atomically.

        Guarantees:

        * All messages are stored, or none.
        * Of several messages with the same id, the last one is stored, in the place of the first,
          and the others are skipped.
        * Of calls that one task starts one after the other, with terms of ``indexer``, a later one
          gives the greater sequences, even if they run concurrently.
        * Each message is otherwise handled as by ``save``.

        Args:
            messages: The messages.
            on_conflict: What to do with a message whose id exists.
            terms: Precomputed index terms, one for each message. Terms of another store are
                ignored.

        """

    @abc.abstractmethod
    async def delete(self, message_id: str, if_revision: int | None = None) -> None:
        """Delete a message, and store a tombstone with a greater revision.

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
        """Return up to 1000 messages by id; ids that do not exist are omitted."""

    @abc.abstractmethod
    async def list_session(self, session_id: str, scan: Scan) -> Page:
        """Return a page of a session's messages in chronological order.

        * The page has at most ``scan.limit`` messages, and at most as many as fit into one
          response (see ``limits``), but at least one if any match.
        * ``Page.more`` is true if more messages match.
        """

    @abc.abstractmethod
    async def search(self, criteria: Criteria, scan: Scan) -> Page:
        """Return a page of the messages that match ``criteria``, in chronological order.

        * The size of the page is limited as for ``list_session``.
        * Every backend returns the same messages for the same criteria.
        """

    async def search_ranked(self, criteria: Criteria, scan: RankedScan) -> RankedPage | None:
        """Return a page of a window of the messages that match ``criteria``, by relevance.

        None: this store does not rank these criteria now; the caller ranks the messages that
        ``search`` returns (``search.windows``), with the same result.

        * Window and page are of one moment.
        * Scores are those of ``search.ranking.score``, to the bit.
        * The window ends as ``RankedScan`` says; every backend ends it at the same message.
        * The size of the page is limited as for ``list_session``.
        * ``criteria.text`` and its condition are not None.
        """
        del criteria, scan
        return None

    @abc.abstractmethod
    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        """Return a page of messages with ``after < id <= upto``, ordered by id.

        * The size of the page is limited as for ``list_session``.
        * No transaction stays open afterwards.
        """

    @abc.abstractmethod
    async def last_id(self) -> str | None:
        """Return the greatest id; None if the store is empty."""

    @abc.abstractmethod
    async def scan_sequences(self, after: int, upto: int, limit: int) -> Page:
        """Return a page of messages with ``after < sequence <= upto``, ordered by sequence.

        * The size of the page is limited as for ``list_session``.
        * Every message that existed when the scan of a range began, and is not deleted meanwhile,
          is on exactly one of its pages.
        * No transaction stays open afterwards.
        """

    @abc.abstractmethod
    async def last_sequence(self) -> int:
        """Return the greatest sequence; 0 if the store is empty."""

    @abc.abstractmethod
    async def quarantine(self, after: int, limit: int) -> list[QuarantinedRow]:
        """Return quarantined rows with a number greater than ``after``, in order."""

    @abc.abstractmethod
    async def quarantine_count(self) -> int:
        """Return the number of quarantined rows."""

    @abc.abstractmethod
    async def health(self) -> StoreHealth:
        """Check the store. Never raises; returns within seconds."""

    def observe(self, on_group: OnGroup) -> None:
        """Call ``on_group`` after each group commit. Must be set before ``open``."""
        del on_group

    def loads(self) -> list[Load]:
        """Return the load of each open store.

        Queries no database: reads memory and file sizes only.
        """
        return []


async def outcome_of(work: Awaitable[T]) -> T | Exception:
    """Return the result of ``work``, or its error."""
    try:
        return await work
    except Exception as exc:  # noqa: BLE001 - every error goes to the caller of its request
        return exc
