"""What every source of an import offers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sagastore import Message

__all__ = ["HEAD_BYTES", "Position", "Problem", "Row", "Source", "file_identity"]

HEAD_BYTES = 65_536


class Position(NamedTuple):
    """A place between two rows of a source."""

    offset: int
    """Where reading goes on: a byte of the text, or a rowid. What it means is the source's."""
    number: int
    """Rows before it; lines, where the source is text."""


class Problem(NamedTuple):
    """Why a row is no message."""

    field: str
    reason: str


class Row(NamedTuple):
    """A row of a source: a message, or what is wrong with it."""

    key: str
    """Where it stands, for people: `line 17`, `messages/rowid=17`."""
    raw: Any
    """What stands there, for `Source.raw_json`."""
    message: Message | None
    """None where there are problems."""
    problems: tuple[Problem, ...]
    after: Position
    """The place behind it."""
    progress: int
    """How much of the source lies before that place, in the units of `Source.total`."""


class Source(Protocol):
    """Something that rows are read from, once, from first to last."""

    name: str
    """What people know it by."""
    kind: str
    """What it is, for people."""
    notes: list[str]
    """What people should know before the import begins."""

    def identity(self) -> dict[str, Any] | None:
        """Return what tells whether it is still the same; None: it cannot be resumed."""

    def total(self, start: Position | None) -> int | None:
        """Return its size in units of progress; None where that is unknown."""

    def rows(self, start: Position | None) -> Iterator[Row]:
        """Yield the rows from a place on."""

    def raw_json(self, raw: Any) -> str:
        """Return a row's raw content as JSON."""

    def close(self) -> None:
        """Free what it holds; the source is of no use afterwards."""


def file_identity(path: Path) -> dict[str, Any]:
    """Return what tells whether a file has changed, without reading all of it."""
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
