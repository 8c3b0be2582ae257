"""The `migrate verify` command."""

from __future__ import annotations

import time
from contextlib import aclosing

from sagastore import Mismatch, VerifyProgress
from sagastore._async_migration import VERIFY_TIMEOUT
from sagastore.cli import migration_record, records
from sagastore.cli.console import screen
from sagastore.cli.failures import CommandError, show_error
from sagastore.cli.output import print_json
from sagastore.cli.progress import Meter, duration
from sagastore.cli.settings import Settings
from sagastore.commandline.errors import Failure
from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.text import counted

__all__ = ["verify"]


async def verify(settings: Settings, *, repair: bool) -> int:
    """Compare the two stores and print the rows that differ.

    Returns 1 if any row differs, even with `repair`, because only another
    verification can confirm the repair.
    """
    began = time.monotonic()
    found: list[Mismatch] = []
    last = await _compare(settings, repair, found)
    seconds = time.monotonic() - began
    if settings.as_json:
        document = {
            "compared": last.compared,
            "mismatch_count": last.mismatch_count,
            "repaired": last.repaired,
            "seconds": round(seconds, 3),
            "mismatches": [migration_record.mismatch(item) for item in found],
        }
        print_json(records.document(document))
    else:
        _show(last, found, seconds)
    if last.mismatch_count:
        return show_error(_mismatches(settings, last, repair))
    return ExitStatus.DONE


async def _compare(settings: Settings, repair: bool, found: list[Mismatch]) -> VerifyProgress:
    """Run a verification; add the mismatches to `found`."""
    timeout = VERIFY_TIMEOUT if settings.timeout is None else settings.timeout
    meter: Meter | None = None
    try:
        async with (
            settings.client() as client,
            aclosing(client.migration.verify(repair=repair, timeout=timeout)) as progresses,
        ):
            async for progress in progresses:
                found.extend(progress.mismatches)
                if progress.done:
                    return progress
                if meter is None:
                    meter = Meter(
                        "verifying",
                        total=progress.total or None,
                        quiet=settings.quiet,
                        unit=("row", "rows"),
                    )
                meter.update(progress.compared, progress.compared)
    finally:
        if meter is not None:
            meter.close()
    raise CommandError("the server ended the verification early; run the command again")


def _show(last: VerifyProgress, found: list[Mismatch], seconds: float) -> None:
    out = screen()
    if found:
        rows = ((item.id, item.kind.value, ", ".join(item.fields) or "-") for item in found)
        out.table("Differing rows", ("id", "kind", "fields"), rows)
        more = last.mismatch_count - len(found)
        if more > 0:
            out.line(f"{more:,} more {'is' if more == 1 else 'are'} not listed")
    result = (
        (_differ(last.mismatch_count), "bold red")
        if last.mismatch_count
        else ("no mismatch", "bold green")
    )
    out.line(f"{counted(last.compared, 'row')} compared in {duration(seconds)}: ", result)


def _mismatches(settings: Settings, last: VerifyProgress, repair: bool) -> Failure:
    """Return the failure of a verification that found mismatches, with the next command."""
    if repair:
        were = "was" if last.repaired == 1 else "were"
        text = (
            f"{last.repaired:,} of {counted(last.mismatch_count, 'differing row')} {were} queued "
            f"for repair; to verify {_them(last.repaired)}, run:"
        )
        command = settings.command("migrate", "verify")
    else:
        differ, them = _differ(last.mismatch_count), _them(last.mismatch_count)
        text = f"{differ}; to copy {them} from SQLite again, run:"
        command = settings.command("migrate", "verify", "--repair")
    return Failure(text, reason="VERIFICATION_MISMATCH", command=command)


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _differ(count: int) -> str:
    return f"{counted(count, 'row')} {'differs' if count == 1 else 'differ'}"
