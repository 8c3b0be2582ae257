"""An unfinished migration between stores without sequences is upgraded on both sides."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sagastore_server.migration.backfill import Backfill
from sagastore_server.postgresql.backend import PostgreSQLStorage
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.migration import BackfillState, MigrationControl
from sagastore_server.storage.model import OnConflict, Store
from sagastore_server.storage.phase import Phase
from sagastore_server.storage.query import Scan
from tests.migration.conftest import Place
from tests.postgresql.targets import fetched
from tests.support.backends import opened
from tests.support.drafts import draft
from tests.support.migrating_service import (
    backfilled,
    eventually_current,
    opened_live,
    refused,
    walk_to,
)
from tests.support.old_stores import POSTGRESQL, SQLITE, set_back_postgresql, set_back_sqlite
from tests.support.postgres import execute, fresh_schema

PROMOTE = Path(__file__).parents[2] / "docs" / "sql" / "promote.sql"
INDEXES = """SELECT replace(indexdef, schemaname || '.', '') FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename = 'messages' ORDER BY 1"""
PHASES = [Phase.DUAL_WRITE, Phase.BACKFILL, Phase.READ_POSTGRES]
FIRST = ["k", "z", "a", "m", "b", "y"]
"""Stored before the migration began, and with the equal timestamps of all messages."""


class _Gate(NamedTuple):
    """Holds the copy of rows."""

    waiting: asyncio.Event
    opened: asyncio.Event


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> _Gate:
    """Hold every batch of a backfill until the gate is open."""
    found = _Gate(asyncio.Event(), asyncio.Event())
    copy = Backfill._copy

    async def held(self: Backfill, mark: Any) -> None:
        found.waiting.set()
        await found.opened.wait()
        await copy(self, mark)

    monkeypatch.setattr(Backfill, "_copy", held)
    return found


async def _listed(backend: StorageBackend) -> list[tuple[str, int]]:
    page = await backend.list_session("s-1", Scan(False, 100))
    return [(message.id, message.sequence) for message in page.messages]


async def _old_migration(place: Place, phase: Phase) -> list[tuple[str, int]]:
    """Leave both stores in ``phase`` as the former server did; return the order."""
    async with opened_live(place.path, place.dsn) as service:
        backend = service.backend
        for key in FIRST:
            await backend.save(draft(key))
        await walk_to(service.control, Phase.DUAL_WRITE)
        await backend.save(draft("z", "replaced"))
        await backend.bulk_save([draft("x"), draft("c"), draft("a")], OnConflict.REPLACE)
        await backend.delete("k")
        await walk_to(service.control, phase)
        if phase is not Phase.DUAL_WRITE:
            await backfilled(service.control)
        await backend.save(draft("d"))
        await backend.save(draft("m", "replaced"))
        order = await _listed(backend)
    assert [key for key, _ in order] == ["z", "a", "m", "b", "y", "x", "c", "d"]
    set_back_sqlite(place.path)
    await set_back_postgresql(place.dsn)
    assert await _versions(place) == (SQLITE, POSTGRESQL)
    return order


async def _versions(place: Place) -> tuple[int, int]:
    with closing(sqlite3.connect(place.path)) as connection:
        (here,) = connection.execute("PRAGMA user_version").fetchone()
    ((there,),) = await fetched(place.dsn, "SELECT max(version) FROM sagastore_schema")
    return here, there


async def _both(place: Place) -> tuple[list[Any], list[Any]]:
    """Return id, revision and sequence of every message in both stores."""
    with closing(sqlite3.connect(place.path)) as connection:
        rows = "SELECT id, revision, number FROM messages ORDER BY id"
        here = connection.execute(rows).fetchall()
    rows = "SELECT id, revision, sequence FROM messages ORDER BY id"
    return here, await fetched(place.dsn, rows)


async def _copied(control: MigrationControl) -> None:
    async for status in control.watch():
        if status.backfill.state is BackfillState.DONE:
            return


@asynccontextmanager
async def _upgraded(place: Place) -> AsyncIterator[tuple[StorageBackend, MigrationControl]]:
    async with opened_live(place.path, place.dsn) as service:
        yield service.backend, service.control


@pytest.mark.parametrize("phase", PHASES)
async def test_stores_converge_after_upgrade(place: Place, phase: Phase, gate: _Gate) -> None:
    gate.opened.set()
    order = await _old_migration(place, phase)
    async with _upgraded(place) as (backend, control):
        assert await _listed(backend) == order
        await backend.bulk_save([draft("0"), draft("y", "replaced")], OnConflict.REPLACE)
        await backend.delete("b")
        order = await _listed(backend)
        assert [key for key, _ in order] == ["z", "a", "m", "y", "x", "c", "d", "0"]
        if phase is Phase.DUAL_WRITE:
            await walk_to(control, Phase.BACKFILL)
        await backfilled(control)
        async for progress in control.verify(repair=False):
            last = progress
        assert last.mismatch_count == 0
        here, there = await _both(place)
        assert there == here
        await walk_to(control, Phase.READ_POSTGRES)
        await eventually_current(control)
        assert await _listed(backend) == order
        await walk_to(control, Phase.POSTGRES_ONLY)
        assert await _listed(backend) == order
        await backend.save(draft("-1"))
        assert [key for key, _ in await _listed(backend)] == [*(key for key, _ in order), "-1"]


async def test_sqlite_answers_reads_until_rows_are_copied_again(place: Place, gate: _Gate) -> None:
    gate.opened.set()
    order = await _old_migration(place, Phase.READ_POSTGRES)
    gate.opened.clear()
    gate.waiting.clear()
    async with _upgraded(place) as (backend, control):
        await asyncio.wait_for(gate.waiting.wait(), 30)
        # PostgreSQL has the rows, without their sequences.
        here, there = await _both(place)
        assert [row[:2] for row in there] == [row[:2] for row in here]
        assert {row[2] for row in there} == {0}
        assert await _listed(backend) == order
        assert await refused(control, Phase.POSTGRES_ONLY) == ["BACKFILL_NOT_DONE"]
        result = await backend.save(draft("0"))
        assert result.durable_on == (Store.SQLITE,)
        await backend.delete("b")
        await backend.save(draft("y", "replaced"))
        order = await _listed(backend)
        assert [key for key, _ in order] == ["z", "a", "m", "y", "x", "c", "d", "0"]
        status = await control.status()
        assert status.reads_from_fallback
        assert status.backfill.state is not BackfillState.DONE
        gate.opened.set()
        await _copied(control)
        await eventually_current(control)
        assert await _listed(backend) == order
        result = await backend.save(draft("1"))
        assert set(result.durable_on) == {Store.SQLITE, Store.POSTGRESQL}
        here, there = await _both(place)
        assert there == here


@pytest.mark.parametrize("phase", [Phase.BACKFILL, Phase.READ_POSTGRES])
async def test_interrupted_copy_is_resumed(place: Place, phase: Phase, gate: _Gate) -> None:
    gate.opened.set()
    order = await _old_migration(place, phase)
    gate.opened.clear()
    gate.waiting.clear()
    async with _upgraded(place):
        await asyncio.wait_for(gate.waiting.wait(), 30)
    gate.opened.set()
    async with _upgraded(place) as (backend, control):
        await _copied(control)
        assert await _listed(backend) == order
        here, there = await _both(place)
        assert there == here


async def test_lost_file_leaves_a_complete_order(place: Place, gate: _Gate) -> None:
    """docs/sql/promote.sql, when the rows had not been copied again."""
    gate.opened.set()
    await _old_migration(place, Phase.READ_POSTGRES)
    gate.opened.clear()
    gate.waiting.clear()
    async with _upgraded(place):
        await asyncio.wait_for(gate.waiting.wait(), 30)
    await execute(place.dsn, PROMOTE.read_text(encoding="utf-8"))
    async with opened(lambda: PostgreSQLStorage(PostgreSQLOptions(place.dsn))) as alone:
        order = await _listed(alone)
        # What remains of the order is that of the last changes.
        assert [key for key, _ in order] == ["a", "b", "y", "z", "x", "c", "d", "m"]
        await alone.save(draft("0"))
        assert await _listed(alone) == [*order, ("0", await alone.last_sequence())]
    async with fresh_schema() as other:
        async with opened(lambda: PostgreSQLStorage(PostgreSQLOptions(other))):
            pass
        assert await fetched(place.dsn, INDEXES) == await fetched(other, INDEXES)
