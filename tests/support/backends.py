"""The backends that the conformance suite runs over.

A new backend, or a backend put together from others, is added to ``KINDS`` and
needs no test of its own for what the contract promises.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.sqlite.backend import SQLiteStorage
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.model import Store
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.replication import Lease
from tests.simulation.models.postgres import PostgresServer
from tests.simulation.models.process import Process
from tests.simulation.models.source import ModelSource
from tests.simulation.models.source_disk import SourceDisk
from tests.simulation.models.target import ModelTarget
from tests.support.memory import STORE, MemoryState, MemoryStorage
from tests.support.migrating_service import live, opened_live, walk_to
from tests.support.postgres import (
    copied_database,
    execute,
    fresh_schema,
    new_database,
    server_dsn,
)

Make = Callable[[], StorageBackend]
"""Makes a backend that is not open yet; each works on the same stored messages."""


class Kind(NamedTuple):
    """A way to store messages."""

    place: Callable[[Path], AbstractAsyncContextManager[Make]]
    """Prepares an empty store, in a folder if it needs one, and removes it afterwards."""
    durable_on: tuple[Store, ...]
    """Where a message is when a save has returned."""
    gaps: Mapping[str, str] = {}
    """Name of a test that the backend does not pass: the reason."""


class Place(NamedTuple):
    """One store of a kind, for one test."""

    kind: Kind
    make: Make


@asynccontextmanager
async def _memory(folder: Path) -> AsyncIterator[Make]:
    state = MemoryState()
    yield lambda: MemoryStorage(state)


@asynccontextmanager
async def _sqlite(folder: Path) -> AsyncIterator[Make]:
    yield lambda: SQLiteStorage(folder / "messages.db")


@asynccontextmanager
async def _postgresql(folder: Path) -> AsyncIterator[Make]:
    async with fresh_schema() as dsn:
        # A small pool: it is opened anew for each test.
        options = PostgreSQLOptions(dsn, pool_min=1, pool_max=8)
        yield lambda: PostgreSQLStorage(options)


def _now() -> int:
    return time.time_ns() // 1000


@asynccontextmanager
async def _model_source(folder: Path) -> AsyncIterator[Make]:
    disk = SourceDisk(Random(1), scale=0)
    yield lambda: ModelSource(disk, Process("server"), _now)


@asynccontextmanager
async def _model_target(folder: Path) -> AsyncIterator[Make]:
    """Finish the migration of an empty store: what then remains is a store in its own right."""
    server = PostgresServer(Random(1), scale=0)

    def make() -> ModelTarget:
        return ModelTarget(server, Process("server"), _now)

    target, lease = make(), Lease("host:1:1", "session")
    await target.open()
    await target.claim(lease, "store-1", Phase.READ_POSTGRES, 4)
    await target.finish(lease, 5, 0)
    await target.close()
    yield make


def _in_phase(phase: Phase) -> Kind:
    """Return a service of both stores, taken to a phase while it was empty."""

    @asynccontextmanager
    async def place(folder: Path) -> AsyncIterator[Make]:
        template = await _template(phase)
        shutil.copytree(template.folder, folder, dirs_exist_ok=True)
        async with copied_database(template.database) as dsn:
            yield lambda: live(folder / "messages.db", dsn).backend

    both = phase.reads_postgres and phase.writes_sqlite
    return Kind(place, phase.stores if both else phase.stores[:1])


class _Template(NamedTuple):
    """Both stores of a service that is closed."""

    folder: Path
    database: str


_templates: dict[Phase, _Template] = {}


def _drop(database: str) -> None:
    asyncio.run(execute(server_dsn(), f"DROP DATABASE {database} WITH (FORCE)"))


async def _template(phase: Phase) -> _Template:
    """Take a service to a phase, once a process: that takes longer than most tests."""
    if phase not in _templates:
        folder = Path(tempfile.mkdtemp(prefix="sagastore-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        database, dsn = await new_database()
        atexit.register(_drop, database)
        async with opened_live(folder / "messages.db", dsn) as service:
            await walk_to(service.control, phase)
        _templates[phase] = _Template(folder, database)
    return _templates[phase]


KINDS: dict[str, Kind] = {
    # What the stateful test compares the others with.
    "memory": Kind(_memory, (STORE,)),
    # The stores of the simulation.
    "model-source": Kind(_model_source, (Store.SQLITE,)),
    "model-target": Kind(_model_target, (Store.POSTGRESQL,)),
    "postgresql": Kind(_postgresql, (Store.POSTGRESQL,)),
    "sqlite": Kind(_sqlite, (Store.SQLITE,)),
    **{phase.slug: _in_phase(phase) for phase in Phase},
}


@asynccontextmanager
async def opened(make: Make) -> AsyncIterator[StorageBackend]:
    """Open a backend, and close it whatever happens."""
    backend = make()
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()
