"""`sagastore migrate to`, `pause`, `resume` and `throttle`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

from sagastore import (
    AsyncClient,
    Blocker,
    DeadlineExceededError,
    FailedPreconditionError,
    Migration,
    Phase,
    UnavailableError,
)
from sagastore._async_migration import CHANGE_TIMEOUT
from sagastore.cli import migration_page, migration_record, records
from sagastore.cli.console import Row, screen
from sagastore.cli.failures import CommandError, complain, explain
from sagastore.cli.output import print_json
from sagastore.cli.sanitize import one_line
from sagastore.cli.settings import Settings

__all__ = ["change_phase", "control_backfill"]

_FORWARD = {
    Phase.DUAL_WRITE: "Every write now goes into the journal, too, and PostgreSQL follows.",
    Phase.BACKFILL: "The rows that were there before are being copied; then indexes are built "
    "and all is compared.",
    Phase.READ_POSTGRES: "PostgreSQL answers reads now; every write is in both stores, and SQLite "
    "stays the fallback.",
    Phase.POSTGRES_ONLY: "PostgreSQL alone has the messages now; the SQLite file is archived, with "
    "a receipt beside it: sagastore migrate receipt FILE checks both.",
}
_BACK = {
    Phase.SQLITE_ONLY: "PostgreSQL no longer follows.",
    Phase.DUAL_WRITE: "The backfill has stopped; every write still goes to PostgreSQL, too.",
    Phase.BACKFILL: "SQLite answers reads again; PostgreSQL still follows.",
}


def change_phase(
    settings: Settings, wanted: Phase, *, dry_run: bool, accept_quarantine: bool, sure: bool
) -> Coroutine[Any, Any, int]:
    """Ask where there is no way back, and return what changes the phase.

    Raises:
        CommandError: The answer was no.
    """
    # Before there is an event loop, so that the question can be interrupted.
    if wanted is Phase.POSTGRES_ONLY and not dry_run and not sure:
        _make_sure(settings.target)
    return _change_phase(settings, wanted, dry_run, accept_quarantine)


def _make_sure(target: str) -> None:
    """Ask, if there is somebody to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    sys.stderr.write(
        f"There is no way back from postgres-only: {one_line(target)} will archive its SQLite file "
        "and never use it again.\nGo on? [y/N] "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was changed")


async def _change_phase(
    settings: Settings, wanted: Phase, dry_run: bool, accept_quarantine: bool
) -> int:
    async with settings.client() as client:
        before = await client.migration.get()
        try:
            after = await _ask(settings, client, wanted, dry_run, accept_quarantine)
        except FailedPreconditionError as exc:
            _refused(settings, before.phase, wanted, dry_run, exc)
            return 1
        except (DeadlineExceededError, UnavailableError) as exc:
            if dry_run:
                raise
            status = f"{migration_page.program(settings.target)} migrate status"
            raise CommandError(
                f"{explain(exc)}; whether the phase has changed, or still does, tells: {status}"
            ) from None
    if settings.as_json:
        _print_change(before.phase, wanted, dry_run, state=after)
    else:
        _show_change(settings, before.phase, wanted, dry_run, after)
    return 0


async def _ask(
    settings: Settings, client: AsyncClient, wanted: Phase, dry_run: bool, accept_quarantine: bool
) -> Migration:
    with _waiting(settings, f"going to {wanted.label}"):
        return await client.migration.change_phase(
            wanted,
            dry_run=dry_run,
            accept_quarantine=accept_quarantine,
            timeout=CHANGE_TIMEOUT if settings.timeout is None else settings.timeout,
        )


@contextlib.contextmanager
def _waiting(settings: Settings, text: str) -> Iterator[None]:
    """Show people at a terminal that something is going on."""
    if settings.quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False, emoji=False).status(text):
        yield


def _refused(
    settings: Settings, before: Phase, wanted: Phase, dry_run: bool, error: FailedPreconditionError
) -> None:
    # Without details there is the line at least.
    found = error.blockers or (Blocker(error.reason or "BLOCKED", str(error)),)
    if settings.as_json:
        _print_change(before, wanted, dry_run, blockers=found)
    sys.stdout.flush()
    would = "would be refused" if dry_run else "was refused, and nothing has changed"
    complain(f"{before.label} -> {wanted.label} {would}:")
    for blocker in found:
        sys.stderr.write(f"  - {one_line(blocker.reason)}: {one_line(blocker.detail)}\n")
    sys.stderr.flush()


def _print_change(
    before: Phase,
    wanted: Phase,
    dry_run: bool,
    *,
    state: Migration | None = None,
    blockers: tuple[Blocker, ...] = (),
) -> None:
    document = {
        "from": before.label,
        "to": wanted.label,
        "dry_run": dry_run,
        "changed": state is not None and not dry_run and before is not wanted,
        "blockers": migration_record.blockers(blockers),
        "migration": None if state is None else migration_record.facts(state),
    }
    print_json(records.document(document))


def _show_change(
    settings: Settings, before: Phase, wanted: Phase, dry_run: bool, state: Migration
) -> None:
    out = screen()
    if before is wanted:
        out.line(("Already there", "bold"), f": {wanted.label} is the phase in force.")
    elif dry_run:
        way = f"{before.label} -> {wanted.label}"
        out.line((way, "bold"), " is possible now. Nothing was changed: this was a dry run.")
    else:
        out.line((f"{before.label} -> {wanted.label}", "bold"), ": ", ("done", "green"))
        meaning = (_FORWARD if wanted > before else _BACK).get(wanted)
        if meaning:
            out.line(meaning)
    out.line("")
    out.page(migration_page.page(state, settings.target))


async def control_backfill(
    settings: Settings,
    *,
    paused: bool | None = None,
    batch_size: int | None = None,
    max_rows_per_second: int | None = None,
) -> int:
    """Pause, resume or throttle the backfill, and tell how it is then."""
    async with settings.client() as client:
        state = await client.migration.control_backfill(
            paused=paused, batch_size=batch_size, max_rows_per_second=max_rows_per_second
        )
    if settings.as_json:
        print_json(records.document(migration_record.facts(state)))
        return 0
    backfill = state.backfill
    said = (backfill.state.label, "bold")
    parts = (f": {migration_page.copied(backfill)}", *_pace(state))
    screen().page([Row("backfill ", (said, *parts), len("backfill "))])
    return 0


def _pace(state: Migration) -> Iterator[str]:
    for text in migration_page.pace(state.backfill):
        yield f", {text}"
    if state.backfill.error:
        yield f", {state.backfill.error}"
