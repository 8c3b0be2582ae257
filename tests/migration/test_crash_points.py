"""kill -9 at every step of a migration: restarted, it ends well, and nothing was lost.

``crash_points.txt`` lists the points: boundaries of steps, as ``tests.support.
crash_boundaries`` marks them, with the number of the passing. A point is named
``epoch-phase/step/when#number``: ``3-backfill/postgres COMMIT of copy(rows)/sent#2`` is in
epoch 3, the phase BACKFILL, when the second commit of copied rows has been sent to
PostgreSQL and has not been answered. What a run does and what it holds against the
ledger is in ``tests.support.migration_run``.

A part of the list runs always, all of it with ``SAGASTORE_TEST_PROFILE=thorough``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.migration_run import Outcome, run_migration, steps_of
from tests.support.postgres import fresh_schema

POINTS = Path(__file__).with_name("crash_points.txt").read_text().splitlines()

ALWAYS = [
    "opening/sqlite COMMIT of take_over/after#1",
    "1-sqlite-only/sqlite COMMIT of set_state(2-dual-write)/after#1",
    "2-dual-write/sqlite COMMIT of writes/after#7",
    "2-dual-write/postgres COMMIT of apply/sent#1",
    "3-backfill/postgres COMMIT of copy(rows)/sent#2",
    "3-backfill/postgres CREATE INDEX CONCURRENTLY of build_index(idx_messages_content_fts)/sent#1",
    "3-backfill/sqlite COMMIT of set_state(4-read-postgres verified)/after#1",
    "4-read-postgres/sqlite COMMIT of writes/after#7",
    "4-read-postgres/postgres COMMIT of set_phase/after#1",
    "4-read-postgres/sqlite COMMIT of set_state(5-backfill verified)/after#1",
    "6-read-postgres-completing/postgres COMMIT of finish/before#1",
    "6-read-postgres-completing/postgres COMMIT of finish/sent#1",
    "6-read-postgres-completing/postgres COMMIT of finish/after#1",
    "7-postgres-only/sqlite COMMIT of archive_file/after#1",
    "7-postgres-only/file rename of archive_file/before#1",
    "7-postgres-only/file rename of archive_file/after#1",
]
"""Between the phase of one store and that of the other, and where a commit is in doubt."""

IDLE = [
    "2-dual-write/postgres COMMIT of renew/before#1",
    "3-backfill/postgres COMMIT of renew/after#1",
    "4-read-postgres/postgres COMMIT of renew/sent#1",
]
"""Lease renewals, which happen without writes: they are not in the list."""

SPREAD = 8
"""Further points that run always, evenly over the list."""

AGAIN = [
    # The start after the crash is killed as well, at what it does to bring the stores together.
    (
        "opening/sqlite COMMIT of take_over/before#1",
        "opening/sqlite COMMIT of take_over/before#1",
    ),
    (
        "2-dual-write/postgres COMMIT of claim/sent#1",
        "2-dual-write/postgres COMMIT of set_phase/before#1",
    ),
    (
        "3-backfill/postgres COMMIT of copy(rows)/sent#2",
        "3-backfill/postgres COMMIT of claim/after#1",
    ),
    (
        "3-backfill/sqlite COMMIT of set_state(4-read-postgres verified)/after#1",
        "4-read-postgres/postgres COMMIT of claim/sent#1",
        "4-read-postgres/follower(current)/after#1",
    ),
    ("4-read-postgres/sqlite COMMIT of writes/after#7",) * 3,
    (
        "6-read-postgres-completing/postgres COMMIT of finish/before#1",
        "6-read-postgres-completing/sqlite COMMIT of set_state(6-read-postgres verified)/before#1",
    ),
    (
        "6-read-postgres-completing/postgres COMMIT of finish/sent#1",
        "7-postgres-only/sqlite COMMIT of archive_file/before#1",
        "7-postgres-only/file chmod of archive_file/after#1",
    ),
    (
        "7-postgres-only/file replace of write_receipt/after#1",
        "7-postgres-only/file rename of archive_file/before#1",
        "7-postgres-only/file rename of archive_file/after#1",
    ),
]

THOROUGH = os.environ.get("SAGASTORE_TEST_PROFILE", "quick") != "quick"
_SPREAD = [POINTS[(2 * n + 1) * len(POINTS) // (2 * SPREAD)] for n in range(SPREAD)]
CHOSEN = [*(POINTS if THOROUGH else sorted({*ALWAYS, *_SPREAD}, key=POINTS.index)), *IDLE]
CHOSEN_AGAIN = AGAIN if THOROUGH else [AGAIN[3], AGAIN[6]]

Migrate = Callable[..., Awaitable[Outcome]]


@pytest.fixture
async def migrate(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Migrate]:
    """Run a migration with crashes; if it fails, tell how to do that again."""

    async def run(*points: str) -> Outcome:
        try:
            return await run_migration(tmp_path, dsn, points)
        except BaseException as exc:
            exc.add_note(f"again: SAGASTORE_TEST_PROFILE=thorough pytest '{request.node.nodeid}'")
            raise

    async with fresh_schema() as dsn:
        yield run


@pytest.mark.parametrize("point", CHOSEN)
async def test_crash_at_point_loses_nothing(migrate: Migrate, point: str) -> None:
    await migrate(point)


@pytest.mark.parametrize("points", CHOSEN_AGAIN, ids=", ".join)
async def test_crash_during_recovery_loses_nothing(
    migrate: Migrate, points: tuple[str, ...]
) -> None:
    await migrate(*points)


async def test_crash_points_cover_every_step(migrate: Migrate) -> None:
    """A step that is new, or has another name, must not go untested."""
    outcome = await migrate()
    assert outcome.crashes == 0
    advice = "record the list again: python -m tests.migration.record_crash_points"
    assert steps_of([*POINTS, *IDLE]) == steps_of([*outcome.passed, *IDLE]), advice
    assert set(ALWAYS) <= set(POINTS), advice
