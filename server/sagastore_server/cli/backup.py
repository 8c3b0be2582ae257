"""``sagastore-server backup`` and ``restore``: a store's file, copied while it is served."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sagastore_server.config import settings
from sagastore_server.sqlite.backup.create import BackupError, Contents, back_up
from sagastore_server.sqlite.backup.create import Progress as Tell
from sagastore_server.sqlite.backup.restore import restore as put_back
from sagastore_server.storage.phase import Phase

_MEGABYTE = 1_000_000
_T = TypeVar("_T")

_Sqlite = Annotated[
    Path | None,
    typer.Option(
        "--sqlite",
        metavar="FILE",
        help="The store's file; what `serve` would use if not given.",
    ),
]
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar=settings.ENV_PREFIX + "CONFIG",
        show_envvar=False,
        help="TOML file of the server, which may name the store's file.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file; never replaced.")],
    *,
    sqlite: _Sqlite = None,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """Copy the SQLite store to FILE while a server serves it, and verify the copy.

    FILE has what the store had when the command began, in one file. The server goes on
    meanwhile; run this as its user. PostgreSQL is backed up by its own tools.
    """
    path = _store(sqlite, config)
    done = _run("made", lambda tell: back_up(path, file, tell))
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
        f"{done.file}: {_told(done.contents)}, {done.bytes / _MEGABYTE:,.1f} MB, "
        f"verified, in {done.seconds:.1f} s"
    )


def restore(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="A file that `backup` made.")],
    *,
    sqlite: _Sqlite = None,
    config: _Config = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take the place of a file that is there; it is kept."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """Put a verified copy of BACKUP in the place of the SQLite store. Stop the server first.

    What was written after the backup was made is not in it.
    """
    path = _store(sqlite, config)
    done = _run("restored", lambda tell: put_back(backup, path, replace=replace, progress=tell))
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
    typer.echo(f"{done.file}: {_told(done.contents)}, verified, in {done.seconds:.1f} s")
    if done.replaced is not None:
        typer.echo(f"The file that was there is now {done.replaced}")
    if done.contents.phase is not Phase.SQLITE_ONLY:
        typer.echo(
            "Start the server with --sqlite and --postgres: it asks PostgreSQL whether that has "
            "seen later changes, and refuses to go on behind them"
        )


def _store(sqlite: Path | None, config: Path | None) -> Path:
    try:
        return settings.load(config, sqlite=sqlite).sqlite
    except settings.SettingsError as exc:
        _fail(str(exc))


def _run(done: str, work: Callable[[Tell], _T]) -> _T:
    """Do the work with a bar on a terminal; a signal ends it without leaving anything."""
    # On standard error, so that the result can go into a file.
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
    try:
        with _signals_noted() as signalled, bar:
            task = bar.add_task("Reading", total=None)

            def tell(what: str, at: int, of: int) -> None:
                if signalled.is_set():
                    raise KeyboardInterrupt  # noqa: TRY301 - in the middle of the work
                bar.update(task, description=what.capitalize(), completed=at, total=of or None)

            return work(tell)
    except BackupError as exc:
        _fail(str(exc))
    except KeyboardInterrupt:
        _fail(f"interrupted: nothing was {done}, and no partial file is left")


@contextlib.contextmanager
def _signals_noted() -> Iterator[threading.Event]:
    """Let SIGINT and SIGTERM be heard at safe places only; see ``Progress``.

    An exception that may come anywhere comes between making a file and seeing to its
    removal, too. A second signal is not waited with: the work may hang on a disk.
    """
    signalled = threading.Event()

    def note(number: int, frame: object) -> None:
        del number, frame
        if signalled.is_set():
            raise KeyboardInterrupt
        signalled.set()

    usual = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signalled
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _told(contents: Contents) -> str:
    aside = f", {contents.quarantined:,} rows in quarantine" if contents.quarantined else ""
    return (
        f"{contents.messages:,} messages{aside}, revision {contents.revision:,}, "
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


def _fail(line: str) -> NoReturn:
    typer.echo(f"sagastore-server: {' '.join(line.split())}", err=True)
    raise typer.Exit(1)
