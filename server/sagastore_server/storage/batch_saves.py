"""BatchSaves: ``StorageBackend.batch_save`` for a store that applies ``Changes``."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TypeVar

from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.changes import Changes
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.model import NewMessage, SaveRequest, SaveResult

T = TypeVar("T")


class BatchSaves(StorageBackend):
    """Implements batches of saves as one write, which is committed as a whole."""

    @abc.abstractmethod
    async def _change(
        self,
        ids: Sequence[str],
        sessions: Sequence[str],
        apply: Callable[[Changes], T],
        messages: Sequence[NewMessage] = (),
    ) -> T:
        """Apply a write that concerns messages and sessions, and return its result.

        The sessions of the stored messages need not be given. ``messages`` are those that it
        stores, so that long texts can be analysed before.
        """

    async def batch_save(self, requests: Sequence[SaveRequest]) -> list[SaveResult | Exception]:
        """See the contract. One store is every store, so ``everywhere_within`` has no effect."""
        messages = [request.message for request in requests]
        try:
            return await self._change(
                [message.id for message in messages],
                sessions_of(*messages),
                lambda changes: [_outcome(changes, request) for request in requests],
                messages,
            )
        except Exception as exc:
            if _concerns_the_store(exc):
                raise
            return await super().batch_save(requests)


def _concerns_the_store(error: Exception) -> bool:
    """Return whether every request would fail with ``error``.

    A subclass of StorageError names a state of the store. Anything else may have been caused by
    one of the requests, which must not affect the others.
    """
    return isinstance(error, StorageError) and type(error) is not StorageError


def _outcome(changes: Changes, request: SaveRequest) -> SaveResult | Exception:
    try:
        return changes.save(request.message, request.if_revision)
    except StorageError as exc:
        return exc


def sessions_of(*messages: NewMessage) -> tuple[str, ...]:
    """Return the sessions of messages, each once."""
    found = {one.session_id: None for one in messages if one.session_id is not None}
    return tuple(found)
