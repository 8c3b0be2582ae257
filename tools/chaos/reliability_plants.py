"""Planted faults that reintroduce former bugs of the guarantees in docs/explanation/reliability.md.

Each reverts one fix: which SQLite answers are released while PostgreSQL answers reads, what `flush`
waits for, which server may acknowledge, and how a set-back of PostgreSQL is detected.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from sagastore_server.migration.lease import TargetSession
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.router import Router
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from tools.chaos.plant_registry import plant, replace


def _release_at_once(*, failed: bool) -> None:
    """Release SQLite's answer at once if PostgreSQL failed to answer, or was not asked."""
    read_before, release_before = Router._read, Router._release
    asked = ContextVar[bool]("asked")

    async def read(self: Router, name: str, read: Any) -> Any:
        token = asked.set(self._current_state.phase.reads_postgres and self._fallback.current)
        try:
            return await read_before(self, name, read)
        finally:
            asked.reset(token)

    async def release(self: Router) -> None:
        if asked.get() is not failed:
            await release_before(self)
        elif self._writes_sqlite():
            self._fallback.check_lease()

    replace(Router, "_read", read)
    replace(Router, "_release", release)


@plant(
    "release-read-before",
    "an answer of SQLite to a read that began before PostgreSQL became current is released at once",
)
def _release_read_before() -> None:
    _release_at_once(failed=False)


@plant(
    "release-failed-read",
    "an answer of SQLite to a read that PostgreSQL failed to answer is released at once",
)
def _release_failed_read() -> None:
    _release_at_once(failed=True)


@plant("flush-at-once", "a flush does not wait for queued writes")
def _flush_at_once() -> None:
    async def flush(self: SQLiteSource) -> int:
        return self.committed

    replace(SQLiteSource, "flush", flush)


@plant(
    "acknowledge-unproved",
    "a write is acknowledged without checking whether another server has taken over",
)
def _acknowledge_unproved() -> None:
    async def confirmed(self: Router) -> bool:
        if not self._writes_sqlite() or not self._current_state.phase.reads_postgres:
            return False
        return await self._fallback.confirm(self._source.committed)

    replace(Router, "_confirmed", confirmed)


@plant("trust-set-back", "PostgreSQL's position is never compared with its former position")
def _trust_set_back() -> None:
    holding = PostgreSQLTarget._holding

    async def trusting(
        self: PostgreSQLTarget, lease: Any, work: Any, applied: int = 0, *_: Any, **__: Any
    ) -> Any:
        return await holding(self, lease, work, applied)

    async def renew(self: TargetSession) -> None:
        await self.request(self._target.renew(self.lease))

    replace(PostgreSQLTarget, "_holding", trusting)
    replace(TargetSession, "renew", renew)


@plant("connection-loss-unheard", "a lost connection to PostgreSQL is not followed by a comparison")
def _connection_loss_unheard() -> None:
    def connection_lost(self: Replicator) -> None:
        """Trust the next answer."""

    replace(Replicator, "_connection_lost", connection_lost)
