"""SessionWrites: the writes of ``SessionBackend`` for a store that applies ``Changes``."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TypeVar

from sagastore_server.storage.batch_saves import BatchSaves
from sagastore_server.storage.errors import (
    InvalidRequestError,
    NotFoundError,
    ResponseTooLargeError,
    StaleReadError,
    Violation,
)
from sagastore_server.storage.model import Message, NewMessage, Position
from sagastore_server.storage.query import Scan
from sagastore_server.storage.session_base import MAX_TRUNCATED
from sagastore_server.storage.sessions import AppendResult, DeletionStep, Session, Truncation

STEP = 500
"""Messages that one step of a deletion deletes: their transaction takes some tens of milliseconds,
which other writes wait."""

_ATTEMPTS = 20
"""Attempts of a truncation against other writers of the session."""

T = TypeVar("T")


class SessionWrites(BatchSaves):
    """Implements the writes of sessions by groups of ``Changes``."""

    @abc.abstractmethod
    async def _deletable(self, session_id: str, limit: int) -> tuple[int, list[str]]:
        """Return ``Session.deleting`` of a session, and ids of messages up to that sequence."""

    async def append(
        self,
        session_id: str,
        messages: Sequence[NewMessage],
        if_revision: int | None = None,
        everywhere_within: float | None = None,
    ) -> AppendResult:
        """See the contract."""
        del everywhere_within  # One store is every store.
        outcome, saved, durable_on = await self._change(
            [one.id for one in messages],
            (session_id,),
            lambda changes: changes.append(session_id, messages, if_revision),
            messages,
        )
        return AppendResult(outcome.resolved(), saved, durable_on)

    async def update_session(
        self,
        session_id: str,
        title: str | None = None,
        metadata: str | None = None,
        if_revision: int | None = None,
    ) -> Session:
        """See the contract."""
        outcome = await self._change(
            (),
            (session_id,),
            lambda changes: changes.update_session(session_id, title, metadata, if_revision),
        )
        return outcome.resolved()

    async def truncate_session(
        self,
        session_id: str,
        *,
        drop_last: int | None = None,
        keep_through: str | None = None,
        if_revision: int | None = None,
        most_bytes: int = 0,
    ) -> Truncation:
        """See the contract.

        Reads the end of the session first, and writes only if the session has not changed since.

        Raises:
            StaleReadError: Other writers changed the session during each attempt.

        """
        for attempt in range(1, _ATTEMPTS + 1):
            read = await self.get_session(session_id)
            if keep_through is None:
                removed = await self._last(session_id, drop_last or 0, None)
            else:
                removed = await self._after(session_id, keep_through)
            if most_bytes and sum(one.size for one in removed) > most_bytes:
                raise ResponseTooLargeError(
                    f"the {len(removed):,} messages to remove are too large for one response; "
                    "remove fewer at a time"
                )
            try:
                return await self._remove(read, removed, if_revision)
            except StaleReadError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError

    async def _remove(
        self, read: Session, removed: list[Message], if_revision: int | None
    ) -> Truncation:
        ids = [one.id for one in removed]
        outcome = await self._change(
            ids,
            (read.session_id,),
            lambda changes: changes.truncate_session(read, ids, if_revision),
        )
        return Truncation(tuple(reversed(removed)), outcome.resolved())

    async def _after(self, session_id: str, keep_through: str) -> list[Message]:
        """Return the messages after the message ``keep_through``, newest first."""
        kept = await self.get(keep_through)
        if kept.session_id != session_id:
            raise NotFoundError(keep_through)
        found = await self._last(session_id, MAX_TRUNCATED + 1, kept.position)
        if len(found) > MAX_TRUNCATED:
            reason = f"is followed by more than {MAX_TRUNCATED:,} messages, the most for one call"
            raise InvalidRequestError((Violation("keep_through", reason),))
        return found

    async def _last(self, session_id: str, count: int, above: Position | None) -> list[Message]:
        """Return the last messages of a session after the position ``above``, newest first."""
        found: list[Message] = []
        after: Position | None = None
        more = True
        while more and len(found) < count:
            page = await self.list_session(session_id, Scan(True, count - len(found), after))
            more = page.more
            for one in page.messages:
                if above is not None and one.position <= above:
                    return found
                found.append(one)
                after = one.position
        return found

    async def begin_session_deletion(self, session_id: str, if_revision: int | None = None) -> None:
        """See the contract."""
        await self._change(
            (),
            (session_id,),
            lambda changes: changes.begin_session_deletion(session_id, if_revision),
        )

    async def delete_session_step(self, session_id: str) -> DeletionStep:
        """See the contract: up to ``STEP`` messages."""
        upto, ids = await self._deletable(session_id, STEP)
        if not upto:
            return DeletionStep(0, done=True)
        return await self._change(
            ids, (session_id,), lambda changes: changes.delete_some(session_id, upto, ids)
        )
