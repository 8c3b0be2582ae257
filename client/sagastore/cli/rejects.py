"""The rejected rows of an import, which are counted, listed and optionally written to a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from sagastore.cli import records
from sagastore.cli.failures import CommandError
from sagastore.cli.output_folder import OutputFolder
from sagastore.importers.base import Problem, Row, Source
from sagastore.legacy import reason_of

__all__ = ["LISTED", "Rejects"]

LISTED = 20
"""Maximum number of rows to list; the file has all of them."""


class Rejects:
    """Collects rejected rows in the order of the source.

    Args:
        source: The source of the rows.
        path: The file to write; None for no file.
    """

    def __init__(self, source: Source, path: Path | None) -> None:
        self._source = source
        self._path = path
        self._file: IO[bytes] | None = None
        self.first: list[list[str]] = []
        self.count = 0

    def open(self, size: int = 0, first: list[list[str]] | None = None, count: int = 0) -> None:
        """Open the file, or resume: truncate it to `size`.

        Raises:
            CommandError: The file cannot be written.
        """
        self.first, self.count = first or [], count
        if self._path is None:
            return
        try:
            folder = OutputFolder(self._path)
            try:
                self._file = os.fdopen(folder.open_own(folder.name), "r+b")
            finally:
                folder.close()
            self._file.truncate(size)
            self._file.seek(size)
        except OSError as exc:
            raise CommandError(f"cannot write {self._path}: {exc.strerror}") from None

    def has(self, size: int) -> bool:
        """Report whether the file still has at least `size` bytes."""
        if self._path is None:
            return True
        try:
            return self._path.stat().st_size >= size
        except OSError:
            return False

    def add(self, row: Row, problems: tuple[Problem, ...]) -> None:
        """Add a row with its problems."""
        self.count += 1
        first = problems[0]
        # As in the quarantine and in the server's inspection.
        reason = reason_of(problems)
        if len(self.first) < LISTED:
            self.first.append([row.key, first.field, reason])
        if self._file is not None:
            self._file.write(self._line(row, first.field, reason))

    def _line(self, row: Row, field: str, reason: str) -> bytes:
        head = records.document({"source_key": row.key, "field": field, "reason": reason})
        # The text is already JSON; decoding it could change numbers.
        raw = self._source.raw_json(row.raw)
        return f'{head[:-1]},"row":{raw}}}\n'.encode(errors="backslashreplace")

    def flush(self) -> int:
        """Sync the file; return its size."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
