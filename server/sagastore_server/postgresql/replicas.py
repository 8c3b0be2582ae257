"""Replicas: which server of PostgreSQL answers a read.

* ``latest``: the primary.
* ``at_least``: a replica in rotation that has replayed the position; if there is none, the
  first one that does within ``postgres_replica_wait``; then the primary.
* ``any_replica``: the replicas in rotation in turn; without any, the primary.

A read that fails on a replica runs on the primary, in the same call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sagastore_server.interfaces.consistency import Consistency, Level, WalPosition
from sagastore_server.interfaces.instruments import Fallback, Instruments
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.postgresql.errors import AGAIN, DRIVER_ERRORS, sqlstate, translated
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.primary_log import PrimaryLog
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.replica import (
    Fetch,
    NotUsableError,
    Replica,
    ReplicaAnswer,
    Satisfied,
)
from sagastore_server.runtime.read_batcher import ReadBatcher
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor
from sagastore_server.storage.errors import StorageError
from sagastore_server.storage.load import ReplicaLoad

_CANCELLED = "57014"


class _Row(NamedTuple):
    row: Any
    """None: there is no such row."""
    position: WalPosition


class _Waiter(NamedTuple):
    satisfied: Satisfied
    chosen: asyncio.Future[Replica]


class Replicas:
    """The read replicas of a store. Belongs to one event loop."""

    def __init__(
        self,
        options: PostgreSQLOptions,
        pool: Pool,
        supervisor: Supervisor,
        instruments: Instruments,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Describe the replicas of ``options``; only `start` connects.

        Args:
            options: Those of the store.
            pool: Connections to the primary.
            supervisor: Runs the tasks that watch the servers.
            instruments: Gets the reads, waits and fallbacks.
            tracer: Records spans.

        """
        self._wait = options.replica_wait
        self._statement_timeout = options.statement_timeout
        self._supervisor = supervisor
        self._instruments = instruments
        self._log = PrimaryLog(pool, options.replica_max_lag)
        self._replicas = [
            Replica(number, options, pool, self._log, tracer)
            for number in range(1, len(options.replicas) + 1)
        ]
        self._batches = {
            replica: _Batches(replica, self._satisfied_by) for replica in self._replicas
        }
        self._turn = 0
        self._waiters: dict[_Waiter, None] = {}  # A set has no order to rely on.
        self._tasks: list[SupervisedTask] = []
        for replica in self._replicas:
            replica.on_mark = partial(self._serve_waiters, replica)
            replica.is_wanted = lambda: bool(self._waiters)
        if self._replicas:
            instruments.replicas_used([str(replica.number) for replica in self._replicas])

    def start(self) -> None:
        """Start to watch the servers; until that has shown their states, the primary answers."""
        if self._tasks or not self._replicas:
            return
        start = self._supervisor.start
        self._tasks = [
            start(f"postgresql-replica-{replica.number}", replica.run) for replica in self._replicas
        ]
        self._tasks.append(start("postgresql-primary-log", self._log.run))

    async def close(self) -> None:
        """Disconnect."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*(task.stop() for task in tasks))

    @property
    def are_used(self) -> bool:
        """Whether there are replicas, in rotation or not."""
        return bool(self._replicas)

    def loads(self) -> tuple[ReplicaLoad, ...]:
        """Return the states of the replicas; unknown while they are not watched."""
        now = time.monotonic()
        return tuple(replica.load(now) for replica in self._replicas)

    # ------------------------------------------------------------------ reads

    async def rows(self, need: Consistency, sql: str, fetch: Fetch) -> ReplicaAnswer | None:
        """Run a read-only statement on a replica.

        Args:
            need: Requirement of the read.
            sql: The statement. Its first column must not be NULL.
            fetch: Runs the statement that it gets.

        Returns:
            The answer, or None if the primary must answer.

        Raises:
            UnavailableError: The statement has exceeded its time limit.

        """
        replica = await self._choose(need)
        if replica is None:
            return None
        began = time.monotonic()
        try:
            answer = await replica.read(sql, fetch, self._satisfied_by(_positions(need)))
        except (*DRIVER_ERRORS, StorageError, NotUsableError) as exc:
            self._fall_back(replica, exc, time.monotonic() - began)
            return None
        self._instruments.read_answered(str(replica.number), need.level)
        return answer

    async def message(self, need: Consistency, message_id: str) -> ReplicaAnswer | None:
        """As `rows`, for a row of a message; concurrent reads on a replica share a statement."""
        replica = await self._choose(need)
        if replica is None:
            return None
        began = time.monotonic()
        try:
            found = await self._batches[replica].get(message_id, need)
        except (*DRIVER_ERRORS, StorageError, NotUsableError) as exc:
            self._fall_back(replica, exc, time.monotonic() - began)
            return None
        self._instruments.read_answered(str(replica.number), need.level)
        return ReplicaAnswer([] if found.row is None else [found.row], found.position)

    def _fall_back(self, replica: Replica, error: Exception, took: float) -> None:
        """Record why the primary must answer instead of ``replica``.

        Raises:
            UnavailableError: Its time is up.

        """
        replica.nudge()
        if isinstance(error, NotUsableError):
            reason = Fallback.BEHIND
        elif sqlstate(error) == _CANCELLED and took >= self._statement_timeout:
            raise translated(error) from error
        elif isinstance(error, AGAIN) or sqlstate(error) == _CANCELLED:
            reason = Fallback.CONFLICT
        else:
            reason = Fallback.FAILED
        self._instruments.read_fell_back(reason)

    # ------------------------------------------------------------------ choice

    async def _choose(self, need: Consistency) -> Replica | None:
        """Return the replica that answers a read, or None if the primary does."""
        if need.level is Level.LATEST or not self._replicas:
            return None
        now = time.monotonic()
        satisfied = self._satisfied_by(_positions(need))
        fit = [replica for replica in self._replicas if replica.out(now) is None]
        ready = [one for one in fit if one.mark is not None and satisfied(one.mark)]
        if ready:
            self._turn += 1
            return ready[self._turn % len(ready)]
        if not fit:
            self._instruments.read_fell_back(Fallback.NO_REPLICA)
            return None
        chosen = await self._awaited(satisfied) if self._may_come(need) else None
        if chosen is None:
            self._instruments.read_fell_back(Fallback.BEHIND)
        return chosen

    def _satisfied_by(self, positions: Sequence[WalPosition]) -> Satisfied:
        """Return which watermarks are enough for a read that needs all of ``positions``."""
        has = self._log.has
        return lambda mark: all(has(mark, one) for one in positions)

    def _may_come(self, need: Consistency) -> bool:
        """Return whether the positions belong to this cluster, and to no later timeline."""
        latest = self._log.position
        return latest is not None and all(
            one.system == latest.system and one.timeline <= latest.timeline
            for one in _positions(need)
        )

    async def _awaited(self, satisfied: Satisfied) -> Replica | None:
        """Wait for the first replica whose watermark is enough."""
        began = time.monotonic()
        waiter = _Waiter(satisfied, asyncio.get_running_loop().create_future())
        self._waiters[waiter] = None
        for replica in self._replicas:
            replica.nudge()
        try:
            async with asyncio.timeout(self._wait):
                return await waiter.chosen
        except TimeoutError:
            return None
        finally:
            del self._waiters[waiter]
            self._instruments.replica_awaited(time.monotonic() - began)

    def _serve_waiters(self, replica: Replica) -> None:
        mark = replica.mark
        if not self._waiters or mark is None or replica.out(time.monotonic()):
            return
        for waiter in self._waiters:
            if not waiter.chosen.done() and waiter.satisfied(mark):
                waiter.chosen.set_result(replica)


class _Batches:
    """Reads of messages on one replica, combined.

    A batch is checked against the highest position that any read was admitted with. The replica had
    replayed that, so it only fails if the replica has gone back.
    """

    def __init__(
        self, replica: Replica, satisfied_by: Callable[[Sequence[WalPosition]], Satisfied]
    ) -> None:
        self._replica = replica
        self._satisfied_by = satisfied_by
        self._batcher: ReadBatcher[_Row] = ReadBatcher(self._fetch)
        self._admitted: dict[int, WalPosition] = {}
        """The highest position by cluster."""

    async def get(self, message_id: str, need: Consistency) -> _Row:
        for one in _positions(need):
            self._admitted[one.system] = max(one, self._admitted.get(one.system, one))
        found = await self._batcher.get(message_id)
        assert found is not None  # noqa: S101 - `_fetch` answers for every id
        return found

    async def _fetch(self, ids: list[str]) -> Mapping[str, _Row]:
        async def fetch(connection: Connection, statement: str) -> list[Any]:
            found: list[Any] = await connection.fetch(statement, ids)
            return found

        satisfied = self._satisfied_by(tuple(self._admitted.values()))
        answer = await self._replica.read(QUERIES["batch_get"], fetch, satisfied)
        found = dict.fromkeys(ids, _Row(None, answer.position))
        for row in answer.rows:
            found[row[0]] = _Row(row, answer.position)
        return found


def _positions(need: Consistency) -> Sequence[WalPosition]:
    """Return the positions that a read must not be older than."""
    wanted = need.position if need.level is Level.AT_LEAST else None
    return [one for one in (wanted, need.seen) if one is not None]
