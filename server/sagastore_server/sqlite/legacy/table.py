"""Adapter of `sagastore.legacy.table` to the server: its errors, and messages to store."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from sagastore.legacy import LegacyMessage, Problem, judge_row
from sagastore.legacy import table as shared
from sagastore.legacy.table import LegacyRow
from sagastore_server.storage.errors import CannotOpenError
from sagastore_server.storage.model import NewMessage


class LegacyTable(shared.LegacyTable):
    """A legacy ``messages`` table, which may have another name during the import."""

    def __init__(self, connection: sqlite3.Connection, name: str = "messages") -> None:
        """Read the columns of the table.

        Raises:
            CannotOpenError: Its rowid cannot be read.

        """
        try:
            super().__init__(connection, name)
        except shared.LegacyTableError as exc:
            raise CannotOpenError(str(exc)) from exc

    def read(self, row: LegacyRow) -> Reading:
        """Convert a row, without regard to other rows."""
        message, problems = judge_row(self.known(row), row.unreadable)
        return Reading(_draft(message), message.created_at_us, problems)


class Reading(NamedTuple):
    """A converted row, without regard to other rows."""

    draft: NewMessage
    """Valid only if there are no problems."""
    created_at: int | None
    problems: list[Problem]


def _draft(message: LegacyMessage) -> NewMessage:
    return NewMessage(
        message.id,
        message.provider,
        message.role,
        message.content,
        message.tags,
        message.timestamp_us,
        message.metadata,
        message.session_id,
    )
