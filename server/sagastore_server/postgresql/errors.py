"""Translates the errors of asyncpg and the network into the contract's.

No driver error leaves this room, and no line made here names a host, a user, a
statement or a secret: what PostgreSQL itself said stays in ``__cause__``, for the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import asyncpg

from sagastore_server.storage.errors import (
    CorruptStoreError,
    FencedError,
    StorageError,
    StorageFullError,
    UnavailableError,
)

RETRY_AFTER = 1.0

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError and ConnectionError are OSErrors, too
    EOFError,
)
"""What can come out of asyncpg, programming errors aside."""

AGAIN = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""A transaction that lost against another one and may simply be run again."""

# By SQLSTATE, the longest beginning first (documentation, appendix A).
_FULL = ("53100",)
_CORRUPT = ("XX001", "XX002")
_READ_ONLY = ("25006",)
_TIMEOUT = ("57014",)
_AWAY = ("08", "57P", "53", "58", "55P03", "28", "3D000")
_DATA = ("22", "23", "54")
_GUARDED = ("SG001",)  # Ours: see make_guard in migration.sql.


def sqlstate(error: BaseException) -> str:
    """Return the five characters by which PostgreSQL names an error, or nothing."""
    return str(getattr(error, "sqlstate", None) or "")


def is_connection_loss(error: BaseException) -> bool:
    """Tell whether the connection is gone, so that another one may do better."""
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate(error).startswith(("08", "57P"))
    if isinstance(error, TimeoutError):
        return False
    if isinstance(error, asyncpg.InterfaceError):
        return "closed" in str(error)
    return isinstance(error, OSError | EOFError)


def is_data_error(error: BaseException) -> bool:
    """Tell whether a single bad value causes it, as opposed to the state of the store."""
    if isinstance(error, asyncpg.DataError | asyncpg.exceptions.UnsupportedClientFeatureError):
        return True
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate(error).startswith(_DATA)
    return isinstance(error, ValueError | OverflowError)


def translated(error: BaseException) -> StorageError:
    """Return the contract's error for one of the driver's."""
    state = sqlstate(error)
    if hasattr(error, "detail"):
        # Quotes the row at fault, and with it a message: not for the log.
        error.detail = None
    if state.startswith(_FULL):
        return StorageFullError(
            "the disk of the PostgreSQL store is full; nothing was stored, "
            "try again when there is room"
        )
    if state.startswith(_CORRUPT):
        return CorruptStoreError("the PostgreSQL store is damaged; an operator must look at it")
    if state.startswith(_GUARDED):
        return FencedError(
            "the PostgreSQL store belongs to a migration from SQLite that another server holds, "
            "so this one must not write to it; write through that server until it is finished"
        )
    return _unavailable(error, state) or StorageError(
        "the PostgreSQL store could not carry out the request"
    )


def _unavailable(error: BaseException, state: str) -> UnavailableError | None:
    line = None
    if isinstance(error, TimeoutError) or state.startswith(_TIMEOUT):
        line = "the PostgreSQL store did not answer in time; try again"
    elif isinstance(error, AGAIN):
        line = "other writes were in the way again and again; try again"
    elif state.startswith(_READ_ONLY):
        line = "the PostgreSQL store cannot be written: it is read-only"
    elif state.startswith(_AWAY) or isinstance(error, OSError | EOFError):
        line = "the PostgreSQL store cannot be reached; try again"
    elif isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        # A connection that was lost, or closed, under the hands of a call.
        line = "the connection to the PostgreSQL store was lost; try again"
    return UnavailableError(line, retry_after=RETRY_AFTER) if line else None


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Turn the driver's errors into the contract's."""
    try:
        yield
    except StorageError:
        raise
    except DRIVER_ERRORS as exc:
        raise translated(exc) from exc
