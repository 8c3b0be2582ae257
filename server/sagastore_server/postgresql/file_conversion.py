"""Conversion of the former table ``files`` into file records, in the transaction of schema step 5.

The former columns have the values of SQLite. Each row becomes a record, or goes to quarantine with
these values. The target of an unfinished migration has no former rows: it gets them from SQLite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sagastore.legacy import FILE_COLUMNS, Problem, RawValue, Text, raw_row_as_json, reason_of
from sagastore_server.legacy.rows import read_file
from sagastore_server.postgresql.files import file_columns
from sagastore_server.postgresql.pool import Connection
from sagastore_server.postgresql.queries import QUERIES

_AT_A_TIME = 50
"""Rows per fetch; the text of a file may be large."""


async def convert_files(connection: Connection) -> None:
    """Convert all rows of the former table, and drop it."""
    after: str | None = None
    while rows := await connection.fetch(QUERIES["former_files"], after, _AT_A_TIME):
        for row in rows:
            await _convert(connection, row)
        after = str(rows[-1][0])
    await connection.execute(QUERIES["drop_former_files"])


async def _convert(connection: Connection, row: Sequence[Any]) -> None:
    values = [_raw(value) for value in row[: len(FILE_COLUMNS)]]
    reading = read_file(values, row[len(FILE_COLUMNS)])
    if reading.problems:
        await _quarantine(connection, str(row[0]), values, reading.problems)
        return
    revision = await connection.fetchval(QUERIES["take_block"])
    record = reading.record._replace(revision=revision)
    await connection.fetch(QUERIES["insert_files"], *[[one] for one in file_columns(record)])


async def _quarantine(
    connection: Connection, file_id: str, values: list[RawValue], problems: list[Problem]
) -> None:
    raw = raw_row_as_json(FILE_COLUMNS, values)
    key = f"files/id={file_id}"
    await connection.execute(
        QUERIES["quarantine_file"], key, reason_of(problems), problems[0].field, raw
    )


def _raw(value: str | int | None) -> RawValue:
    return Text(value.encode()) if isinstance(value, str) else value
