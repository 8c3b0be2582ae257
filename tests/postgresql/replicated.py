"""A store with read replicas, for tests, and calls that read from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from sagastore_server.interfaces.call_context import begin
from sagastore_server.interfaces.consistency import (
    Consistency,
    Level,
    WalPosition,
    noted,
    require,
)
from sagastore_server.interfaces.instruments import Fallback, Instruments
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.load import ReplicaLoad
from tests.support.backends import opened
from tests.support.drafts import lone
from tests.support.postgres import PostgresProcess, postgres_folder
from tests.support.standby import ReplicatedPostgres
from tests.support.waiting import until

ANY = Consistency(Level.ANY_REPLICA)

T = TypeVar("T")


def at_least(position: WalPosition | None) -> Consistency:
    """Return the requirement of a position."""
    assert position is not None
    return Consistency(Level.AT_LEAST, position)


class Counted(Instruments):
    """Counts reads and fallbacks."""

    def __init__(self) -> None:
        """Count from zero."""
        self.reads: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.waits: list[float] = []

    def read_answered(self, node: str, level: Level) -> None:
        """See the contract."""
        self.reads[f"{node}/{level.value}"] += 1

    def read_fell_back(self, reason: Fallback) -> None:
        """See the contract."""
        self.fallbacks[reason.value] += 1

    def replica_awaited(self, seconds: float) -> None:
        """See the contract."""
        self.waits.append(seconds)


class ReplicatedStore:
    """A store with replicas."""

    def __init__(self, backend: PostgreSQLStorage, counted: Counted) -> None:
        """Use ``backend``, which reports to ``counted``."""
        self.backend = backend
        self.counted = counted

    @property
    def replicas(self) -> tuple[ReplicaLoad, ...]:
        """States of the replicas."""
        return self.backend.loads()[0].replicas

    async def has_replayed(self, position: WalPosition, number: int = 1) -> bool:
        """Return whether a replica is known to have replayed ``position``."""
        mark = self.backend._replicas._replicas[number - 1].mark
        return mark is not None and mark.reaches(position)

    async def until(self, *states: str) -> None:
        """Wait until the replicas have these states: why they are out, or nothing."""
        await until(lambda: [one.out for one in self.replicas] == list(states))

    async def call(
        self, run: Callable[[], Awaitable[T]], need: Consistency | None = None
    ) -> tuple[T, WalPosition | None]:
        """Run a call with a requirement; return its result and its position."""
        begin("test")
        if need is not None:
            require(need)
        result = await run()
        return result, noted()

    async def save(self, id: str, content: str = "content") -> WalPosition:
        """Save a message, and return the position of the write."""
        draft = lone(id)._replace(content=content)
        _, position = await self.call(lambda: self.backend.save(draft))
        assert position is not None
        return position

    async def content(
        self, id: str, need: Consistency | None = None
    ) -> tuple[str, WalPosition | None]:
        """Return the content of a message, and the position of the read."""
        message, position = await self.call(lambda: self.backend.get(id), need)
        return message.content, position


@contextmanager
def another_server() -> Iterator[PostgresProcess]:
    """Provide a server that does not exist yet; stop it at the end."""
    with postgres_folder() as folder:
        server = PostgresProcess(folder / "c")
        try:
            yield server
        finally:
            server.stop()


@asynccontextmanager
async def replicated_store(
    postgres: ReplicatedPostgres, **options: Any
) -> AsyncIterator[ReplicatedStore]:
    """Open a store whose replica is the standby of ``postgres``."""
    counted = Counted()
    values = PostgreSQLOptions(
        postgres.primary.dsn, pool_min=1, pool_max=4, replicas=(postgres.standby.dsn,)
    )._replace(**options)
    async with opened(lambda: PostgreSQLStorage(values, instruments=counted)) as backend:
        assert isinstance(backend, PostgreSQLStorage)
        yield ReplicatedStore(backend, counted)
