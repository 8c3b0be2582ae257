"""Translates SQLite's errors into the contract's: no driver error leaves this room."""

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
"""What SQLite calls the failures of a disk that is full."""

_CORRUPT = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}


class InterruptedReadError(UnavailableError):
    """A statement was interrupted, by a checkpoint or a caller that went away."""


def translated(error: sqlite3.Error) -> StorageError:
    """Return the contract's error for one of SQLite's."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name in FULL:
        return StorageFullError(
            "the disk of the SQLite store is full; nothing was stored, try again when there is room"
        )
    if name.startswith("SQLITE_CORRUPT") or name in _CORRUPT:
        return CorruptStoreError("the SQLite store is damaged; an operator must restore it")
    if name.startswith("SQLITE_READONLY"):
        return UnavailableError("the SQLite store cannot be written: it is read-only")
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
