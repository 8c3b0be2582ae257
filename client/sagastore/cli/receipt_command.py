"""The `migrate receipt` command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

from sagastore import receipt as receipts
from sagastore.cli import records
from sagastore.cli.console import Row, screen
from sagastore.cli.failures import CommandError, show_error
from sagastore.cli.output import print_json
from sagastore.cli.settings import Settings
from sagastore.commandline.errors import Failure
from sagastore.commandline.exit_status import ExitStatus
from sagastore.commandline.sanitize import one_line
from sagastore.commandline.text import counted

__all__ = ["receipt"]


def receipt(settings: Settings, path: Path) -> Coroutine[Any, Any, int]:
    """Verify the archive; return the coroutine that prints the result.

    Raises:
        CommandError: The receipt or the archive is missing or invalid.
    """
    # Without a running event loop, so that Ctrl+C interrupts the read.
    try:
        with _listener(settings) as progress:
            result = receipts.check(path.expanduser(), progress)
    except receipts.ReceiptError as exc:
        raise CommandError(str(exc)) from None
    return _report(settings, result)


async def _report(settings: Settings, result: receipts.CheckResult) -> int:
    if settings.as_json:
        print_json(records.document(_facts(result)))
    else:
        _show(result)
    failed = sum(not one.ok for one in result.checks)
    if not failed:
        return ExitStatus.DONE
    text = (
        f"{failed} of {counted(len(result.checks), 'check')} failed: the archive or the receipt "
        "has changed, or they do not belong together"
    )
    return show_error(Failure(text, reason="RECEIPT_MISMATCH"))


def _facts(result: receipts.CheckResult) -> dict[str, Any]:
    said = result.said
    return {
        "ok": result.ok,
        "archive": str(result.archive),
        "receipt": str(result.receipt),
        "archived_at": said.archived_at,
        "checks": [{"name": one.name, "ok": one.ok, "detail": one.detail} for one in result.checks],
        "facts": said.facts,
        "report": said.report,
    }


def _show(result: receipts.CheckResult) -> None:
    out = screen()
    said = result.said
    out.page(
        (
            Row("archive", (f"{result.archive}",), 10),
            Row("receipt", (f"{result.receipt}",), 10),
            Row("made", (f"{said.archived_at}, from {said.file}, by {said.made_by}",), 10),
            Row("", ()),
        )
    )
    width = max(len(one.name) for one in result.checks) + 2
    for one in result.checks:
        verdict = ("ok      ", "green") if one.ok else ("FAILED  ", "bold red")
        out.page([Row("", (verdict, f"{one.name:<{width}}", one.detail))])
    if result.ok:
        out.line("")
        out.line(("The archive matches its receipt.", "bold green"))


@contextlib.contextmanager
def _listener(settings: Settings) -> Iterator[receipts.Progress | None]:
    """Yield a progress callback on a terminal, None elsewhere."""
    if settings.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with console.status(Text("checking")) as status:

        def show(what: str, done: int, total: int) -> None:
            far = f" {done / total:.0%}" if total else f" {done:,}" if done else ""
            status.update(Text(f"{one_line(what)}{far}"))

        yield show
