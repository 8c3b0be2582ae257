"""``sagastore-server backup`` and ``restore``: online backup of the SQLite store."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sagastore.commandline.text import counted
from sagastore_server.cli.backup_schedule import (
    Outcome,
    Plan,
    recorded,
    rotate_once,
    rotate_until_stopped,
)
from sagastore_server.cli.durations import parse_duration
from sagastore_server.cli.interruptible import Report, with_progress
from sagastore_server.config import settings
from sagastore_server.config.options import fail
from sagastore_server.sqlite.backup.create import BackupError, BackupReport, Contents, back_up
from sagastore_server.sqlite.backup.restore import restore as restore_backup
from sagastore_server.sqlite.backup.rotation import default_folder
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


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def backup(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            show_default=False,
            help="The new file; must not exist. With --keep: the folder for the backups; default: "
            "the name of the store with .backups added.",
        ),
    ] = None,
    *,
    every: Annotated[
        float | None,
        typer.Option(
            "--every",
            metavar="DURATION",
            parser=_duration,
            help="Run until a signal arrives, and make a backup each time this has passed (30m, "
            "1h, 1d). Requires --keep.",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            metavar="N",
            min=1,
            max=100_000,
            help="Name the backup by its time, and then remove all but the N newest ones of this "
            "store.",
        ),
    ] = None,
    sqlite: _Sqlite = None,
    config: _Config = None,
    as_json: _Json = False,
) -> None:
    """Copy the SQLite store to FILE while the server runs, and verify the copy.

    FILE is one file with the content of the store when the command started. Run the command
    as the user of the server. For PostgreSQL, use its own tools.

    With --keep, a timer can run the command; with --every, it waits itself. A failed backup
    removes no older one.
    """
    if keep is None:
        if every is not None:
            raise typer.BadParameter("requires --keep N", param_hint="--every")
        if file is None:
            raise typer.BadParameter(
                "name the new file, or use --keep N for rotated backups", param_hint="FILE"
            )
        _back_up_once(_store(sqlite, config), file, as_json=as_json)
        return
    path = _store(sqlite, config)
    plan = Plan(path, file or default_folder(path), keep, every)
    _rotate(plan, as_json=as_json)


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
    try:
        return with_progress(work)
    except BackupError as exc:
        fail(str(exc))
    except KeyboardInterrupt:
        fail(f"interrupted: nothing was {done}, and no partial file is left")


def _back_up_once(path: Path, file: Path, *, as_json: bool) -> None:
    done = _run(
        "made",
        lambda report: recorded(path, lambda: back_up(path, file, report), every=None),
    )
    if as_json:
        _print_json(_backup_document(path, done))
    else:
        typer.echo(_backup_line(done))


def _rotate(plan: Plan, *, as_json: bool) -> None:
    def say(outcome: Outcome) -> None:
        # Standard output may be closed, and the schedule continues.
        with contextlib.suppress(OSError):
            typer.echo(_outcome_json(plan, outcome) if as_json else _outcome_text(outcome))

    try:
        if plan.every is None:
            rotate_once(plan, say)
        else:
            rotate_until_stopped(plan, plan.every, say)
    except BackupError as exc:
        fail(str(exc))
    except KeyboardInterrupt:
        fail("interrupted: nothing was made, and no partial file is left")


def _outcome_text(outcome: Outcome) -> str:
    rotated = outcome.rotated
    notes = [f"{rotated.kept:,} kept"]
    if rotated.removed:
        notes.append(f"{len(rotated.removed):,} removed")
    if outcome.next_at is not None:
        notes.append(f"next at {outcome.next_at:%H:%M:%S} UTC")
    return f"{_backup_line(rotated.report)}; {', '.join(notes)}"


def _outcome_json(plan: Plan, outcome: Outcome) -> str:
    rotated = outcome.rotated
    document = {
        **_backup_document(plan.path, rotated.report),
        "kept": rotated.kept,
        "removed": [str(one) for one in rotated.removed],
        "next_at": None if outcome.next_at is None else outcome.next_at.isoformat(),
    }
    return json.dumps(document, ensure_ascii=False)


def _backup_line(done: BackupReport) -> str:
    return (
        f"{done.file}: {_summary(done.contents)}, {done.bytes / _MEGABYTE:,.1f} MB, "
        f"verified, in {done.seconds:.1f} s"
    )


def _backup_document(path: Path, done: BackupReport) -> dict[str, Any]:
    return {
        "file": str(done.file),
        "store": str(path),
        "bytes": done.bytes,
        **_document(done.contents),
        "verified": True,
        "seconds": round(done.seconds, 3),
    }


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
