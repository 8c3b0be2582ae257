"""PrimaryLog: how far the primary had written, and when.

The lag of a replica is derived from it: if the replica has replayed what the primary had written
at some time, it has everything that was acknowledged before that time. The clocks of the servers
do not matter, nor whether anything was written meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from typing import Any, NamedTuple

import asyncpg

from sagastore_server.interfaces.consistency import WalPosition
from sagastore_server.postgresql.errors import DRIVER_ERRORS
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.watermark import Identity, Watermark, identity_of
from sagastore_server.storage.errors import StorageError

EVERY = 0.5
"""Seconds between two samples, if the longest lag is short."""

_SAMPLES = 64
"""Number of samples that cover the longest lag."""

_TIMEOUT = 5.0
"""Seconds for one sample. A primary that is busy is slow, but its replicas are not bad for that."""

_POSITION = """
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_flush_lsn()) END,
    CASE WHEN NOT pg_is_in_recovery()
        THEN pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint END
"""
"""The name of a WAL file begins with the timeline (see ``primary.ROLE``). What was acknowledged is
flushed."""


_REFUSALS = (asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError)


class _Sample(NamedTuple):
    at: float
    """`time.monotonic` before it was taken."""
    position: WalPosition


class PrimaryLog:
    """The latest samples of the position of the primary. Belongs to one event loop."""

    def __init__(self, pool: Pool, longest: float) -> None:
        """Sample over ``pool``, for lags of up to ``longest`` seconds."""
        self._pool = pool
        self._every = max(EVERY, longest / _SAMPLES)
        self._samples: deque[_Sample] = deque(maxlen=math.ceil(longest / self._every) + 2)
        self._known = asyncio.Event()
        self._entered: dict[int, int] = {}
        """By timeline: an LSN at or after its beginning."""
        self.is_refused = False
        """Whether PostgreSQL refuses to tell positions to this role."""
        self.identity: Identity | None = None
        """Identity of the primary; None: not known yet."""

    @property
    def timeline(self) -> int:
        """Current timeline; 0: not known."""
        return self._samples[-1].position.timeline if self._samples else 0

    @property
    def position(self) -> WalPosition | None:
        """The latest position."""
        return self._samples[-1].position if self._samples else None

    async def first_identity(self) -> Identity:
        """Return the identity of the primary, as soon as it is known."""
        await self._known.wait()
        assert self.identity is not None  # noqa: S101 - set before the event
        return self.identity

    def has(self, mark: Watermark, position: WalPosition) -> bool:
        """Return whether a server with ``mark`` has everything of ``position`` that is not lost.

        A failover may lose the end of a timeline. A server that has entered a later one has all
        that is left of it.
        """
        if mark.reaches(position):
            return True
        return (
            position.system == mark.identity.system
            and position.timeline < mark.timeline
            and mark.lsn >= self._entered.get(mark.timeline, math.inf)
        )

    def precedes(self, mark: Watermark) -> bool | None:
        """Return whether the primary was not behind ``mark`` after that was read; None: unknown.

        False shows that the server does not follow the primary, whatever its system identifier is:
        a copy of a cluster, for example from a snapshot of its disk, has the same one.
        """
        if not self._samples or self._samples[-1].at < mark.ended:
            return None
        latest = self._samples[-1].position
        return latest.lsn >= mark.lsn if latest.timeline == mark.timeline else None

    def age(self, mark: Watermark, now: float) -> float:
        """Return seconds: everything that was acknowledged before is in the state of ``mark``.

        Infinity if that is not known.
        """
        for sample in reversed(self._samples):
            if mark.reaches(sample.position):
                return max(0.0, now - sample.at)
        return math.inf

    def lag(self, mark: Watermark, now: float) -> tuple[float, int]:
        """Return by how many seconds and bytes ``mark`` is behind; zero if it has the latest."""
        if not self._samples or mark.reaches(self._samples[-1].position):
            return 0.0, 0
        age = self.age(mark, now)
        if math.isinf(age):
            age = max(0.0, now - self._samples[0].at)
        return age, max(0, self._samples[-1].position.lsn - mark.lsn)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            # The pool logs what is wrong with the primary.
            with contextlib.suppress(*DRIVER_ERRORS, StorageError, ValueError):
                # Not from the pool, which may be busy when replicas are needed most.
                async with self._pool.dedicated() as connection:
                    try:
                        await self._sample_on(connection)
                    except _REFUSALS:
                        self.is_refused = True
            await asyncio.sleep(EVERY)

    async def _sample_on(self, connection: Connection) -> None:
        async with asyncio.timeout(_TIMEOUT):
            self.identity = await identity_of(connection)
        while True:
            if not await self._sample(connection, self.identity):
                return
            await asyncio.sleep(self._every)

    async def _sample(self, connection: Any, identity: Identity) -> bool:
        began = time.monotonic()
        async with asyncio.timeout(_TIMEOUT):
            file, lsn = await connection.fetchrow(_POSITION)
        if file is None:
            return False  # A standby now; the pool finds the new primary.
        position = WalPosition(identity.system, int(file[:8], 16), lsn)
        self.add(began, position)
        self.is_refused = False
        self._known.set()
        return True

    def add(self, at: float, position: WalPosition) -> None:
        """Record that the primary had written up to ``position`` after ``at``."""
        self._entered.setdefault(position.timeline, position.lsn)
        self._samples.append(_Sample(at, position))
