"""``sagastore-server inspect``: report on a database file, and on what serving it would change.

Changes neither the file nor its folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.progress import Progress
from rich.table import Table

from sagastore.commandline.text import counted
from sagastore_server.config.options import fail
from sagastore_server.sqlite.files import Kind
from sagastore_server.sqlite.legacy.copy import SUFFIX
from sagastore_server.sqlite.legacy.report import (
    FileReport,
    LegacyReport,
    SetAside,
    StoreReport,
    look_into,
)
from sagastore_server.storage.errors import CannotOpenError

LISTED_ROWS = 50
"""Quarantined rows that are listed without ``--json``, which lists all."""

_MEGABYTE = 1_000_000
_WORDS = {
    Kind.EMPTY: "empty; a server creates a new store in it",
    Kind.SAGASTORE: "SagaStore",
    Kind.LEGACY: "legacy ARC SAGA memory.db",
}


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A database file.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, with every quarantined row.")
    ] = False,
) -> None:
    """Report what FILE is and what serving it would change, without changing it.

    For a legacy memory.db: which rows would be imported, which would be quarantined, and why.
    Exit status 0 if the file can be served, 1 if not, or if it has nothing that can be served.
    """
    try:
        report = _inspect(file, None if as_json else LISTED_ROWS)
    except CannotOpenError as exc:
        fail(str(exc))
    if as_json:
        typer.echo(json.dumps(as_document(report), ensure_ascii=False, indent=2))
    elif not report.refusal or report.legacy:
        _show(report, Console(highlight=False, soft_wrap=True))
    if report.refusal:
        fail(f"{file} {report.refusal}")


def as_document(report: FileReport) -> dict[str, Any]:
    """Return the report as printed by ``--json``."""
    document: dict[str, Any] = {
        "file": str(report.path),
        "bytes": report.size,
        "kind": report.state.kind.value,
        "schema_version": report.state.schema_version,
        "can_be_served": report.refusal is None,
        "reason": report.refusal,
    }
    if report.legacy:
        document["legacy"] = _legacy_document(report.legacy)
    if report.store:
        document["store"] = report.store._asdict()
    return document


def _legacy_document(legacy: LegacyReport) -> dict[str, Any]:
    return {
        **legacy._asdict(),
        "reasons": [reason._asdict() for reason in legacy.reasons],
        "set_aside": [row._asdict() for row in legacy.set_aside],
        "files_set_aside": [row._asdict() for row in legacy.files_set_aside],
        "oddities": [oddity._asdict() for oddity in legacy.oddities],
        "plan": legacy.plan.as_json(),
    }


def _inspect(path: Path, limit: int | None) -> FileReport:
    # On standard error, so that standard output has the report only.
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("Reading", total=None)
        return look_into(
            path,
            limit=limit,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _show(report: FileReport, out: Console) -> None:
    out.print(f"[bold]{_safe(str(report.path))}[/bold]: {_WORDS[report.state.kind]}")
    out.print(f"  {counted(report.size, 'byte')}")
    if report.store:
        _show_store(report.store, report.state.schema_version, out)
    if report.legacy:
        _show_legacy(report.legacy, report.path, out)
    if not report.refusal:
        out.print("[green]It can be served.[/green]")


def _show_store(store: StoreReport, version: int, out: Console) -> None:
    out.print(f"  schema version {version}, store {_safe(store.store_id)}")
    out.print(
        f"  {counted(store.messages, 'message')}, "
        f"{counted(store.quarantined, 'row')} in quarantine, "
        f"last revision {store.revision:,}"
    )
    if store.takeover:
        out.print(
            f"  taken over at {_safe(str(store.takeover.get('taken_over_at')))} "
            f"from {counted(store.takeover.get('rows', 0), 'row')}; "
            f"the file before: {_safe(str(store.takeover.get('copy')))}"
        )


def _show_legacy(legacy: LegacyReport, path: Path, out: Console) -> None:
    out.print(
        f"  {counted(legacy.rows, 'message')}: [green]{legacy.served:,} would be served[/green], "
        f"{_in_yellow(legacy.quarantined)} quarantined"
    )
    if legacy.files is not None:
        served = legacy.files - legacy.files_quarantined
        out.print(
            f"  {counted(legacy.files, 'file')}: [green]{served:,} would be served[/green], "
            f"{_in_yellow(legacy.files_quarantined)} quarantined"
        )
    _show_schema(legacy, out)
    out.print(
        f"  disk space: up to {legacy.bytes_needed / _MEGABYTE:,.0f} MB are needed, "
        f"{legacy.bytes_free / _MEGABYTE:,.0f} MB are free; "
        f"the original is kept as {_safe(path.name + SUFFIX)}"
    )
    if legacy.oddities:
        table = _table("Notation of values", "rows", "for example, rowid")
        for what, total, examples in legacy.oddities:
            table.add_row(_safe(what), f"{total:,}", _rowids(examples))
        out.print(table)
    if legacy.reasons:
        _show_quarantined(legacy, out)
    if legacy.files_quarantined:
        out.print("Files that would be quarantined:")
        _list_set_aside(legacy.files_set_aside, legacy.files_quarantined, out)


def _show_schema(legacy: LegacyReport, out: Console) -> None:
    plan = legacy.plan
    if legacy.index_lacks or legacy.index_orphans:
        out.print(
            f"  the old full-text index lacks {counted(legacy.index_lacks, 'message')} and has "
            f"{legacy.index_orphans:,} deleted ones; it will be rebuilt"
        )
    lines = {
        "unknown columns, whose values are kept": plan.extra_columns,
        "missing columns, read as NULL": plan.missing_columns,
        "removed with the old table": [f"{item.type} {item.name}" for item in plan.unusual],
        "unchanged": [f"{item.type} {item.name}" for item in plan.kept],
    }
    for what, names in lines.items():
        if names:
            out.print(f"  {what}: {_safe(', '.join(names))}")


def _show_quarantined(legacy: LegacyReport, out: Console) -> None:
    reasons = _table("Reasons for quarantine", "rows", "for example, rowid")
    for field, reason, total, examples in legacy.reasons:
        reasons.add_row(f"{_safe(field)}: {_safe(reason)}", f"{total:,}", _rowids(examples))
    out.print(reasons)
    if all(total == len(examples) for _, _, total, examples in legacy.reasons):
        return  # The table above lists all of them.
    out.print("Rows that would be quarantined:")
    _list_set_aside(legacy.set_aside, legacy.quarantined, out)


def _list_set_aside(rows: list[SetAside], total: int, out: Console) -> None:
    for row in rows:
        out.print(f"  {row.source_key}  {_safe(row.reason)}")
    if len(rows) < total:
        out.print(f"  … and {total - len(rows):,} more; --json lists all")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index == 1 else "left", overflow="fold")
    return table


def _safe(text: str) -> str:
    """Return text from a file without markup and control codes, for a terminal."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escape_markup("".join(shown))


def _rowids(examples: list[int]) -> str:
    return ", ".join(map(str, examples))


def _in_yellow(count: int) -> str:
    return f"[yellow]{count:,}[/yellow]" if count else "0"
