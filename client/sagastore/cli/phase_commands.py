"""`sagastore migrate to`, `pause`, `resume` and `throttle`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import replace
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
from sagastore.cli import confirmation, migration_page, migration_record, records
from sagastore.cli.console import Row, screen
from sagastore.cli.failures import CommandError, explain, failure_of, show_error
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.commandline.sanitize import one_line
from sagastore.commandline.text import write_paragraph

__all__ = ["change_phase", "control_backfill"]

_FORWARD = {
    Phase.DUAL_WRITE: "Every write is now also journaled and replicated to PostgreSQL.",
    Phase.BACKFILL: "Existing rows are being copied; then indexes are built and all rows are "
    "compared.",
    Phase.READ_POSTGRES: "PostgreSQL now serves reads; every write goes to both stores, and SQLite "
    "is the fallback.",
    Phase.POSTGRES_ONLY: "PostgreSQL is now the only store. The SQLite file is archived with a "
    "receipt; to verify both, run: sagastore migrate receipt FILE",
}
_BACK = {
    Phase.SQLITE_ONLY: "Writes are no longer replicated to PostgreSQL.",
    Phase.DUAL_WRITE: "The backfill has stopped; writes are still replicated to PostgreSQL.",
    Phase.BACKFILL: "SQLite serves reads again; writes are still replicated to PostgreSQL.",
}


def change_phase(
    settings: Settings, wanted: Phase, *, dry_run: bool, accept_quarantine: bool, sure: bool
) -> Coroutine[Any, Any, int]:
    """Ask for confirmation if necessary; return the coroutine that changes the phase.

    Raises:
        CommandError: The user did not confirm.
    """
    # Without a running event loop, so that Ctrl+C interrupts the question.
    if wanted is Phase.POSTGRES_ONLY and not dry_run and not sure:
        _confirm(settings.target)
    return _change_phase(settings, wanted, dry_run, accept_quarantine)


def _confirm(target: str) -> None:
    """Ask for confirmation on a terminal; do nothing elsewhere."""
    if not confirmation.has_terminal():
        return
    sys.stderr.write(
        f"postgres-only cannot be reversed: {one_line(target)} will archive its SQLite file "
        "and never use it again.\n"
    )
    confirmation.ask("Continue?")


async def _change_phase(
    settings: Settings, wanted: Phase, dry_run: bool, accept_quarantine: bool
) -> int:
    async with settings.client() as client:
        before = await client.migration.get()
        try:
            after = await _request(settings, client, wanted, dry_run, accept_quarantine)
        except FailedPreconditionError as exc:
            _show_blockers(settings, before.phase, wanted, dry_run, exc)
            return 1
        except (DeadlineExceededError, UnavailableError) as exc:
            if dry_run:
                raise
            text = f"{explain(exc)}; the change may still complete; to check, run:"
            raise CommandError(text, exc, command=settings.command("migrate", "status")) from None
    if settings.as_json:
        _print_change(before.phase, wanted, dry_run, state=after)
    else:
        _show_change(settings, before.phase, wanted, dry_run, after)
    return 0


async def _request(
    settings: Settings, client: AsyncClient, wanted: Phase, dry_run: bool, accept_quarantine: bool
) -> Migration:
    with _waiting(settings, f"changing to {wanted.label}"):
        return await client.migration.change_phase(
            wanted,
            dry_run=dry_run,
            accept_quarantine=accept_quarantine,
            timeout=CHANGE_TIMEOUT if settings.timeout is None else settings.timeout,
        )


@contextlib.contextmanager
def _waiting(settings: Settings, text: str) -> Iterator[None]:
    """Show a spinner on a terminal."""
    if settings.quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, highlight=False, markup=False, emoji=False).status(text):
        yield


def _show_blockers(
    settings: Settings, before: Phase, wanted: Phase, dry_run: bool, error: FailedPreconditionError
) -> None:
    # An error without details becomes one blocker.
    found = error.blockers or (Blocker(error.reason or "BLOCKED", str(error)),)
    result = "would be blocked" if dry_run else "is blocked; nothing has changed"
    colon = "" if settings.as_json else ":"  # The blockers follow as lines.
    text = f"{before.label} -> {wanted.label} {result}{colon}"
    show_error(replace(failure_of(error), message=text))
    if settings.as_json:
        _print_change(before, wanted, dry_run, blockers=found)
        return
    for blocker in found:
        text = f"  - {one_line(blocker.reason)}: {one_line(blocker.detail)}"
        write_paragraph(sys.stderr, text)
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
        out.line(("No change", "bold"), f": {wanted.label} is already the current phase.")
    elif dry_run:
        way = f"{before.label} -> {wanted.label}"
        out.line((way, "bold"), " is possible now. Dry run: nothing has changed.")
    else:
        out.line((f"{before.label} -> {wanted.label}", "bold"), ": ", ("done", "green"))
        meaning = (_FORWARD if wanted > before else _BACK).get(wanted)
        if meaning:
            out.line(meaning)
    out.line("")
    out.page(migration_page.page(state, settings))


async def control_backfill(
    settings: Settings,
    *,
    paused: bool | None = None,
    batch_size: int | None = None,
    max_rows_per_second: int | None = None,
) -> int:
    """Pause, resume or throttle the backfill, and print its state."""
    async with settings.client() as client:
        state = await client.migration.control_backfill(
            paused=paused, batch_size=batch_size, max_rows_per_second=max_rows_per_second
        )
    if settings.as_json:
        print_json(records.document(migration_record.facts(state)))
        return 0
    backfill = state.backfill
    label = (backfill.state.label, "bold")
    parts = (f": {migration_page.copied(backfill)}", *_pace(state))
    screen().page([Row("backfill ", (label, *parts), len("backfill "))])
    return 0


def _pace(state: Migration) -> Iterator[str]:
    for text in migration_page.pace(state.backfill):
        yield f", {text}"
    if state.backfill.error:
        yield f", {state.backfill.error}"
