"""Monitor of the lease in PostgreSQL while a second server tries to start."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple, Self

import asyncpg

_EVERY = 0.02
_WITHIN = 0.5
"""Seconds. If an answer takes longer, the second server may have received none either."""

_SPARE = 0.2
"""Seconds that a lease must have left so that the next query finds the same holder."""


class LeaseState(NamedTuple):
    """Lease as read from PostgreSQL at one moment."""

    holder: str
    seconds: float
    """Seconds until the lease expires."""


class LeaseWatch:
    """Queries the lease repeatedly on a separate connection for the duration of the context."""

    def __init__(self, dsn: str) -> None:
        """Create the monitor; ``dsn`` bypasses the proxy."""
        self.states: list[LeaseState | None] = []
        """None: PostgreSQL did not answer."""
        self._dsn = dsn
        self._queried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(), name="lease watch")
        await self._queried.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def held(self) -> bool:
        """Whether one server held the lease throughout, or lost it before it expired.

        Only then could the second server detect a holder, and it must not have served. A holder
        that stops releases its lease.
        """
        first = before = self.states[0]
        for state in self.states:
            if state is None or before is None or first is None or not state.holder:
                return False
            if before.seconds < _SPARE:
                return False
            if state.holder != first.holder:
                return True
            before = state
        return before is not None and before.seconds >= _SPARE

    async def _watch(self) -> None:
        connection: asyncpg.Connection | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(_WITHIN):
                        if connection is None:
                            connection = await asyncpg.connect(self._dsn)
                        row = await connection.fetchrow(
                            "SELECT holder, extract(epoch FROM lease_until - "
                            "clock_timestamp())::float8 FROM migration"
                        )
                    self.states.append(None if row is None else LeaseState(*row))
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    self.states.append(None)
                self._queried.set()
                await asyncio.sleep(_EVERY)
        finally:
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.terminate()
