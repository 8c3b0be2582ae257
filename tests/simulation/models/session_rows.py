"""Rows of sessions in the models: stored by a transaction, and read."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import SessionNotFoundError
from sagastore_server.storage.limits import session_page_of
from sagastore_server.storage.model import Message
from sagastore_server.storage.session_base import SessionRows
from sagastore_server.storage.session_changes import NO_ENDS, SessionEnds
from sagastore_server.storage.session_writes import SessionWrites
from sagastore_server.storage.sessions import (
    EXTRACT,
    Session,
    SessionCriteria,
    SessionPage,
    SessionScan,
)
from tests.support.reference_search import json_contains

T = TypeVar("T")


def store_sessions(
    sessions: dict[str, Session], messages: Mapping[str, Message], changes: Changes
) -> None:
    """Store the sessions of a transaction whose messages are stored."""
    for change in changes.sessions:
        if change.stale:
            change.settle(ends_of(change.session_id, messages))
        sessions[change.session_id] = change.value()


def ends_of(session_id: str, messages: Mapping[str, Message]) -> SessionEnds:
    """Return the ends of a session, from its messages."""
    found = [one for one in messages.values() if one.session_id == session_id]
    if not found:
        return NO_ENDS
    first = min(found, key=lambda one: one.position)
    return SessionEnds(
        first.timestamp,
        first.sequence,
        first.content[:EXTRACT],
        max(one.timestamp for one in found),
        max(one.sequence for one in found),
    )


def deletable(messages: Mapping[str, Message], session_id: str, upto: int) -> list[str]:
    """Return the ids of the messages of a session with sequences up to ``upto``."""
    return [
        key
        for key, one in messages.items()
        if one.session_id == session_id and one.sequence <= upto
    ]


def listed(
    sessions: Mapping[str, Session], criteria: SessionCriteria, scan: SessionScan
) -> SessionPage:
    """Return a page of the sessions that meet ``criteria``."""
    found = [one for one in sessions.values() if one.exists and _meets(one, criteria)]
    found.sort(key=lambda one: one.position, reverse=not scan.oldest_first)
    if scan.after is not None:
        after, sign = scan.after, 1 if scan.oldest_first else -1
        found = [
            one for one in found if sign * ((one.position > after) - (one.position < after)) > 0
        ]
    return session_page_of(found, scan.limit)


def _meets(session: Session, criteria: SessionCriteria) -> bool:
    wanted = criteria.metadata
    return (
        (criteria.start is None or session.active_at >= criteria.start)
        and (criteria.end is None or session.active_at < criteria.end)
        and (wanted is None or json_contains(session.metadata, wanted))
        and (criteria.provider is None or criteria.provider in dict(session.providers))
        and session.title.startswith(criteria.title_prefix or "")
    )


class ModelSessions(SessionWrites, SessionRows):
    """Reads of sessions at one instant within the call."""

    @abc.abstractmethod
    async def _look_at_sessions(self, look: Callable[[Mapping[str, Session]], T]) -> T:
        """Call ``look`` at one instant; its result must keep no reference to the rows."""

    @abc.abstractmethod
    async def _deletable_ids(self, session_id: str, upto: int, limit: int) -> list[str]:
        """Return ids of messages of a session with sequences up to ``upto``."""

    async def _deletable(self, session_id: str, limit: int) -> tuple[int, list[str]]:
        found = (await self.sessions_by_id([session_id])).get(session_id)
        upto = 0 if found is None else found.deleting
        return upto, await self._deletable_ids(session_id, upto, limit)

    async def get_session(self, session_id: str) -> Session:
        """See the contract."""
        found = (await self.sessions_by_id([session_id])).get(session_id)
        if found is None or not found.exists:
            raise SessionNotFoundError(session_id)
        return found

    async def list_sessions(self, criteria: SessionCriteria, scan: SessionScan) -> SessionPage:
        """See the contract."""
        return await self._look_at_sessions(lambda rows: listed(rows, criteria, scan))

    async def unfinished_session_deletions(self, limit: int) -> list[str]:
        """See the contract."""
        return await self._look_at_sessions(
            lambda rows: sorted(key for key, one in rows.items() if one.deleting)[:limit]
        )

    async def sessions_by_id(self, session_ids: Sequence[str]) -> dict[str, Session]:
        """See ``SessionRows``."""
        return await self._look_at_sessions(
            lambda rows: {key: rows[key] for key in session_ids if key in rows}
        )

    async def scan_sessions(self, after: str | None, upto: str, limit: int) -> SessionPage:
        """See ``SessionRows``."""

        def look(rows: Mapping[str, Session]) -> SessionPage:
            found = sorted(key for key in rows if (after is None or after < key) and key <= upto)
            return session_page_of((rows[key] for key in found), limit)

        return await self._look_at_sessions(look)

    async def last_session(self) -> str | None:
        """See ``SessionRows``."""
        return await self._look_at_sessions(lambda rows: max(rows, default=None))

    async def count_sessions(self) -> int:
        """See ``SessionRows``."""
        return await self._look_at_sessions(len)
