"""Comparison of PostgreSQL with the archive of a completed migration."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg

from sagastore import Message
from sagastore._json import loads as read_json
from sagastore.receipt import Receipt, check
from tests.support.checker import Value

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MESSAGES = """SELECT id, provider, role, content, {tags}, timestamp, {metadata}, session_id,
    created_at, revision, {sequence} FROM messages"""
_OTHERS = {
    "quarantine": "SELECT number, source_key, reason, field, row FROM quarantine",
    "legacy_extra": "SELECT message_id, name FROM legacy_extra",
}
_FILES = """SELECT id, filename, filepath, file_type, extracted_text, {tags}, file_size,
    uploaded_at, {metadata}, created_at, revision, extra FROM files"""


class FinalState:
    """Archive with its receipt, and the rows of both sides."""

    def __init__(self, archive: Path) -> None:
        """Verify ``archive`` against its receipt, and read it."""
        result = check(archive)
        assert result.ok, [one for one in result.checks if not one.ok]
        self.receipt: Receipt = result.said
        self.archive = result.archive
        self.messages: dict[str, tuple[Any, ...]] = {}
        """Messages of the archive by id."""
        self.postgresql: dict[str, tuple[Any, ...]] = {}
        """Messages of PostgreSQL by id."""
        self._here: dict[str, set[tuple[Any, ...]]] = {}
        self._there: dict[str, set[tuple[Any, ...]]] = {}

    async def read(self, dsn: str) -> None:
        """Read all rows of both sides."""
        self._read_archive()
        connection = await asyncpg.connect(dsn)
        try:
            messages = _MESSAGES.format(
                tags="tags::text", metadata="metadata::text", sequence="sequence"
            )
            self.postgresql = {row[0]: tuple(row) for row in await connection.fetch(messages)}
            files = _FILES.format(tags="tags::text", metadata="metadata::text")
            for name, statement in {**_OTHERS, "files": files}.items():
                self._there[name] = {tuple(row) for row in await connection.fetch(statement)}
        finally:
            await connection.close()

    def _read_archive(self) -> None:
        uri = f"{self.archive.as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            messages = _MESSAGES.format(tags="tags", metadata="metadata", sequence="number")
            for row in connection.execute(messages):
                self.messages[row[0]] = (
                    *row[:5],
                    _time(row[5]),
                    *row[6:8],
                    _time(row[8]),
                    *row[9:],
                )
            for name, statement in _OTHERS.items():
                self._here[name] = set(connection.execute(statement))
            rows = connection.execute(_FILES.format(tags="tags", metadata="metadata"))
            self._here["files"] = {
                (*row[:7], _time(row[7]), row[8], _time(row[9]), *row[10:]) for row in rows
            }

    def values(self) -> dict[str, Value]:
        """Return the messages of PostgreSQL as clients see them."""
        return {
            id: Value.of(
                Message(
                    *row[1:4],
                    tags=json.loads(row[4]),
                    timestamp=row[5],
                    metadata=read_json(row[6]),
                    session_id=row[7],
                )
            )
            for id, row in self.postgresql.items()
        }

    def compare(self, changed: Container[str] = ()) -> None:
        """Compare field by field; rows in ``changed`` were written after the cutover."""
        for id in self.messages.keys() | self.postgresql.keys():
            if id not in changed:
                there, here = self.postgresql.get(id), self.messages.get(id)
                assert there == here, f"PostgreSQL has {there}, the archive {here}"
        for name, rows in self._here.items():
            # Only files are written after the cutover; `changed` also has ids of messages.
            skipped = changed if name == "files" else ()
            there_rows, here_rows = (
                {row for row in side if row[0] not in skipped} for side in (self._there[name], rows)
            )
            assert there_rows == here_rows, f"{name} of PostgreSQL and of the archive differ"

    def compare_counts(self, quarantined: int, files: int) -> None:
        """Compare the receipt with both sides and with the expected counts."""
        facts, reported = self.receipt.facts, self.receipt.report["postgresql"]
        assert facts["messages"]["rows"] == reported["messages"] == len(self.messages)
        for name, rows in {"quarantine": quarantined, "files": files}.items():
            there = (reported[name], len(self._there[name]))
            assert there == (rows, rows), f"{name}: {there}, not {rows}"
        assert facts["quarantine"]["rows"] == quarantined
        assert facts["extras"]["rows"] == reported["extras"] == len(self._there["legacy_extra"])
        assert self.receipt.report["verification"]["mismatches"] == 0


def _time(micros: int | None) -> datetime | None:
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)
