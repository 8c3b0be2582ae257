"""Backends that the conformance suite runs over.

A new backend, or a composition of backends, is added to ``KINDS`` and needs no separate test of the
contract.
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
from tests.support.hostile_defaults import hostile_schema
from tests.support.memory import STORE, MemoryState, MemoryStorage
from tests.support.migrating_service import live, opened_live, walk_to
from tests.support.postgres import (
    copied_database,
    execute,
    new_database,
    server_dsn,
)

Make = Callable[[], StorageBackend]
"""Creates a backend that is not open yet; all of them work on the same stored messages."""


class Kind(NamedTuple):
    """Kind of backend."""

    place: Callable[[Path], AbstractAsyncContextManager[Make]]
    """Prepares an empty store, in a folder if needed, and removes it afterwards."""
    durable_on: tuple[Store, ...]
    """``durable_on`` of a successful save."""
    tells_positions: bool = False
    """Whether reads and writes tell positions (``interfaces.consistency``)."""
    gaps: Mapping[str, str] = {}
    """Tests that the backend does not pass, and the reasons."""


class Place(NamedTuple):
    """Store of a kind, for one test."""

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
    # On a default database: the kind of the last phase.
    async with hostile_schema() as dsn:
        # A small pool, because each test opens a new one.
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
    """Finish the migration of an empty store, which leaves a PostgreSQL-only store."""
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
    """Return a service with both stores, advanced to a phase while it was empty."""

    @asynccontextmanager
    async def place(folder: Path) -> AsyncIterator[Make]:
        template = await _template(phase)
        shutil.copytree(template.folder, folder, dirs_exist_ok=True)
        async with copied_database(template.database) as dsn:
            yield lambda: live(folder / "messages.db", dsn).backend

    both = phase.reads_postgres and phase.writes_sqlite
    durable_on = phase.stores if both else phase.stores[:1]
    return Kind(place, durable_on, not phase.writes_sqlite)


class _Template(NamedTuple):
    """Both stores of a closed service."""

    folder: Path
    database: str


_templates: dict[Phase, _Template] = {}


def _drop(database: str) -> None:
    asyncio.run(execute(server_dsn(), f"DROP DATABASE {database} WITH (FORCE)"))


async def _template(phase: Phase) -> _Template:
    """Advance a service to a phase once per process, because that takes longer than most tests."""
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
    # Reference of the stateful test.
    "memory": Kind(_memory, (STORE,)),
    # Stores of the simulation.
    "model-source": Kind(_model_source, (Store.SQLITE,)),
    "model-target": Kind(_model_target, (Store.POSTGRESQL,)),
    "postgresql": Kind(_postgresql, (Store.POSTGRESQL,), tells_positions=True),
    "sqlite": Kind(_sqlite, (Store.SQLITE,)),
    **{phase.slug: _in_phase(phase) for phase in Phase},
}


@asynccontextmanager
async def opened(make: Make) -> AsyncIterator[StorageBackend]:
    """Open a backend for the duration of the context."""
    backend = make()
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()
