"""Watches who holds PostgreSQL while a second server tries to serve."""

from __future__ import annotations

import asyncio
import contextlib
from typing import NamedTuple, Self

import asyncpg

_EVERY = 0.02
_WITHIN = 0.5
"""Seconds; where an answer takes longer, the second server may have had none either."""

_SPARE = 0.2
"""Seconds that a lease must have left for the next look to find it with the same server."""


class Look(NamedTuple):
    """What PostgreSQL said at one moment."""

    holder: str
    seconds: float
    """Left of the lease."""


class LeaseWatch:
    """Looks at the lease, again and again, by a connection of its own, until it is left."""

    def __init__(self, dsn: str) -> None:
        """Prepare to watch; ``dsn`` leads directly to PostgreSQL."""
        self.looks: list[Look | None] = []
        """None: PostgreSQL did not say."""
        self._dsn = dsn
        self._looked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin, with a first look."""
        self._task = asyncio.create_task(self._watch(), name="lease watch")
        await self._looked.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def held(self) -> bool:
        """Whether one server had it all the time, or lost it while it had time left.

        Only then was there somebody whom a second server could have found, and it must
        not have served. A holder that stops gives the lease back, and nobody holds it.
        """
        first = before = self.looks[0]
        for look in self.looks:
            if look is None or before is None or first is None or not look.holder:
                return False
            if before.seconds < _SPARE:
                return False
            if look.holder != first.holder:
                return True
            before = look
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
                    self.looks.append(None if row is None else Look(*row))
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    self.looks.append(None)
                self._looked.set()
                await asyncio.sleep(_EVERY)
        finally:
            if connection is not None:
                with contextlib.suppress(Exception):
                    connection.terminate()
