"""Locks of DDL on tables in use: waited for briefly, then requested again after a pause.

While DDL waits for a table behind a long read, every later statement on that table waits behind the
DDL. So a lock on the first table is waited for up to `LOCK_SECONDS`, and on further ones, while the
first is held, up to `NEXT_LOCK_SECONDS`. If it fails, the transaction is rolled back, so that other
calls proceed, and repeated when the transaction that has the table in use has ended.

``CREATE INDEX CONCURRENTLY`` needs none of this: no read and no write waits behind it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

import asyncpg

from sagastore_server.postgresql.errors import AGAIN
from sagastore_server.postgresql.pool import Connection, Pool
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.postgresql.session import BEGIN_READ
from sagastore_server.storage.errors import UnavailableError

LOCK_SECONDS = 1.0
"""Longest wait for the lock on the first table: other calls stop for as long. It is also the
default of ``deadlock_timeout``."""

NEXT_LOCK_SECONDS = 0.1
"""Longest wait for the lock on each further table. A write group has its locks for milliseconds."""

_AUTOVACUUM_MARGIN = 0.2
"""Added to the wait if autovacuum has the table: PostgreSQL cancels an autovacuum for which another
session has waited for ``deadlock_timeout``."""

_PAUSES = (1.0, 2.0)
"""Shortest and longest pause before another look or another attempt, in seconds."""

_EXCLUSIVE = "ACCESS EXCLUSIVE"

T = TypeVar("T")
_log = logging.getLogger(__name__)


class TableInUseError(UnavailableError):
    """A table was in use for so long that its definition could not be changed."""


class Holder:
    """The transaction that has kept a table in use for longest, as far as it can be seen."""

    def __init__(self, row: Sequence[Any]) -> None:
        """Take the columns of the statement ``lock_holder``."""
        table, pid, user, application, kind, seconds, start = row
        self.key = (pid, start)
        """Identifies the transaction."""
        self.is_autovacuum = kind == "autovacuum worker"
        self.text = f"table {table} is in use by "
        if pid is None:
            self.text += "a prepared transaction"
            return
        self.text += f"process {pid}"
        known = [kind] if self.is_autovacuum else []
        known += [f"application {application}"] if application else []
        # The name of a role may contain line breaks.
        known += [f"user {' '.join(user.split())}"] if user else []
        known += [f"transaction open for {seconds:,.0f} s"] if seconds is not None else []
        self.text += f" ({', '.join(known)})" if known else ""


class TableLocks:
    """Locks on tables in use, in one transaction of a connection."""

    def __init__(self, connection: Connection, extra: float) -> None:
        """Wait ``extra`` seconds longer than usual for the first table."""
        self.connection = connection
        self.tables: list[str] = []
        """The tables that were requested, locked or not."""
        self._wait = LOCK_SECONDS + extra

    async def take(self, tables: Iterable[str], mode: str = _EXCLUSIVE) -> None:
        """Lock tables of the schema; their names need no quotes.

        Later statements of the transaction wait briefly as well, until `end_limit`.

        Raises:
            asyncpg.LockNotAvailableError: A table is in use.

        """
        for table in tables:
            self.tables.append(table)
            await self._limit(self._wait)
            await self.connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
            self._wait = NEXT_LOCK_SECONDS
        await self._limit(self._wait)

    async def end_limit(self) -> None:
        """Let later statements wait for locks as long as their time limit allows."""
        await self._limit(0)

    async def _limit(self, seconds: float) -> None:
        await self.connection.execute(f"SET LOCAL lock_timeout = {round(seconds * 1000)}")


async def patiently(
    pool: Pool,
    connection: Connection,
    attempt: Callable[[TableLocks], Awaitable[T]],
    patience: float,
) -> T:
    """Run a transaction until it has got its locks, with pauses.

    Args:
        pool: Runs the transaction.
        connection: The connection for it.
        attempt: Runs in the transaction, and takes the locks.
        patience: Seconds after which it is not run again.

    Raises:
        TableInUseError: A table was in use all the time; the line names by what.

    """
    until = time.monotonic() + patience
    extra, logged = 0.0, False
    while True:
        locks = TableLocks(connection, extra)
        try:
            async with pool.transaction(connection, QUERIES["begin"]):
                return await attempt(locks)
        except (asyncpg.LockNotAvailableError, *AGAIN) as exc:
            holder = await _holder(pool, locks)
            cause = "a table is in use" if holder is None else holder.text
            if time.monotonic() >= until:
                raise TableInUseError(
                    f"the schema of PostgreSQL cannot be changed: {cause}; gave up after "
                    f"{patience:g} s; end that transaction, or try again when it has ended"
                ) from exc
        if not logged:
            _log.warning("PostgreSQL: the schema cannot be changed yet: %s", cause)
            logged = True
        extra = _AUTOVACUUM_MARGIN if holder is not None and holder.is_autovacuum else 0.0
        await _until_ended(pool, locks, holder, until)


async def _until_ended(pool: Pool, locks: TableLocks, holder: Holder | None, until: float) -> None:
    """Pause, and wait for the end of the holder: an earlier attempt would only stop other calls."""
    while True:
        await asyncio.sleep(random.uniform(*_PAUSES))  # noqa: S311 - not a secret
        if holder is None or holder.is_autovacuum or time.monotonic() >= until:
            return
        found = await _holder(pool, locks)
        if found is None or found.key != holder.key:
            return


async def _holder(pool: Pool, locks: TableLocks) -> Holder | None:
    async with pool.transaction(locks.connection, BEGIN_READ):
        # It had the lock during the whole wait, so it is at least as old.
        row = await locks.connection.fetchrow(
            QUERIES["lock_holder"], locks.tables, NEXT_LOCK_SECONDS / 2
        )
    return None if row is None else Holder(row)
