"""SessionDeletion: deletes whole sessions step by step, and completes interrupted deletions.

A deletion is recorded in the row of the session before its first step, so it is completed after a
crash, and after a caller that has gone: a background task looks for deletions that no call works
on. Several servers on one PostgreSQL may work on the same one, which changes nothing but the
number of messages that each of them deletes.
"""

from __future__ import annotations

import asyncio
import logging

from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import StorageError

RESUME_EVERY = 30.0
"""Seconds between two searches for interrupted deletions."""

_AT_ONCE = 100
"""Interrupted deletions found by one search."""

_log = logging.getLogger(__name__)


class SessionDeletion:
    """Deletes sessions of one backend."""

    def __init__(self, backend: StorageBackend, supervisor: Supervisor) -> None:
        """Prepare to delete sessions of ``backend``."""
        self._backend = backend
        self._supervisor = supervisor
        self._deleting: dict[str, int] = {}
        """Number of callers that delete a session now."""
        self._task: SupervisedTask | None = None

    def start(self) -> None:
        """Complete interrupted deletions, now and from time to time. The backend must be open."""
        if self._task is None:
            self._task = self._supervisor.start("session-deletion", self._run)

    async def stop(self) -> None:
        """Stop completing deletions."""
        if self._task is not None:
            await self._task.stop()
            self._task = None

    async def delete(self, session_id: str, if_revision: int | None = None) -> int:
        """Delete a session and its messages; return the number of messages deleted.

        If the caller is cancelled, the deletion is completed later.

        Raises:
            SessionNotFoundError: No session has the id.
            SessionRevisionMismatchError: ``if_revision`` is not the revision of the session.
            StorageError: As ``StorageBackend``; the deletion is completed later.

        """
        self._deleting[session_id] = self._deleting.get(session_id, 0) + 1
        try:
            await self._backend.begin_session_deletion(session_id, if_revision)
            return await self._complete(session_id)
        finally:
            self._deleting[session_id] -= 1
            if not self._deleting[session_id]:
                del self._deleting[session_id]

    async def _complete(self, session_id: str) -> int:
        deleted = 0
        while True:
            step = await self._backend.delete_session_step(session_id)
            deleted += step.deleted
            if step.done:
                return deleted

    async def _run(self) -> None:
        while True:
            try:
                await self._resume()
            except StorageError as exc:
                _log.warning("interrupted deletions of sessions are retried: %s", exc)
            await asyncio.sleep(RESUME_EVERY)

    async def _resume(self) -> None:
        for session_id in await self._backend.unfinished_session_deletions(_AT_ONCE):
            if session_id not in self._deleting:
                deleted = await self._complete(session_id)
                _log.info(
                    "completed an interrupted deletion of a session: %d messages deleted", deleted
                )
