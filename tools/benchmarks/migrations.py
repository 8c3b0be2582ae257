"""Benchmarks of the migration: against pgloader, its effect on Saves, and the cutover pause."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import asyncpg

from sagastore import BackfillState, Phase
from tests.support.legacy_db import legacy_db
from tools.benchmarks.harness import Bench, CallsFailedError
from tools.benchmarks.large_stores import copied, stores
from tools.benchmarks.load import Call, Load
from tools.benchmarks.messages import items, save_requests
from tools.benchmarks.results import Row, at_most, percentile, ratios
from tools.benchmarks.servers import (
    change_phases,
    change_to,
    control_backfill,
    copy_store,
    migration_of,
    ours,
    ready_for_next,
)

IN_FLIGHT = 64
"""Maximum calls in flight while writes are held; the rate is far below saturation."""
MISSING = "pgloader is missing; install it with: apt-get install pgloader"

_TABLE = """
CREATE TABLE messages (
    id TEXT COLLATE "C" NOT NULL, provider TEXT NOT NULL, role TEXT NOT NULL,
    content TEXT NOT NULL, tags JSONB NOT NULL DEFAULT '[]', timestamp TIMESTAMPTZ NOT NULL,
    metadata JSONB NOT NULL DEFAULT '{{}}', session_id TEXT COLLATE "C",
    created_at TIMESTAMPTZ DEFAULT now(){search}
)
"""
_SEARCH = ", search TSVECTOR GENERATED ALWAYS AS (to_tsvector('english', content)) STORED"
_INDEXES = (
    "ALTER TABLE messages ADD PRIMARY KEY (id)",
    "CREATE INDEX ON messages (session_id, timestamp, id) WHERE session_id IS NOT NULL",
    "CREATE INDEX ON messages (timestamp, id)",
    "CREATE INDEX ON messages USING GIN (tags jsonb_path_ops)",
    "CREATE INDEX ON messages USING GIN (metadata jsonb_path_ops)",
)
_SEARCH_INDEX = "CREATE INDEX ON messages USING GIN (search)"
_BUILDERS = 2
"""Parallel index builds, as many as pgloader would use."""

_COMMAND = """
LOAD DATABASE FROM sqlite://{file} INTO postgresql://postgres@unix:{socket}:5432/{database}
WITH data only, INCLUDE DROP, workers = 2, concurrency = 1
INCLUDING ONLY TABLE NAMES LIKE 'messages';
"""


def against_pgloader(bench: Bench) -> list[Row]:
    """Measure the time of a legacy file into PostgreSQL, with the migration and with pgloader."""
    name = "pgloader"
    if shutil.which("pgloader") is None:
        what = "legacy file to PostgreSQL ÷ pgloader"
        return [Row(name, what, [], at_most(0.8), {}, "s", failure=MISSING, skipped=True)]
    rows = bench.sizes.legacy
    mine: list[float] = []
    searchable: list[float] = []
    plain: list[float] = []
    with bench.file() as legacy:
        _legacy(legacy, rows)
        for number in range((bench.sizes.rounds + 1) // 2):
            sides: list[tuple[list[float], Callable[[], float]]] = [
                (mine, lambda: _migrated(bench, legacy)),
                (searchable, lambda: _by_pgloader(bench, legacy, rows, search=True)),
                (plain, lambda: _by_pgloader(bench, legacy, rows, search=False)),
            ]
            for found, measure in sides if number % 2 else reversed(sides):
                found.append(measure())
                bench.say(f"round {number + 1}: {found[-1]:.1f} s")
    what = f"legacy file of {rows:,} rows to verified, indexed PostgreSQL ÷ pgloader, time"
    notes = ("from the start of the server, including the import of the file",)
    return [
        Row(
            name,
            f"{what}; its table with a generated tsvector",
            ratios(mine, searchable),
            at_most(0.8),
            {"SagaStore": mine, "pgloader": searchable},
            "s",
            notes,
        ),
        Row(
            name,
            f"{what}; its table without a search index",
            ratios(mine, plain),
            at_most(0.8),
            {"SagaStore": mine, "pgloader": plain},
            "s",
        ),
    ]


def backfill_latency(bench: Bench) -> list[Row]:
    """Measure Saves at a fixed rate while the backfill runs, and while it is paused."""
    made, sizes = stores(bench), bench.sizes
    without: list[float] = []
    running: list[float] = []
    copied_rows = 0
    with ExitStack() as stack:
        file = stack.enter_context(copied(bench, made.alone))
        dsn = stack.enter_context(bench.postgres.database())
        server = stack.enter_context(ours(file, dsn))
        change_phases(server.address, Phase.DUAL_WRITE)
        change_to(server.address, Phase.BACKFILL)
        for number in range(sizes.rounds + 1):
            for paused, found in ((True, without), (False, running)):
                control_backfill(server.address, paused=paused)
                load = _steady(bench, server.address, f"{number}-{paused}", sizes.slice)
                if number:
                    found.append(percentile(load.latencies, 0.99) * 1000)
            status = migration_of(server.address).backfill
            copied_rows = status.copied
            if status.state is not BackfillState.RUNNING:
                raise RuntimeError(
                    f"the backfill of {made.rows:,} rows ended in round {number}; use more "
                    "rows (SCALE), or fewer rounds"
                )
            bench.say(f"round {number}: {copied_rows:,} rows copied")
    what = (
        f"Save p99 while {made.rows:,} messages are backfilled ÷ p99 while the backfill is paused"
    )
    return [
        Row(
            "backfill-latency",
            what,
            ratios(running, without),
            at_most(2),
            {"backfill running": running, "paused": without},
            "ms",
            (f"at {sizes.rate} calls/s; {copied_rows:,} rows copied meanwhile, unthrottled",),
        )
    ]


def switch_pause(bench: Bench) -> list[Row]:
    """Measure the longest Save around each change to READ_POSTGRES."""
    made, sizes = stores(bench), bench.sizes
    pauses: list[float] = []
    usual: list[float] = []
    failed = 0
    with ExitStack() as stack:
        file = stack.enter_context(bench.file())
        copy_store(made.pair, file)
        dsn = stack.enter_context(bench.postgres.database(made.pair_database))
        server = stack.enter_context(ours(file, dsn))
        ready_for_next(server.address)
        for number in range(sizes.changes):
            load, moments = _changing(bench, server.address, f"change-{number}")
            failed += sum(load.failures.values())
            pauses.append(_longest_across(load.calls, *moments) * 1000)
            usual.append(percentile(load.latencies, 0.5) * 1000)
            bench.say(f"change {number + 1} of {sizes.changes}: {pauses[-1]:.0f} ms")
            change_to(server.address, Phase.BACKFILL)
    failure = f"{failed} calls failed" if failed else ""
    what = (
        f"write pause at the change to READ_POSTGRES, {made.rows:,} messages, "
        f"p99 of {sizes.changes} changes"
    )
    return [
        Row(
            "switch-pause",
            what,
            [percentile(pauses, 0.99)],
            at_most(250, "ms"),
            {"longest Save of each change": pauses, "median Save": usual},
            "ms",
            (f"at {sizes.rate} calls/s; no call failed" if not failed else "",),
            failure,
        )
    ]


def _steady(bench: Bench, address: str, name: str, seconds: float) -> Load:
    """Send Saves at the fixed rate."""
    rate = bench.sizes.rate
    requests = save_requests(f"steady-{name}", 0, round(rate * seconds))
    load = bench.generator.send(address, "Save", requests, IN_FLIGHT, rate=rate)
    if load.failures:
        raise CallsFailedError(f"calls failed during the backfill: {load.failures}")
    return load


def _changing(bench: Bench, address: str, name: str) -> tuple[Load, tuple[float, float]]:
    """Change to READ_POSTGRES in the middle of a load; return the start and end of the change."""
    rate, seconds = bench.sizes.rate, 2 * bench.sizes.slice / 5 + 1
    requests = save_requests(name, 0, round(rate * seconds))
    moments: list[tuple[float, float]] = []
    middle = threading.Timer(
        seconds / 2, lambda: moments.append(change_to(address, Phase.READ_POSTGRES))
    )
    middle.start()
    load = bench.generator.send(address, "Save", requests, IN_FLIGHT, rate=rate)
    middle.join()
    if not moments:
        raise RuntimeError("the change to READ_POSTGRES failed")
    return load, moments[0]


def _longest_across(calls: list[Call], began: float, ended: float) -> float:
    """Return the duration in seconds of the longest call in progress during an interval."""
    during = [
        call.seconds for call in calls if call.ended >= began and call.ended - call.seconds <= ended
    ]
    if not during:
        raise RuntimeError("no call was in progress during the change")
    return max(during)


def _legacy(path: Path, rows: int) -> None:
    """Write a legacy file of real messages."""
    # The application saves a message and its full-text row; pgloader would not migrate other
    # tables.
    legacy_db(
        path,
        (
            {
                "id": item.id,
                "provider": item.provider,
                "role": item.role,
                "content": item.content,
                "tags": json.dumps(item.tags),
                "timestamp": item.timestamp.isoformat(),
                "metadata": json.dumps(item.metadata),
                "session_id": item.session_id,
                "created_at": item.timestamp.strftime("%Y-%m-%d %H:%M:%S"),
            }
            for item in items("legacy", 0, rows)
        ),
    )


def _migrated(bench: Bench, legacy: Path) -> float:
    """Return the seconds from server start to a verified copy in PostgreSQL."""
    with bench.file() as file, bench.postgres.database() as dsn:
        copy_store(legacy, file)
        began = time.perf_counter()
        with ours(file, dsn) as server:
            change_phases(server.address, Phase.BACKFILL)
            ready_for_next(server.address)
            return time.perf_counter() - began


def _by_pgloader(bench: Bench, legacy: Path, rows: int, *, search: bool) -> float:
    """Return the seconds of pgloader and of the index builds after it."""
    postgres = bench.postgres
    database = postgres.create()
    dsn = postgres.dsn_of(database)
    indexes = [*_INDEXES, _SEARCH_INDEX] if search else list(_INDEXES)
    try:
        postgres.value(_TABLE.format(search=_SEARCH if search else ""), database)
        with bench.file(".load") as command:
            text = _COMMAND.format(file=legacy, socket=postgres.folder, database=database)
            command.write_text(text, encoding="utf-8")
            began = time.perf_counter()
            _pgloader(command)
            asyncio.run(_build(dsn, indexes))
            seconds = time.perf_counter() - began
        loaded = postgres.value("SELECT count(*) FROM messages", database)
        if loaded != rows:
            raise RuntimeError(f"pgloader loaded {loaded} of {rows} rows")
        return seconds
    finally:
        postgres.drop(database)


def _pgloader(command: Path) -> None:
    done = subprocess.run(
        ["pgloader", str(command)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HOME": str(command.parent)},
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise RuntimeError(f"pgloader failed: {' '.join(said[-3:])}")


async def _build(dsn: str, indexes: list[str]) -> None:
    """Build indexes in parallel, after the first, which locks the table."""
    pool = await asyncpg.create_pool(dsn, min_size=_BUILDERS, max_size=_BUILDERS)
    first, *rest = indexes
    await pool.execute(first, timeout=600)
    await asyncio.gather(*(pool.execute(one, timeout=600) for one in rest))
    await pool.close()
