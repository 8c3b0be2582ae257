"""Translation of SQLite's errors into those of the contract. No driver error leaves the package."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from sagastore_server.storage.errors import (
    CorruptStoreError,
    StorageError,
    StorageFullError,
    UnavailableError,
)

FULL = frozenset(
    {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE"}
)
"""SQLite's names for the errors of a full disk."""

_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}


class InterruptedReadError(UnavailableError):
    """A statement was interrupted by a checkpoint or by the cancellation of its caller."""


def translated(error: sqlite3.Error) -> StorageError:
    """Return the contract's error for an error of SQLite."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name in FULL:
        return StorageFullError(
            "the disk of the SQLite store is full; nothing was stored; free disk space and try "
            "again"
        )
    if name.startswith("SQLITE_CORRUPT") or name in _CORRUPT:
        return CorruptStoreError("the SQLite store is damaged; restore it from a backup")
    if name.startswith("SQLITE_READONLY"):
        return UnavailableError(
            "the SQLite store is read-only; check the permissions of the file and its folder"
        )
    if name == "SQLITE_INTERRUPT":
        return InterruptedReadError("the read was interrupted; try again")
    if name.startswith("SQLITE_IOERR"):
        return UnavailableError(
            f"the disk of the SQLite store reports an I/O error ({name}); check the disk"
        )
    # The rest are temporary states (busy, locked) and closed connections.
    return UnavailableError("the SQLite store cannot be used now; try again")


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Turn SQLite's errors into the contract's."""
    try:
        yield
    except sqlite3.Error as exc:
        raise translated(exc) from exc
