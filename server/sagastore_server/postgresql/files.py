"""The rows of file records: conversion, and the SQL of a group of writes and of journal entries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import QUERIES
from sagastore_server.storage.canonical_json import canonical_tags
from sagastore_server.storage.file_changes import FileChanges
from sagastore_server.storage.files import File
from sagastore_server.storage.replication import Entry
from sagastore_server.storage.sessions import RecordKind

Row = tuple[Any, ...]


def file_from_row(row: Sequence[Any]) -> File:
    """Return the file record of a row in the column order of files.sql."""
    return File._make((*row[:5], tuple(json.loads(row[5])), *row[6:12]))


def file_columns(record: File) -> Row:
    """Return the columns of a file record, in the order of files.sql."""
    return (*record[:5], canonical_tags(record.tags), *record[6:])


def _columns_of(rows: Iterable[Row]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


# ------------------------------------------------------------------ a group of writes


async def lock_files(connection: Connection, ids: set[str]) -> dict[str, File]:
    """Lock and read the records with ``ids``, in the order in which every transaction does."""
    if not ids:
        return {}
    rows = await connection.fetch(QUERIES["lock_files"], sorted(ids))
    return {row[0]: file_from_row(row) for row in rows}


async def flush_files(connection: Connection, changes: FileChanges, now: int) -> bool:
    """Write the changes; return False if another server has written one of the new ids."""
    stored = changes.before
    gone = [key for key, record in changes.after.items() if record is None and key in stored]
    kept = sorted(record for record in changes.after.values() if record is not None)
    if gone:
        await connection.execute(QUERIES["delete_files"], gone)
    if changes.buried:
        buried = sorted((key, revision, now) for key, revision in changes.buried.items())
        await connection.execute(QUERIES["bury_files"], *_columns_of(buried))
    known = [file_columns(record) for record in kept if record.id in stored]
    if known:
        await connection.fetch(QUERIES["update_files"], *_columns_of(known))
    return await _insert(connection, [file_columns(one) for one in kept if one.id not in stored])


async def _insert(connection: Connection, rows: list[Row]) -> bool:
    if not rows:
        return True
    done = await connection.fetch(QUERIES["insert_files"], *_columns_of(rows))
    if len(done) != len(rows):
        return False
    lowest = min(row[10] for row in rows)
    outlived = await connection.fetchval(
        QUERIES["outlived_files"], [row[0] for row in rows], lowest
    )
    return not outlived


# ------------------------------------------------------------------ journal entries


class FileSteps(NamedTuple):
    """SQL arguments for the entries of files in a batch."""

    forgotten: list[str]
    """Ids whose row and tombstone are removed first, because their entry is ``forced``."""
    burials: list[tuple[str, int, int]]
    """Id, revision and time of each deletion."""
    rows: list[Row]


def file_steps_of(entries: Iterable[Entry]) -> FileSteps:
    """Return the steps for the entries of files. Of several with one id, the last counts."""
    latest: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind is RecordKind.FILE:
            former = latest.get(entry.id)
            forced = entry.forced or (former is not None and former.forced)
            latest[entry.id] = entry._replace(forced=forced)
    ordered = sorted(latest.values(), key=lambda entry: entry.id)
    return FileSteps(
        [entry.id for entry in ordered if entry.forced],
        [(entry.id, entry.buried, entry.written_at) for entry in ordered if entry.buried],
        [file_columns(entry.file) for entry in ordered if entry.file is not None],
    )


async def apply_files(connection: Connection, steps: FileSteps) -> None:
    """Apply the steps; newer rows stay."""
    if steps.forgotten:
        await connection.execute(QUERIES["forget_files"], steps.forgotten)
    if steps.burials:
        await connection.execute(QUERIES["apply_burials"], *_columns_of(steps.burials))
    if steps.rows:
        await connection.execute(QUERIES["apply_files"], *_columns_of(steps.rows))
