"""Stores that a test can hold up, make fail, or set back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.sqlite.writer import SQLiteGroupWriter
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.environment import SYSTEM_ENVIRONMENT, Environment, SystemClock
from sagastore_server.storage.errors import UnavailableError
from sagastore_server.storage.migration import MigrationControl
from sagastore_server.storage.model import Message, Page
from tests.migration.conftest import Place
from tests.support.waiting import until

if TYPE_CHECKING:
    import pytest

_TABLES = ("messages", "tombstones", "quarantine", "files", "legacy_extra", "migration")

QUIET = Options(shadow_share=0.0, patience=60.0)
"""Nothing is compared, and a PostgreSQL that is held up is waited for."""


class Hold:
    """A place where calls wait while it is closed."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        """Set once a call waits here."""
        self._open = asyncio.Event()
        self._open.set()

    async def passed(self) -> None:
        if not self._open.is_set():
            self.reached.set()
        await self._open.wait()

    def close(self) -> None:
        self.reached.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()


class HeldSource(SQLiteSource):
    """Its batch reads and scans by id wait before they take their snapshot."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads, self.scans = Hold(), Hold()

    async def scan_ids(self, after: str, upto: str, limit: int) -> Page:
        await self.scans.passed()
        return await super().scan_ids(after, upto, limit)

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        await self.reads.passed()
        return await super().batch_get(message_ids)


class HeldTarget(PostgreSQLTarget):
    """Its transactions wait before they begin, and its batch reads fail."""

    def __init__(self, options: PostgreSQLOptions) -> None:
        super().__init__(options)
        self.applying, self.renewing, self.copying = Hold(), Hold(), Hold()
        self.claimed = Hold()
        """Where a claim waits once it is done."""
        self.finished = Hold()
        """Where the last transaction waits once it is committed."""
        self.counting = Hold()
        self.copies_until_held = -1
        self.next_copy_fails = False
        self.reads_fail = False

    async def finish(self, *args: Any, **options: Any) -> None:
        await super().finish(*args, **options)
        await self.finished.passed()

    async def claim(self, *args: Any, **options: Any) -> Any:
        record = await super().claim(*args, **options)
        await self.claimed.passed()
        return record

    async def apply(self, *args: Any, **options: Any) -> None:
        await self.applying.passed()
        await super().apply(*args, **options)

    async def renew(self, *args: Any) -> Any:
        await self.renewing.passed()
        return await super().renew(*args)

    async def copy(self, *args: Any, **options: Any) -> Any:
        if self.copies_until_held == 0:
            self.copying.close()
        self.copies_until_held -= 1
        await self.copying.passed()
        if self.next_copy_fails:
            self.next_copy_fails = False
            raise UnavailableError("no connection to PostgreSQL was free in time")
        return await super().copy(*args, **options)

    async def count(self) -> int:
        await self.counting.passed()
        return await super().count()

    async def let_pass(self, copies: int) -> None:
        """Release the copy that is held, and ``copies`` in all; hold the next one again."""
        self.copies_until_held = copies - 1
        self.copying.open()
        await until(lambda: self.copies_until_held < 0)
        await self.copying.reached.wait()

    async def batch_get(self, message_ids: Sequence[str]) -> dict[str, Message]:
        if self.reads_fail:
            raise UnavailableError("no connection to PostgreSQL was free in time")
        return await super().batch_get(message_ids)


class JumpingClock(SystemClock):
    """The clock of the machine, and what a test adds to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Held(NamedTuple):
    """A service on stores that can be held up."""

    service: MigratingService
    source: HeldSource
    target: HeldTarget
    clock: JumpingClock

    @property
    def backend(self) -> StorageBackend:
        return self.service.backend

    @property
    def control(self) -> MigrationControl:
        return self.service.control

    async def text(self, id: str = "m") -> str:
        """Return what a batch read answers for one message; empty: nothing."""
        found = await self.backend.batch_get([id])
        return found[id].content if id in found else ""

    async def stored(self, id: str) -> str:
        """Return what PostgreSQL itself has; empty: nothing."""
        found = await self.target.batch_get([id])
        return found[id].content if id in found else ""


@asynccontextmanager
async def held(place: Place, options: Options = QUIET) -> AsyncIterator[Held]:
    """Open such a service, and close it whatever happens."""
    source = HeldSource(place.path)
    target = HeldTarget(PostgreSQLOptions(place.dsn, pool_min=1, pool_max=8))
    clock = JumpingClock()
    environment = Environment(clock, SYSTEM_ENVIRONMENT.randomness)
    service = MigratingService(source, target, options, environment)
    try:
        await service.backend.open()
        yield Held(service, source, target, clock)
    finally:
        for hold in (source.reads, source.scans, target.applying, target.renewing):
            hold.open()
        for hold in (target.copying, target.claimed, target.finished, target.counting):
            hold.open()
        await service.backend.close()


class Commits:
    """Groups of SQLite's writer, which can be held up before they begin."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def close(self) -> None:
        self.reached.clear()
        self.open.clear()


@contextmanager
def held_commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Commits]:
    """Let a test delay the groups of every SQLite writer; all are released at the end."""
    commits, attempt = Commits(), SQLiteGroupWriter._commit_once

    def waiting(self: SQLiteGroupWriter, group: Any) -> Any:
        if not commits.open.is_set():
            commits.reached.set()
        commits.open.wait()
        return attempt(self, group)

    monkeypatch.setattr(SQLiteGroupWriter, "_commit_once", waiting)
    try:
        yield commits
    finally:
        commits.open.set()


class Backup:
    """What PostgreSQL had at some time, in tables beside its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def take(self) -> None:
        await self._run("".join(f"CREATE TABLE old_{name} AS TABLE {name};" for name in _TABLES))

    async def restore(self, lease_seconds: float | None = None, *, cut: bool = False) -> None:
        """Put rows and record back in one transaction, without a lost connection.

        Args:
            lease_seconds: What is left of the lease; None: as it was then.
            cut: End the server's connections as well, in that moment.

        """
        back = "".join(
            f"DELETE FROM {name}; INSERT INTO {name} SELECT * FROM old_{name};" for name in _TABLES
        )
        if lease_seconds is not None:
            left = f"clock_timestamp() + interval '{lease_seconds} s'"
            back += f"UPDATE migration SET lease_until = {left};"
        lock = "LOCK TABLE migration IN ACCESS EXCLUSIVE MODE;"
        await self._run(f"SET LOCAL session_replication_role = replica; {lock} {back}")
        if cut:
            await self._run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'sagastore'"
            )

    async def _run(self, statements: str) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            # Several statements in one message are one transaction.
            await connection.execute(statements)
        finally:
            await connection.close()


TAKE_OVER = (
    "UPDATE migration SET holder = 'other:1:1', session = 'theirs', "
    "lease_until = clock_timestamp() + interval '10 s'"
)
"""What another server does that gets the lease."""
