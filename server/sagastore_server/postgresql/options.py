"""Options of the PostgreSQL backend, and the form of its address that may be displayed."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit


class PostgreSQLOptions(NamedTuple):
    """Options of ``PostgreSQLStorage``."""

    dsn: str
    """Connection string, completed from the PG* variables. A secret."""
    pool_min: int = 5
    """Minimum number of open connections."""
    pool_max: int = 20
    """Maximum number of open connections."""
    writers: int = 2
    """Concurrent writing transactions. More of them make smaller groups."""
    acquire_timeout: float = 5.0
    """Seconds to wait for a free connection, and for a new one to be established."""
    statement_timeout: float = 15.0
    """Maximum seconds of one statement."""
    statement_cache: int = 100
    """Prepared statements cached per connection. 0 works with PgBouncer in transaction mode: each
    statement then runs in a transaction, and the server relies on no session settings."""

    require_sync: bool = False
    """Whether a write is refused unless a synchronous standby streams."""

    def __repr__(self) -> str:
        """Omit the connection string, which may contain a password."""
        return f"PostgreSQLOptions(pool={self.pool_min}-{self.pool_max})"


def display_address(dsn: str) -> str:
    """Return host, port and database of a connection string, without user and password."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        host = _first(query, "host") or parts.netloc.rpartition("@")[2]
        host = host or os.environ.get("PGHOST", "localhost")
        port = _first(query, "port") or ""
        database = _first(query, "dbname", "database") or parts.path.lstrip("/")
        database = database or os.environ.get("PGDATABASE", "")
        return f"{host}{':' + port if port else ''}{'/' + database if database else ''}"
    return "the configured address"


def _first(query: dict[str, list[str]], *names: str) -> str:
    return next((query[name][0] for name in names if name in query), "")
