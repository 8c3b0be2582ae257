"""``sagastore-server backup`` and ``restore``: online backup of the SQLite store."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sagastore.commandline.text import counted
from sagastore_server.config import settings
from sagastore_server.config.options import fail
from sagastore_server.sqlite.backup.create import BackupError, Contents, back_up
from sagastore_server.sqlite.backup.create import Progress as Report
from sagastore_server.sqlite.backup.restore import restore as restore_backup
from sagastore_server.storage.phase import Phase

_MEGABYTE = 1_000_000
_T = TypeVar("_T")

_Sqlite = Annotated[
    Path | None,
    typer.Option(
        "--sqlite",
        metavar="FILE",
        help="The store's file. Default: the one that `serve` would use.",
    ),
]
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar=settings.ENV_PREFIX + "CONFIG",
        show_envvar=False,
        help="TOML file with the settings of the server.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file; must not exist.")],
    *,
    sqlite: _Sqlite = None,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """Copy the SQLite store to FILE while the server runs, and verify the copy.

    FILE is one file with the content of the store when the command started. Run the command
    as the user of the server. For PostgreSQL, use its own tools.
    """
    path = _store(sqlite, config)
    done = _run("made", lambda report: back_up(path, file, report))
    if as_json:
        _print_json(
            {
                "file": str(done.file),
                "store": str(path),
                "bytes": done.bytes,
                **_document(done.contents),
                "verified": True,
                "seconds": round(done.seconds, 3),
            }
        )
        return
    typer.echo(
        f"{done.file}: {_summary(done.contents)}, {done.bytes / _MEGABYTE:,.1f} MB, "
        f"verified, in {done.seconds:.1f} s"
    )


def restore(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="A file that `backup` made.")],
    *,
    sqlite: _Sqlite = None,
    config: _Config = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace an existing store, which is kept under another name."
        ),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Replace the SQLite store by a verified copy of BACKUP. Stop the server first.

    Messages that were written after the backup are not in it.
    """
    path = _store(sqlite, config)
    done = _run(
        "restored", lambda report: restore_backup(backup, path, replace=replace, progress=report)
    )
    if as_json:
        _print_json(
            {
                "file": str(done.file),
                "backup": str(backup),
                "replaced": None if done.replaced is None else str(done.replaced),
                **_document(done.contents),
                "verified": True,
                "seconds": round(done.seconds, 3),
            }
        )
        return
    typer.echo(f"{done.file}: {_summary(done.contents)}, verified, in {done.seconds:.1f} s")
    if done.replaced is not None:
        typer.echo(f"The previous store is now {done.replaced}")
    if done.contents.phase is not Phase.SQLITE_ONLY:
        typer.echo(
            "Start the server with --sqlite and --postgres: it refuses to serve the backup if "
            "PostgreSQL has later changes"
        )


def _store(sqlite: Path | None, config: Path | None) -> Path:
    try:
        return settings.load(config, sqlite=sqlite).sqlite
    except settings.SettingsError as exc:
        fail(str(exc))


def _run(done: str, work: Callable[[Report], _T]) -> _T:
    """Run ``work`` with a progress bar on a terminal. A signal stops it and leaves no file."""
    # On standard error, so that standard output has the result only.
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
    try:
        with _deferred_signals() as signalled, bar:
            task = bar.add_task("Reading", total=None)

            def report(what: str, at: int, of: int) -> None:
                if signalled.is_set():
                    raise KeyboardInterrupt  # noqa: TRY301 - stops the work that calls this
                bar.update(task, description=what.capitalize(), completed=at, total=of or None)

            return work(report)
    except BackupError as exc:
        fail(str(exc))
    except KeyboardInterrupt:
        fail(f"interrupted: nothing was {done}, and no partial file is left")


@contextlib.contextmanager
def _deferred_signals() -> Iterator[threading.Event]:
    """Defer SIGINT and SIGTERM to the next report of progress, which is a safe place.

    An exception at any other place could come between the creation of a file and the code that
    removes it. A second signal raises at once, because the work may hang on a disk.
    """
    signalled = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        del number, frame
        if signalled.is_set():
            raise KeyboardInterrupt
        signalled.set()

    handlers = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield signalled
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _summary(contents: Contents) -> str:
    quarantine = (
        f", {counted(contents.quarantined, 'row')} in quarantine" if contents.quarantined else ""
    )
    return (
        f"{counted(contents.messages, 'message')}{quarantine}, revision {contents.revision:,}, "
        f"phase {contents.phase.slug}"
    )


def _document(contents: Contents) -> dict[str, Any]:
    return {
        "store_id": contents.store_id,
        "messages": contents.messages,
        "quarantined": contents.quarantined,
        "tombstones": contents.tombstones,
        "revision": contents.revision,
        "schema_version": contents.schema_version,
        "phase": contents.phase.slug,
        "epoch": contents.epoch,
    }


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
