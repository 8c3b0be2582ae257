"""Settings on which the server relies, whatever the defaults of database and role are.

They are sent when a connection is established, which costs no round trip. Behind a pooler in
transaction mode a session cannot be relied on, so each transaction sets them, in the message that
begins it. Transactions also name their isolation level and access mode, for the same reason.
"""

from __future__ import annotations

BEGIN_READ = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
"""Without DEFERRABLE or NOT DEFERRABLE, which only concern SERIALIZABLE (PostgreSQL documentation,
SET TRANSACTION), and which PostgreSQL rejects in a transaction that a cancelled statement has left
open."""

BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
"""All statements see the same state."""

_SESSION_ONLY = {
    # Statements outside of a transaction.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
}

_IDLE_SESSION_TIMEOUT_SINCE = 14
_TRANSACTION_TIMEOUT_SINCE = 17
"""Major versions that introduced time limits which would end sessions and transactions."""

FIND_SCHEMA = """
SELECT current_setting('search_path'), (
    SELECT name FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, place)
    WHERE left(name, 3) <> 'pg_' AND name <> 'information_schema' ORDER BY place LIMIT 1
)
"""
"""Returns search_path, and the first schema in it that exists and is not PostgreSQL's own."""


def settings(timeout_ms: int) -> dict[str, str]:
    """Return the settings that every transaction relies on.

    ``timeout_ms`` is the time limit of a statement, in milliseconds.
    """
    return {
        "statement_timeout": str(timeout_ms),
        "idle_in_transaction_session_timeout": str(timeout_ms),
        # The time limit of the statement includes the waiting for a lock.
        "lock_timeout": "0",
        # Compilation takes longer than the statements themselves.
        "jit": "off",
        # Another value returns a random part of the results of a search.
        "gin_fuzzy_search_limit": "0",
        # Generic plans are slow for rare words or for common ones.
        "plan_cache_mode": "auto",
        # A policy that would hide rows raises an error instead.
        "row_security": "off",
        "standard_conforming_strings": "on",
        # A commit that no standby has confirmed is reported as a warning.
        "client_min_messages": "warning",
    }


def session_settings(timeout_ms: int) -> dict[str, str]:
    """Return the settings of a session, for its start."""
    return settings(timeout_ms) | _SESSION_ONLY


def local_settings(timeout_ms: int, version: int, schema: str) -> str:
    """Return the statements that set them for a transaction, to be added to its ``BEGIN``.

    Args:
        timeout_ms: Time limit of a statement, in milliseconds.
        version: Major version of PostgreSQL.
        schema: The schema of the tables, as an identifier; empty: not known yet.

    """
    chosen = settings(timeout_ms)
    if version >= _TRANSACTION_TIMEOUT_SINCE:
        chosen["transaction_timeout"] = "0"
    path = f"; SET LOCAL search_path = {schema}" if schema else ""
    return path + "".join(f"; SET LOCAL {name} = '{value}'" for name, value in chosen.items())


def newer_settings(version: int) -> str:
    """Return the statements that set, for a session, what older versions do not know.

    ``version`` is the major version of PostgreSQL.
    """
    limits = {
        "idle_session_timeout": _IDLE_SESSION_TIMEOUT_SINCE,
        "transaction_timeout": _TRANSACTION_TIMEOUT_SINCE,
    }
    return "".join(f"; SET {name} = 0" for name, since in limits.items() if version >= since)


def quoted(identifier: str) -> str:
    """Return an identifier in double quotes."""
    escaped = identifier.replace('"', '""')
    return f'"{escaped}"'
