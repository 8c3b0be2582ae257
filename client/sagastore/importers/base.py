"""The interface of a source: the rows of a file to import."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sagastore import Message

__all__ = ["HEAD_BYTES", "Position", "Problem", "Row", "Source", "counted", "file_identity"]

HEAD_BYTES = 65_536


class Position(NamedTuple):
    """A place between two rows of a source."""

    offset: int
    """Where reading continues: a byte offset in text, or a rowid in a database."""
    number: int
    """Number of rows, or of lines in text, before the position."""


class Problem(NamedTuple):
    """Why a row cannot become a message."""

    field: str
    reason: str


class Row(NamedTuple):
    """A row of a source: a message, or the problems of the row."""

    key: str
    """The place of the row, for display: `line 17`, `messages/rowid=17`."""
    raw: Any
    """The raw content, for `Source.raw_json`."""
    message: Message | None
    """None if there are problems."""
    problems: tuple[Problem, ...]
    after: Position
    """The position after the row."""
    progress: int
    """How much of the source is before `after`, in the unit of `Source.total`."""


class Source(Protocol):
    """A sequence of rows that can be read once."""

    name: str
    """The name for messages to the user."""
    kind: str
    """The format, for display."""
    notes: list[str]
    """Notes to print before the import starts."""
    left_behind: int
    """Number of rows of the source that an import does not take, such as file records."""

    def identity(self) -> dict[str, Any] | None:
        """Return values that change when the source changes; None if it cannot be resumed."""

    def total(self, start: Position | None) -> int | None:
        """Return the size in units of progress; None if it is unknown."""

    def rows(self, start: Position | None) -> Iterator[Row]:
        """Yield the rows from a position on; None means from the start."""

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw content as JSON."""

    def close(self) -> None:
        """Release all resources; the source cannot be used afterwards."""


def file_identity(path: Path) -> dict[str, Any]:
    """Return values that change when a file changes, without reading all of it."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(HEAD_BYTES)
    return {
        "path": str(path),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "head": hashlib.sha256(head).hexdigest(),
    }


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 row` or `2,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
