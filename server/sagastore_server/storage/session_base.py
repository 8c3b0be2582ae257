"""SessionBackend: the part of the storage contract that is about sessions.

A session is a conversation: it exists when it has a message, or was created by
``update_session``. Its row is changed in the transaction of the messages, so counts and ends are
exact whenever a write has returned, whichever server wrote.

The guarantees of ``StorageBackend`` hold here too. A guard ``if_revision`` is checked against the
revision of the session, which grows with every change of the session or of a message in it.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from sagastore_server.storage.model import NewMessage
from sagastore_server.storage.sessions import (
    AppendResult,
    DeletionStep,
    Session,
    SessionCriteria,
    SessionPage,
    SessionScan,
    Truncation,
)

MAX_TRUNCATED = 1000
"""Messages that one truncation removes at most (api.md)."""


class SessionBackend(abc.ABC):
    """Reads and changes sessions."""

    @abc.abstractmethod
    async def append(
        self,
        session_id: str,
        messages: Sequence[NewMessage],
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> AppendResult:
        """Store up to 1000 messages with different ids in a session: all of them, or none.

        New messages are adjacent in sequence, in the order given. Each message is otherwise
        handled as by ``save``.

        Args:
            session_id: The session; also the ``session_id`` of every message.
            messages: The messages.
            if_revision: 0 requires the session to be new; another value must be its revision.
            everywhere_within: As in ``save``.

        Raises:
            UnavailableError: Also as in ``save``.
            SessionExistsError: ``if_revision`` is 0 and the session exists.
            SessionRevisionMismatchError: ``if_revision`` is not the revision of the session.

        """

    @abc.abstractmethod
    async def get_session(self, session_id: str) -> Session:
        """Return a session.

        Raises:
            SessionNotFoundError: No session has the id.

        """

    @abc.abstractmethod
    async def list_sessions(self, criteria: SessionCriteria, scan: SessionScan) -> SessionPage:
        """Return a page of sessions in the order of activity (``Session.position``).

        The page has at most ``scan.limit`` sessions, and at most as many as fit into one response
        (see ``limits``), but at least one if any match.
        """

    @abc.abstractmethod
    async def update_session(
        self,
        session_id: str,
        title: str | None = None,
        metadata: str | None = None,
        if_revision: int | None = None,
    ) -> Session:
        """Set the title, the metadata or both, and create the session if it does not exist.

        Args:
            session_id: The session.
            title: The title; None: unchanged.
            metadata: Canonical JSON text of an object; None: unchanged.
            if_revision: As in ``append``.

        Raises:
            SessionExistsError: As in ``append``.
            SessionRevisionMismatchError: As in ``append``.

        """

    @abc.abstractmethod
    async def truncate_session(
        self,
        session_id: str,
        *,
        drop_last: int | None = None,
        keep_through: str | None = None,
        if_revision: int | None = None,
        most_bytes: int = 0,
    ) -> Truncation:
        """Remove the last messages of a session: all of them, or none.

        Args:
            session_id: The session.
            drop_last: Number of messages to remove, 1 to 1000; fewer if there are fewer.
            keep_through: Instead of ``drop_last``: the id of the last message to keep.
            if_revision: Must be the revision of the session.
            most_bytes: Upper bound for the size of the removed messages; 0: none.

        Raises:
            SessionNotFoundError: No session has the id.
            NotFoundError: ``keep_through`` is not in the session.
            SessionRevisionMismatchError: ``if_revision`` is not the revision of the session.
            InvalidRequestError: More than 1000 messages would be removed.
            ResponseTooLargeError: The messages are larger than ``most_bytes``.

        """

    @abc.abstractmethod
    async def begin_session_deletion(self, session_id: str, if_revision: int | None = None) -> None:
        """Record that a session and all of its messages are to be deleted.

        Its title and metadata are gone; ``delete_session_step`` deletes the messages.

        Raises:
            SessionNotFoundError: No session has the id.
            SessionRevisionMismatchError: ``if_revision`` is not the revision of the session.

        """

    @abc.abstractmethod
    async def delete_session_step(self, session_id: str) -> DeletionStep:
        """Delete the next messages of a session whose deletion has begun, a bounded number.

        May be repeated, and called by several servers at once.
        """

    @abc.abstractmethod
    async def unfinished_session_deletions(self, limit: int) -> list[str]:
        """Return the ids of sessions whose deletion has begun and has not ended."""


class SessionRows(abc.ABC):
    """Access to the rows of sessions, also of those that do not exist (``Session.exists``)."""

    @abc.abstractmethod
    async def sessions_by_id(self, session_ids: Sequence[str]) -> dict[str, Session]:
        """Return up to 1000 rows by id; ids without a row are omitted."""

    @abc.abstractmethod
    async def scan_sessions(self, after: str | None, upto: str, limit: int) -> SessionPage:
        """Return a page of rows with ``after < session_id <= upto``, ordered by id.

        With None for ``after`` it begins with the first one, whose id may be empty. The size of
        the page is limited as for ``list_sessions``.
        """

    @abc.abstractmethod
    async def last_session(self) -> str | None:
        """Return the greatest session id; None if there is no row."""

    @abc.abstractmethod
    async def count_sessions(self) -> int:
        """Return the exact number of rows."""
