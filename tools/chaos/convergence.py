"""Field-by-field comparison of both stores at the end of a round.

The server has stopped by then, so the comparison covers what is on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import asyncpg

from sagastore import Phase
from sagastore.receipt import receipt_path
from tests.support.final_state import FinalState

MOST = 5
"""Maximum number of reported differences."""

REVISION = 9
"""Place of the revision in a row of ``FinalState``."""

_SESSIONS = """SELECT session_id, title, {metadata}, CAST(explicit AS INTEGER), message_count,
    {providers}, first_sequence, first_message, last_sequence, revision, deleting FROM sessions"""


class _LiveState(FinalState):
    """File of a stopped server and the rows of both stores."""

    def __init__(self, path: Path) -> None:
        # A file that is not an archive yet has no receipt to verify.
        self.archive = path
        self.messages, self.postgresql = {}, {}
        self._here, self._there = {}, {}


async def compare(path: Path, dsn: str, phase: Phase) -> list[str]:
    """Return the differences between PostgreSQL and the file at ``path``.

    In the phases with both stores, PostgreSQL must have every journalled change, and all rows once
    the backfill is done. In the last phase it must have every archived row that was not changed
    since.
    """
    record = await _record(dsn)
    recorded_phase = None if record is None else int(record["phase"])
    if phase is Phase.POSTGRES_ONLY:
        return await _compare_archive(path, dsn) if receipt_path(path).exists() else []
    if recorded_phase == Phase.POSTGRES_ONLY:
        return [f"PostgreSQL is the only store, but the server is in {phase.label}"]
    if record is None or phase is Phase.SQLITE_ONLY:
        return []
    state = _LiveState(path)
    await state.read(dsn)
    complete, base = record["backfill_state"] == "done", _base(path)
    found = await _sessions_that_differ(path, dsn, base, copied=record["backfill_carried"])
    return (
        found
        or [
            f"{id}: PostgreSQL has {_short(there)}, SQLite {_short(here)}"
            for id in sorted(state.messages.keys() | state.postgresql.keys())
            if (there := state.postgresql.get(id)) != (here := state.messages.get(id))
            # Rows from before journalling began arrive with the backfill.
            and (complete or there is not None or (here is not None and here[REVISION] > base))
        ][:MOST]
    )


async def _sessions_that_differ(path: Path, dsn: str, base: int, *, copied: bool) -> list[str]:
    """Compare the rows of sessions; ``copied``: also those from before journalling began."""
    uri = f"{path.as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as file:
        statement = _SESSIONS.format(metadata="metadata", providers="providers")
        here = {row[0]: _session(row) for row in file.execute(statement)}
    connection = await asyncpg.connect(dsn)
    try:
        statement = _SESSIONS.format(metadata="metadata::text", providers="providers::text")
        there = {row[0]: _session(row) for row in await connection.fetch(statement)}
    finally:
        await connection.close()
    return [
        f"session {key!r}: PostgreSQL has {there.get(key)}, SQLite {here.get(key)}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and (copied or key in there or here[key][-2] > base)
    ][:MOST]


def _session(row: Any) -> tuple[Any, ...]:
    """Return a row with its JSON values parsed: their spellings differ."""
    return (*row[:2], json.loads(row[2]), *row[3:5], json.loads(row[5]), *row[6:])


async def _compare_archive(path: Path, dsn: str) -> list[str]:
    try:
        state = await asyncio.to_thread(FinalState, path.with_name(f"{path.name}.archive"))
    except AssertionError as exc:
        return [f"the archive does not match its receipt: {exc}"]
    await state.read(dsn)
    last = _last_revision(state.archive)
    buried = await _tombstone_ids(dsn, last)
    changed = {id for id, row in state.postgresql.items() if row[REVISION] > last} | buried
    try:
        state.compare(changed)
    except AssertionError as exc:
        return [str(exc)[:500]]
    return []


def _last_revision(path: Path) -> int:
    return int(_fact(path, "revision"))


def _base(path: Path) -> int:
    """Return the last revision before journalling began."""
    return int(json.loads(_fact(path, "migration"))["base"])


def _fact(path: Path, name: str) -> str:
    uri = f"{path.as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        (value,) = connection.execute(
            "SELECT value FROM store_state WHERE name = ?", (name,)
        ).fetchone()
    return str(value)


async def _tombstone_ids(dsn: str, after: int) -> set[str]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT id FROM tombstones WHERE revision > $1", after)
    finally:
        await connection.close()
    return {row[0] for row in rows}


async def _record(dsn: str) -> dict[str, Any] | None:
    connection = await asyncpg.connect(dsn)
    try:
        if not await connection.fetchval("SELECT to_regclass('migration') IS NOT NULL"):
            return None
        row = await connection.fetchrow("SELECT * FROM migration")
    finally:
        await connection.close()
    return None if row is None else dict(row)


def _short(row: tuple[Any, ...] | None) -> str:
    if row is None:
        return "nothing"
    return f"revision {row[REVISION]}, {str(row[3])[:40]!r}"
