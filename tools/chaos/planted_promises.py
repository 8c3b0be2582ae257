"""Planted faults that break one of the promises of docs/reliability.md that were broken once.

Each undoes one repair: what SQLite shows while PostgreSQL answers reads, what `flush` waits
for, who may acknowledge, and how a PostgreSQL that was set back is found.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from sagastore_server.migration.lease import TargetSession
from sagastore_server.migration.replicator import Replicator
from sagastore_server.migration.router import Router
from sagastore_server.postgresql.replica import PostgreSQLReplica
from sagastore_server.sqlite.source import SQLiteSource
from tools.chaos.planting import plant, replace


def _hand_out_at_once(*, failed: bool) -> None:
    """Hand out an answer of SQLite at once where PostgreSQL failed to answer, or was not asked."""
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
    "an answer of SQLite to a read from before PostgreSQL became current is handed out at once",
)
def _release_read_before() -> None:
    _hand_out_at_once(failed=False)


@plant(
    "release-failed-read",
    "an answer of SQLite to a read that PostgreSQL failed to answer is handed out at once",
)
def _release_failed_read() -> None:
    _hand_out_at_once(failed=True)


@plant("flush-at-once", "flushing the queue of writes does not wait for those in it")
def _flush_at_once() -> None:
    async def flush(self: SQLiteSource) -> int:
        return self.committed

    replace(SQLiteSource, "flush", flush)


@plant(
    "acknowledge-unproved",
    "a write is acknowledged without a look at whether another server has taken over",
)
def _acknowledge_unproved() -> None:
    async def confirmed(self: Router) -> bool:
        if not self._writes_sqlite() or not self._current_state.phase.reads_postgres:
            return False
        return await self._fallback.confirm(self._source.committed)

    replace(Router, "_confirmed", confirmed)


@plant("trust-set-back", "PostgreSQL's position is never compared with what it was")
def _trust_set_back() -> None:
    holding = PostgreSQLReplica._holding

    async def trusting(
        self: PostgreSQLReplica, lease: Any, work: Any, applied: int = 0, *_: Any, **__: Any
    ) -> Any:
        return await holding(self, lease, work, applied)

    async def renew(self: TargetSession) -> None:
        await self.request(self._target.renew(self.lease))

    replace(PostgreSQLReplica, "_holding", trusting)
    replace(TargetSession, "renew", renew)


@plant("connection-loss-unheard", "a lost connection to PostgreSQL is not followed by a comparison")
def _connection_loss_unheard() -> None:
    def connection_lost(self: Replicator) -> None:
        """Trust whatever answers next."""

    replace(Replicator, "_connection_lost", connection_lost)
