"""Planted faults of failover and durability, which rounds of the profile ``cluster`` must catch.

Each reverts one guarantee of docs/explanation/replication.md.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sagastore_server.config.connection import Address
from sagastore_server.interfaces.consistency import Consistency, Level
from sagastore_server.postgresql import commit, timeline
from sagastore_server.postgresql.connecting import Connector
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.positions import Commit, committed_at
from sagastore_server.postgresql.primary import NotThePrimaryError, Primary, Role
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.replica import Fetch, NotUsableError, Replica, Satisfied
from sagastore_server.postgresql.replicas import Replicas
from sagastore_server.postgresql.watermark import Watermark
from tools.chaos.plant_registry import plant, replace

CLUSTER = "cluster"

_LATE = """
SELECT answer.*, here.place FROM (
    SELECT format('%s %s %s',
        CASE WHEN pg_sleep(0.005)::text IS NOT NULL
            THEN pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint END,
        pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')::bigint,
        (SELECT received_tli FROM pg_stat_wal_receiver)) AS place
    OFFSET 0
) AS here
"""
"""Position of a standby some milliseconds after the snapshot of the statement, as in a slow one."""

_FOREVER = 300.0
"""Seconds that exceed every round."""


@plant(
    "ignore-replication-warning",
    "a commit whose wait for a standby was cancelled is acknowledged",
    CLUSTER,
)
def _ignore_replication_warning() -> None:
    replace(commit, "_CANCELLED_IN", "no function has this name")


@plant(
    "ignore-timeline",
    "a primary on a lower timeline is used again, and its connections are kept",
    CLUSTER,
)
def _ignore_timeline() -> None:
    def accept(self: Primary, address: Address, role: Role) -> None:
        if role.is_standby:
            raise NotThePrimaryError("the server of PostgreSQL is a standby")
        self.address, self.timeline = address, role.timeline

    def choose(self: Primary, found: Any) -> None:
        """Leave the choice to the order of the hosts."""

    replace(Primary, "accept", accept)
    replace(Primary, "choose", choose)
    replace(Connector, "_promoted", lambda self: self._on_promotion())


@plant("no-host-timeout", "a silent host has no separate time limit", CLUSTER)
def _no_host_timeout() -> None:
    original = Connector.__init__

    def create(self: Connector, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.timeout = _FOREVER

    replace(Connector, "__init__", create)


@plant("repeat-revisions", "no revisions are skipped on a new timeline", CLUSTER)
def _repeat_revisions() -> None:
    async def enter(*_: Any) -> None:
        """Go on with the numbers of the sequence."""

    replace(timeline, "enter", enter)


@plant("position-before-commit", "the position of a write is read before its COMMIT", CLUSTER)
def _position_before_commit() -> None:
    @asynccontextmanager
    async def write(self: Pool, connection: Connection) -> AsyncIterator[Commit]:
        commit = Commit()
        async with self.transaction(connection, QUERIES["begin"], acknowledged=True):
            yield commit
            commit.position = await committed_at(connection)

    replace(Pool, "write", write)


@plant(
    "check-in-the-same-statement",
    "a replica is asked for its position in the statement that reads",
    CLUSTER,
)
def _check_in_the_same_statement() -> None:
    async def choose(self: Replicas, need: Consistency) -> Replica | None:
        now = time.monotonic()
        fit = [replica for replica in self._replicas if replica.out(now) is None]
        if need.level is Level.LATEST or not fit:
            return None
        self._turn += 1
        return fit[self._turn % len(fit)]

    async def fetched(  # noqa: PLR0917 - the parameters of the original
        self: Replica,
        connection: Connection,
        mark: Watermark,
        sql: str,
        fetch: Fetch,
        satisfied: Satisfied,
    ) -> list[Any]:
        rows = await fetch(connection, f"{_LATE}LEFT JOIN (\n{sql}\n) AS answer ON true")
        lsn, _, timeline = rows[0][-1].split(" ")
        if not satisfied(mark._replace(lsn=int(lsn), timeline=int(timeline or 0))):
            raise NotUsableError
        return rows

    replace(Replicas, "_choose", choose)
    replace(Replica, "_fetched", fetched)
