"""Load of a store, and notification of its group commits, for metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sagastore_server.storage.model import Store
from sagastore_server.storage.reanalysis import Reanalysis


class ReplicaLoad(NamedTuple):
    """Current state of a read replica."""

    number: int
    """Its place in the settings, from 1."""
    place: str
    """Its host and database, for display."""
    out: str
    """Why it is out of rotation, in one word; empty: it is in rotation."""
    detail: str
    """The same in one line, with a remedy."""
    lag_seconds: float
    """Age of its state; 0 if it has everything that the primary is known to have."""
    lag_bytes: int
    """Bytes of the write-ahead log that it has not replayed."""
    timeline: int
    """Its timeline; 0: not known."""
    connections: int
    """Open connections to it."""
    connections_busy: int
    """Connections in use."""
    connections_most: int
    """Connections at most."""


class Load(NamedTuple):
    """Current load of a store. A value that does not apply is 0."""

    store: Store
    writes_waiting: int
    """Queued writes, not in a transaction yet."""
    connections: int
    """Open connections: for reads (SQLite), or for all work (PostgreSQL)."""
    connections_busy: int
    """Connections in use."""
    connections_most: int
    """Connections at most."""
    connections_wanted: int
    """Callers that wait for a connection."""
    commit_seconds: float = 0.0
    """Duration of the oldest commit in progress (PostgreSQL)."""
    commits_unconfirmed: int = 0
    """Commits that no standby has confirmed, since the start (PostgreSQL)."""
    is_unreplicated: bool = False
    """Whether the latest write was refused because no synchronous standby receives changes
    (PostgreSQL)."""
    is_outdated: bool = False
    """Whether this server must not write, because a newer one has upgraded the schema
    (PostgreSQL)."""
    log_bytes: int = 0
    """Bytes of the write-ahead log (SQLite)."""
    file_bytes: int = 0
    """Bytes of the database file (SQLite)."""
    disk_free_bytes: int = 0
    """Free bytes on the disk of that file (SQLite)."""

    replicas: tuple[ReplicaLoad, ...] = ()
    """Read replicas (PostgreSQL)."""
    reanalysis: Reanalysis | None = None
    """Progress of the analysis of stored messages by a newer version; None: not in progress."""


OnGroup = Callable[[Store, int, int, float], None]
"""Called after each group commit with the store, the numbers of writes and messages, and the
duration in seconds. Runs on the event loop; must be fast, and must not raise."""


def unheard(store: Store, writes: int, rows: int, seconds: float) -> None:
    """Do nothing."""
