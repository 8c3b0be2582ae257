"""Service with both stores in this process, in any phase."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sagastore_server.migration.migrating_service import MigratingService, Options
from sagastore_server.postgresql.options import PostgreSQLOptions
from sagastore_server.postgresql.target import PostgreSQLTarget
from sagastore_server.sqlite.source import SQLiteSource
from sagastore_server.storage.errors import PreconditionError
from sagastore_server.storage.migration import BackfillState, MigrationControl
from sagastore_server.storage.phase import Phase


def live(path: Path, dsn: str, options: Options | None = None) -> MigratingService:
    """Return a service on the file ``path`` and the database ``dsn`` that is not open yet."""
    return MigratingService(
        SQLiteSource(path),
        # A small pool, because each test opens a new one.
        PostgreSQLTarget(PostgreSQLOptions(dsn, pool_min=1, pool_max=8)),
        options or Options(shadow_share=1.0),
    )


@asynccontextmanager
async def opened_live(
    path: Path, dsn: str, options: Options | None = None
) -> AsyncIterator[MigratingService]:
    """Open such a service for the duration of the context."""
    service = live(path, dsn, options)
    try:
        await service.backend.open()
        yield service
    finally:
        await service.backend.close()


async def walk_to(control: MigrationControl, phase: Phase) -> None:
    """Advance or step back to ``phase``, waiting for the preconditions of each step."""
    while (now := (await control.status()).phase) is not phase:
        step = now.following if phase > now else now.preceding
        assert step is not None
        if step > now:
            await unblocked(control)
        await change(control, step)


async def unblocked(control: MigrationControl) -> None:
    """Wait until only blockers that an operator can accept remain before the next phase."""
    async for status in control.watch():
        reasons = {blocker.reason for blocker in status.blockers_to_next}
        if not reasons - {"QUARANTINE_NOT_ACCEPTED"}:
            return


async def change(control: MigrationControl, phase: Phase) -> None:
    """Change to ``phase`` and accept the quarantine."""
    await control.change_phase(phase, dry_run=False, accept_quarantine=True)


async def backfilled(control: MigrationControl) -> None:
    """Wait until the backfill is complete, indexed and verified."""
    async for status in control.watch():
        done = status.backfill.state is BackfillState.DONE
        if done and status.last_verification is not None:
            return


async def refused(control: MigrationControl, phase: Phase) -> list[str]:
    """Return the reasons why a change is refused."""
    try:
        await control.change_phase(phase, dry_run=False, accept_quarantine=False)
    except PreconditionError as exc:
        return [blocker.reason for blocker in exc.blockers]
    raise AssertionError(f"the change to {phase.slug} was not refused")


async def eventually_current(control: MigrationControl) -> None:
    """Wait until PostgreSQL answers reads."""
    async for status in control.watch():
        if not status.reads_from_fallback:
            return
