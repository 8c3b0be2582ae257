"""Options of the PostgreSQL backend, and the form of its address that may be displayed."""

from __future__ import annotations

import os
from typing import NamedTuple

from sagastore_server.config.connection import resolve
from sagastore_server.config.connection_string import ConnectionStringError


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
    replicas: tuple[str, ...] = ()
    """Connection strings of the read replicas. Secrets."""
    replica_wait: float = 0.05
    """Seconds that a read waits for a replica to reach its position."""
    replica_max_lag: float = 10.0
    """Age in seconds of the state of a replica above which it answers no reads."""

    def __repr__(self) -> str:
        """Omit the connection strings, which may contain a password."""
        return f"PostgreSQLOptions(pool={self.pool_min}-{self.pool_max})"


def display_address(dsn: str) -> str:
    """Return hosts, ports and database of a connection string, without user and password."""
    try:
        return resolve(dsn, os.environ).address
    except ConnectionStringError:
        return "the configured address"
