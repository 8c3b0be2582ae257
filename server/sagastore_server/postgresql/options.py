"""How PostgreSQL is reached, and how much of it is used."""

from __future__ import annotations

from typing import NamedTuple


class PostgreSQLOptions(NamedTuple):
    """Settings of ``PostgreSQLStorage``."""

    dsn: str
    """Connection string; what it leaves out comes from the PG* variables. A secret."""
    pool_min: int = 5
    """Connections kept open."""
    pool_max: int = 20
    """Connections at most."""
    writers: int = 2
    """Transactions that write at the same time; more of them make smaller groups."""
    acquire_timeout: float = 5.0
    """Seconds to wait for a connection, and for a new one to be made."""
    statement_timeout: float = 15.0
    """Seconds that one statement may take."""
    statement_cache: int = 100
    """Prepared statements that a connection keeps. 0 works behind PgBouncer in transaction
    mode: then each statement runs within a transaction, and no session setting is relied on."""

    def __repr__(self) -> str:
        """Leave out the connection string, which may hold a password."""
        return f"PostgreSQLOptions(pool={self.pool_min}-{self.pool_max})"
