"""Failover manager of the harness: does for the nodes what Patroni does for a real cluster.

It loses no acknowledged commit if ``synchronous_standby_names`` requires one of the standbys:

1. All standbys that may have confirmed commits stop receiving WAL, so that a former primary which
   runs again gets no further confirmation.
2. The one with the most WAL is promoted. It has every confirmed commit, because *all* of them are
   compared; the manager waits for those that do not answer.
3. The others follow it. The former primary is stopped, rewound or copied again, and follows, too.

SagaStore has no part in this: it finds the primary.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tools.chaos.replication.nodes import NO_ANSWER, Node, Nodes

T = TypeVar("T")

PATIENCE = 90.0
"""Seconds in which a step of the manager must succeed on a busy machine."""

COMMITS = 5.0
"""Seconds in which a standby usually streams from a new primary, unless a fault prevents it."""

FOLLOWS = 20.0
"""Seconds in which a healthy standby streams, on a busy machine."""

_PAUSE = 0.01
_STANDBY = """
SELECT (SELECT count(*) FROM pg_stat_wal_receiver) AS receivers,
    (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup') AS waits_for,
    greatest(coalesce(pg_last_wal_receive_lsn(), '0/0'), pg_last_wal_replay_lsn()) - '0/0' AS lsn
"""
"""State of a standby. Its receiver reports what it has flushed since it was started; the replay
covers what was received before."""

_IDLE = "RecoveryRetrieveRetryInterval"
"""Wait event of a standby that has read all WAL it has and receives none (PostgreSQL
documentation, table 27.11)."""

_STREAMING = """
SELECT coalesce(array_agg(application_name), '{}') FROM pg_stat_replication
WHERE state = 'streaming'
"""


class FailoverManager:
    """Knows the primary, promotes standbys, and attaches nodes."""

    def __init__(self, nodes: Nodes, mark: Callable[..., object]) -> None:
        """Manage nodes that have just started: node 1 is the primary.

        Args:
            nodes: The nodes.
            mark: Records an event in the history of the round.

        """
        self.nodes = nodes
        self.mark = mark
        self.primary = nodes.all[0]
        self.attached = set(nodes.all[1:])
        """Standbys that may have confirmed commits of the primary."""

    @property
    def standbys(self) -> list[Node]:
        """The attached standbys, in the order of their numbers."""
        return sorted(self.attached, key=lambda node: node.number)

    async def promote(self) -> Node:
        """Promote the standby with the most WAL; return the former primary."""
        former, standbys = self.primary, self.standbys
        ends = await asyncio.gather(*(self._fence(node) for node in standbys))
        winner = max(zip(ends, standbys, strict=True), key=lambda one: one[0])[1]
        await _persist(lambda: winner.row("SELECT pg_promote(true, 60)"))
        self.primary = winner
        self.attached.discard(winner)
        self.mark("promoted", node=winner.name, former=former.name)
        await asyncio.gather(*(self._point(node) for node in self.standbys))
        if self.attached and await self._until_streaming(1, COMMITS):
            self.mark("replicates", node=winner.name)
        return former

    async def attach(self, node: Node, how: str) -> None:
        """Make a node without a role a standby of the primary; see `Node.follow_again`."""
        source = self.primary
        conninfo = self.nodes.conninfo(node, source)
        self.attached.add(node)
        await asyncio.to_thread(node.follow_again, source, conninfo, how)

    async def until_whole(self) -> None:
        """Wait until all attached standbys stream from the primary.

        A standby that cannot follow is copied again, as an operator would do.

        Raises:
            TimeoutError: They do not.

        """
        if await self._until_streaming(len(self.attached), FOLLOWS):
            return
        streaming = await _persist(self._streaming)
        for node in self.standbys:
            if node.name not in streaming:
                self.mark("standby copied again", node=node.name)
                await self.attach(node, "backup")
        if not await self._until_streaming(len(self.attached), PATIENCE):
            raise TimeoutError(f"not all standbys of {self.primary.name} stream")

    async def _until_streaming(self, count: int, within: float) -> bool:
        """Wait until ``count`` standbys stream; return whether they do."""
        until = time.monotonic() + within
        while len(await _persist(self._streaming)) < count:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_PAUSE)
        return True

    async def _streaming(self) -> list[str]:
        """Return the names of the standbys that stream from the primary."""
        names: list[str] = (await self.primary.row(_STREAMING))[0]
        return names

    async def recover(self) -> None:
        """End all faults of the nodes, and wait until three nodes replicate again."""
        for node in self.nodes.all:
            node.thaw()
            if node in {self.primary, *self.attached} and not node.pids():
                await asyncio.to_thread(node.start_again)
        for standby in self.standbys:
            await self._point(standby)
            await _persist(lambda one=standby: one.run(  # type: ignore[misc]
                "SELECT pg_wal_replay_resume() WHERE pg_is_in_recovery()"))  # fmt: skip
        for node in self.nodes.all:
            if node is not self.primary and node not in self.attached:
                await self.attach(node, "backup")
        await self.until_whole()

    async def _fence(self, node: Node) -> int:
        """Stop a standby from receiving WAL; return the end of the WAL that it has."""

        async def end_of_wal() -> int | None:
            await node.run(
                "ALTER SYSTEM SET primary_conninfo = ''",
                "SELECT pg_reload_conf()",
                "SELECT pg_wal_replay_resume()",
            )
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                found = await node.row(_STANDBY)
                if not found["receivers"] and found["waits_for"] == _IDLE:
                    return int(found["lsn"])
                await asyncio.sleep(_PAUSE)
            return None

        while True:
            found = await _persist(end_of_wal)
            if found is not None:
                return found

    async def _point(self, node: Node) -> None:
        conninfo = self.nodes.conninfo(node, self.primary)
        await _persist(
            lambda: node.run(
                f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'", "SELECT pg_reload_conf()"
            )
        )


async def _persist(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step until the node answers.

    Raises:
        TimeoutError, ...: It does not answer.

    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return await step()
        except NO_ANSWER:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_PAUSE)
