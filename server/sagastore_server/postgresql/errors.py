"""Translation of the errors of asyncpg and the network into those of the contract.

* No driver error leaves the package.
* No message names a host, a user, a statement or a secret. The driver's error stays in
  ``__cause__``, for the log, without the text that may quote values of messages.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import asyncpg

from sagastore_server.postgresql.primary import NotThePrimaryError
from sagastore_server.storage.errors import (
    CorruptStoreError,
    FencedError,
    StorageError,
    StorageFullError,
    UnavailableError,
)

RETRY_AFTER = 1.0

NO_TLS = "rejected SSL upgrade"
"""End of the driver's message if the peer offers no TLS; the error has no other mark."""

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError and ConnectionError are OSErrors, too
    EOFError,
)
"""Errors that asyncpg raises, apart from programming errors."""

AGAIN = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    # An upgrade has changed the type of a column. The driver prepares its statements again.
    asyncpg.InvalidCachedStatementError,
)
"""Errors of a transaction that conflicted with another one and can be retried."""

# SQLSTATE prefixes (PostgreSQL documentation, appendix A).
_FULL = ("53100",)
_CORRUPT = ("XX001", "XX002")
_READ_ONLY = ("25006",)
_NOT_IN_RECOVERY = "0A000"
_CHECK_OF_SETTING = "call_bool_check_hook"
"""Function of PostgreSQL (utils/misc/guc.c) that refuses to set ``transaction_read_only``."""
_IN_RECOVERY = "55000"
_WAL_FUNCTIONS = {"pg_current_wal_flush_lsn", "pg_walfile_name"}
"""Functions of PostgreSQL (access/transam/xlogfuncs.c) that a standby refuses. ``positions`` calls
them with each read, so a pooler that has changed to a standby is noticed."""
_TIMEOUT = ("57014",)
_CREDENTIALS = ("28",)
_NO_DATABASE = ("3D000",)
_TOO_MANY = ("53300",)
_AWAY = ("08", "57P", "53", "58", "55P03")
_DATA = ("22", "23", "54")
_CHANGED_SCHEMA = ("42P01", "42703")
"""A table or a column does not exist. Only an upgrade by a newer server removes one."""
_GUARDED = ("SG001",)  # Raised by make_guard in migration.sql.
_QUOTING = ("22", "23", "54", "P0", "XX", "38", "39")
"""Errors whose messages may quote values: data, constraints, limits, functions, defects."""


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of an error, or an empty string."""
    return str(getattr(error, "sqlstate", None) or "")


def is_demotion(error: BaseException) -> bool:
    """Return whether a standby has refused a statement: its server is no longer the primary."""
    state = sqlstate(error)
    if state == _IN_RECOVERY:
        return getattr(error, "server_source_function", None) in _WAL_FUNCTIONS
    if state == _NOT_IN_RECOVERY:
        # "cannot set transaction read-write mode during recovery", in the language of the server.
        return getattr(error, "server_source_function", None) == _CHECK_OF_SETTING
    return state.startswith(_READ_ONLY)


def is_connection_loss(error: BaseException) -> bool:
    """Return whether the connection is lost, so that a retry on another one may succeed."""
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate(error).startswith(("08", "57P")) or is_demotion(error)
    if isinstance(error, TimeoutError):
        return False
    if isinstance(error, asyncpg.InterfaceError):
        return "closed" in str(error)
    if isinstance(error, asyncpg.InternalClientError):
        # Raised before the statement is sent, if PostgreSQL ends the connection at that instant.
        return "cannot switch to state" in str(error)
    return isinstance(error, OSError | EOFError)


def is_data_error(error: BaseException) -> bool:
    """Return whether one bad value is the cause, in contrast to the state of the store."""
    if isinstance(error, asyncpg.DataError | asyncpg.exceptions.UnsupportedClientFeatureError):
        return True
    if isinstance(error, asyncpg.PostgresError):
        return sqlstate(error).startswith(_DATA)
    return isinstance(error, ValueError | OverflowError)


def translated(error: BaseException) -> StorageError:
    """Return the contract's error for an error of the driver."""
    state = sqlstate(error)
    _remove_values(error)
    if state.startswith(_FULL):
        return StorageFullError(
            "the disk of the PostgreSQL store is full; nothing was stored; free disk space and try "
            "again"
        )
    if state.startswith(_CORRUPT):
        return CorruptStoreError("the PostgreSQL store is damaged; restore it from a backup")
    if state.startswith(_GUARDED):
        return FencedError(
            "the PostgreSQL store is the target of a migration that another server holds; write "
            "through that server until the migration is finished"
        )
    return _unavailable(error, state) or StorageError(
        "the PostgreSQL store failed to run the request; see the server's log"
    )


def _remove_values(error: BaseException) -> None:
    """Remove from a driver's error, for the log, what may quote values of messages."""
    if isinstance(error, asyncpg.PostgresError):
        # The detail quotes the row.
        error.detail = None
        if sqlstate(error).startswith(_QUOTING):
            error.args = (f"SQLSTATE {sqlstate(error)}; its message may quote stored values",)
            error.hint = None
    elif isinstance(error, asyncpg.DataError):
        error.args = ("a parameter has an invalid value; its message quotes the value",)
        error.__cause__ = error.__context__ = None


def _unavailable(error: BaseException, state: str) -> UnavailableError | None:
    line = _unconnected(error, state)
    if line is not None:
        return UnavailableError(line, retry_after=RETRY_AFTER)
    if isinstance(error, TimeoutError) or state.startswith(_TIMEOUT):
        line = "the PostgreSQL store did not answer in time; try again"
    elif isinstance(error, AGAIN):
        line = "the write repeatedly conflicted with other writes; try again"
    elif isinstance(error, NotThePrimaryError) or is_demotion(error):
        line = "PostgreSQL has no primary at its address at present; try again"
    elif state.startswith(_AWAY) or isinstance(error, OSError | EOFError):
        line = "the PostgreSQL store cannot be reached; try again"
    elif state in _CHANGED_SCHEMA:
        line = (
            "the PostgreSQL store lacks a table or a column that this server needs, probably since "
            "an upgrade by a newer server; replace this server by the newer version"
        )
    elif isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        # The connection was lost or closed during the call.
        line = "the connection to the PostgreSQL store was lost; try again"
    return UnavailableError(line, retry_after=RETRY_AFTER) if line else None


def _unconnected(error: BaseException, state: str) -> str | None:
    """Return the line for a connection that cannot be opened, if its cause concerns no outage."""
    if state.startswith(_CREDENTIALS):
        return "the PostgreSQL store rejects the credentials of this server; see the server's log"
    if state.startswith(_NO_DATABASE):
        return "the database of the PostgreSQL store does not exist; see the server's log"
    if state.startswith(_TOO_MANY):
        return "the PostgreSQL store has too many connections; try again"
    if isinstance(error, ssl.SSLError) or str(error).endswith(NO_TLS):
        return "there is no TLS connection to the PostgreSQL store; see the server's log"
    if isinstance(error, socket.gaierror):
        return "the host name of the PostgreSQL store cannot be resolved; try again"
    return None


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """Turn the driver's errors into the contract's."""
    try:
        yield
    except StorageError:
        raise
    except DRIVER_ERRORS as exc:
        raise translated(exc) from exc
