"""Diagnosis of the driver's errors: what operators read about them, at a start and in the log.

* SQLSTATE, and the names of parameters and objects, are kept.
* Messages of PostgreSQL are not repeated, because they may quote values of messages, and are in the
  language of its ``lc_messages``. Everything that a line names comes from the connection parameters
  or from the fields of the error.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import asyncpg
import structlog

from sagastore_server.config.connection_string import ConnectionStringError
from sagastore_server.postgresql.connecting import Connector, ConnectTimeoutError
from sagastore_server.postgresql.errors import AGAIN, NO_TLS, sqlstate, translated
from sagastore_server.postgresql.primary import NotThePrimaryError
from sagastore_server.storage.errors import CannotOpenError, StorageError

_INTERVAL = 10.0
"""Seconds between two log lines about the same problem: during an outage every call has it."""

_MAX_PROBLEMS = 100
"""Number of problems whose time is remembered."""

_log = structlog.get_logger(__name__)


class Diagnosis(NamedTuple):
    """Cause of an error."""

    reason: str
    """What is wrong."""
    advice: str
    """What to do."""


def cannot_open(place: str, error: BaseException, connector: Connector | None) -> CannotOpenError:
    """Return why a database cannot be used.

    Args:
        place: The database, for display.
        error: The error of the driver or of a check.
        connector: Opened the connections; None if there were none.

    """
    if isinstance(error, ConnectionStringError):
        return CannotOpenError(str(error))
    if isinstance(error, CannotOpenError):
        return error
    found = diagnosed(error, connector)
    if found is not None:
        state = f" (SQLSTATE {sqlstate(error)})" if sqlstate(error) else ""
        return CannotOpenError(f"cannot connect to {place}: {found.reason}; {found.advice}{state}")
    public = error if isinstance(error, StorageError) else translated(error)
    return CannotOpenError(f"cannot use {place}: {public}")


def diagnosed(error: BaseException, connector: Connector | None) -> Diagnosis | None:
    """Return the cause of an error, or None if there is no line for it."""
    if isinstance(error, asyncpg.PostgresError):
        return _of_server(error, connector)
    if connector is not None and isinstance(error, OSError | ValueError):
        problem = connector.unusable_file()
        if problem is not None:
            return Diagnosis(problem, "correct it in the connection string, or the file")
    return _of_network(error, connector)


# -------------------------------------------------------------------- errors of PostgreSQL

_BY_STATE = {
    "08P01": Diagnosis(
        "it rejects connection settings, as PgBouncer does",
        "set postgres_statement_cache to 0 and remove search_path from the connection string",
    ),
    "28P01": Diagnosis(
        "password authentication failed for user {user}",
        "check user and password in the connection string, PGPASSWORD or the password file",
    ),
    "28000": Diagnosis(
        "it refuses user {user}",
        "check that the role exists and may log in, and that pg_hba.conf permits this user, "
        "database, address and encryption (sslmode)",
    ),
    "3D000": Diagnosis("the database does not exist", "create it first"),
    "3F000": Diagnosis("the schema does not exist", "create it, or correct search_path"),
    "42501": Diagnosis(
        "the role {user} lacks a privilege", "grant those in docs/how-to/postgresql.md"
    ),
    "53300": Diagnosis(
        "it has too many connections", "raise max_connections or lower postgres_pool_max"
    ),
    "55000": Diagnosis("the database accepts no connections", "use another database"),
    "57P03": Diagnosis("it is starting up, shutting down or recovering", "try again"),
    "25006": Diagnosis(
        "it is read-only",
        "connect to the primary (target_session_attrs=primary); behind a pooler, the role must not "
        "have default_transaction_read_only",
    ),
}

_BROKEN = Diagnosis(
    "the connection broke", "check that host and port are those of PostgreSQL, and its log"
)

_SETTING_STATES = {"42704", "22023", "55P02", "42501", "42601"}
"""Unknown name, invalid value, cannot be set at a start, lack of privilege."""


def _of_server(error: asyncpg.PostgresError, connector: Connector | None) -> Diagnosis | None:
    state = sqlstate(error)
    user = "" if connector is None else f'"{connector.parameters.user}"'
    if state in _SETTING_STATES and connector is not None and error.severity_en == "FATAL":
        # Unlike the text, the names in it are not translated.
        names = [name for name in connector.parameters.settings if f'"{name}"' in error.args[0]]
        if names:
            return Diagnosis(
                f"it rejects the setting {names[0]}",
                "correct its name or its value in the connection string",
            )
    found = _BY_STATE.get(state)
    if found is None and state.startswith("28"):
        found = _BY_STATE["28000"]
    if found is None and state.startswith("08"):
        found = _BROKEN
    return found and found._replace(reason=found.reason.format(user=user))


# -------------------------------------------------------------------- errors of network and driver


def _of_network(error: BaseException, connector: Connector | None) -> Diagnosis | None:
    for kind, explain in _BY_KIND:
        if isinstance(error, kind):
            return explain(error, connector)
    return None


def _certificate(error: BaseException, _: Connector | None) -> Diagnosis:
    why = getattr(error, "verify_message", "").rstrip(".")
    return Diagnosis(
        f"its certificate is not trusted ({why})",
        "check sslrootcert and the host in the connection string",
    )


def _tls(error: BaseException, _: Connector | None) -> Diagnosis:
    reason = str(getattr(error, "reason", None) or "unknown error").lower().replace("_", " ")
    return Diagnosis(
        f"the TLS handshake failed ({reason})",
        "check the certificates, and the TLS versions of both sides",
    )


def _unresolved(_: BaseException, __: Connector | None) -> Diagnosis:
    return Diagnosis("the host name cannot be resolved", "check the host and the DNS")


def _no_primary(error: BaseException, _: Connector | None) -> Diagnosis:
    return Diagnosis(str(error), "connect to the primary, or add its host to the connection string")


def _unanswered(_: BaseException, connector: Connector | None) -> Diagnosis:
    within = "in time" if connector is None else f"within {connector.timeout:g} s"
    return Diagnosis(f"no answer {within}", "check host, port and firewall")


def _timeout(_: BaseException, __: Connector | None) -> Diagnosis:
    return Diagnosis(
        "no answer, or no free connection, in time",
        "check that it is not overloaded, and postgres_pool_max",
    )


def _refused(_: BaseException, __: Connector | None) -> Diagnosis:
    return Diagnosis("connection refused", "check that it is running, and host and port")


def _no_socket(_: BaseException, __: Connector | None) -> Diagnosis:
    return Diagnosis(
        "there is no socket in that folder",
        "check that it is running, and that host and port are those of its socket",
    )


def _forbidden(_: BaseException, __: Connector | None) -> Diagnosis:
    return Diagnosis("permission to use the socket is denied", "grant access to its folder")


def _connection(error: BaseException, connector: Connector | None) -> Diagnosis:
    if str(error).endswith(NO_TLS):
        mode = "prefer" if connector is None else connector.parameters.tls.get("sslmode", "prefer")
        if mode in {"allow", "prefer"}:
            return Diagnosis("the answer is not that of PostgreSQL", "check host and port")
        return Diagnosis(
            f"TLS is not offered by the server, but sslmode is {mode}",
            "enable ssl in postgresql.conf, or set sslmode to prefer",
        )
    return _BROKEN


def _other(error: BaseException, _: Connector | None) -> Diagnosis:
    why = getattr(error, "strerror", None)
    return Diagnosis(
        f"connection failed{f' ({why.lower()})' if why else ''}",
        "check that it is running and reachable",
    )


def _mismatched(_: BaseException, connector: Connector | None) -> Diagnosis:
    target = "" if connector is None else f" ({connector.parameters.target})"
    return Diagnosis(
        f"no host is as target_session_attrs requires{target}",
        "check that the primary is one of the hosts",
    )


def _invalid(_: BaseException, __: Connector | None) -> Diagnosis:
    return Diagnosis(
        "the driver rejects the connection parameters", "check the parameters of TLS and hosts"
    )


def _method(error: BaseException, _: Connector | None) -> Diagnosis | None:
    if "uthentication" not in str(error):
        return None
    return Diagnosis(
        "it requires an authentication method that is not supported",
        "use scram-sha-256, a client certificate or trust in pg_hba.conf",
    )


_BY_KIND: tuple[
    tuple[type[BaseException], Callable[[BaseException, Connector | None], Diagnosis | None]], ...
] = (
    (ssl.SSLCertVerificationError, _certificate),
    (ssl.SSLError, _tls),
    (socket.gaierror, _unresolved),
    (NotThePrimaryError, _no_primary),
    (ConnectTimeoutError, _unanswered),
    (TimeoutError, _timeout),
    (ConnectionRefusedError, _refused),
    (FileNotFoundError, _no_socket),
    (PermissionError, _forbidden),
    (ConnectionError, _connection),
    (OSError, _other),
    (asyncpg.exceptions.TargetServerAttributeNotMatched, _mismatched),
    (asyncpg.exceptions.ClientConfigurationError, _invalid),
    (asyncpg.InterfaceError, _method),
    (asyncpg.InternalClientError, _method),
)


# -------------------------------------------------------------------- the log


class ProblemLog:
    """Logs errors of the driver, the same problem at intervals only. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a log that measures intervals by ``clock``, in seconds."""
        self._clock = clock
        self._next: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def report(self, error: BaseException, connector: Connector | None) -> None:
        """Log an error, with its cause and without its message."""
        fields = dict(_fields(error, connector))
        if isinstance(error, (*AGAIN, asyncpg.UniqueViolationError)):
            # Usual between servers that write at the same time.
            logging.getLogger(__name__).debug("conflict: SQLSTATE %s", sqlstate(error))
            return
        key = "/".join(fields.values())
        now = self._clock()
        if now < self._next.get(key, 0.0):
            self._unlogged[key] = self._unlogged.get(key, 0) + 1
            return
        if len(self._next) >= _MAX_PROBLEMS:
            self._next.clear()
            self._unlogged.clear()
        _log.warning("PostgreSQL error", **fields, more=self._unlogged.pop(key, 0))
        self._next[key] = now + _INTERVAL


_OBJECTS = {
    "schema_name": "schema",
    "table_name": "table",
    "column_name": "column",
    "data_type_name": "data_type",
    "constraint_name": "constraint",
}
"""Fields of an error that name an object, and their names in the log."""


def _fields(error: BaseException, connector: Connector | None) -> Iterator[tuple[str, str]]:
    """Yield the fields of a log line."""
    yield "error", type(error).__name__
    state = sqlstate(error)
    if state:
        yield "sqlstate", state
    found = diagnosed(error, connector)
    if found is not None:
        yield "cause", found.reason
    for field, name in _OBJECTS.items():
        value = getattr(error, field, None)
        if value:
            yield name, str(value)
