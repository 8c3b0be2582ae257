"""How busy a store is, and word of what it commits: for those who watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sagastore_server.storage.model import Store


class Load(NamedTuple):
    """How busy a store is at the moment. What does not apply is 0."""

    store: Store
    writes_waiting: int
    """Writes that are in no transaction yet."""
    connections: int
    """Connections open: for reading (SQLite), or for everything (PostgreSQL)."""
    connections_busy: int
    """Those lent out."""
    connections_most: int
    """How many there may be."""
    connections_wanted: int
    """Those who wait for one."""
    log_bytes: int = 0
    """Size of the write-ahead log that is ours to empty (SQLite)."""
    file_bytes: int = 0
    """Size of the database file (SQLite)."""
    disk_free_bytes: int = 0
    """Room left on the disk of that file (SQLite)."""


OnGroup = Callable[[Store, int, int, float], None]
"""Hears of a transaction that was committed: the store, the writes and the messages in it,
and the seconds that it took. On the event loop; must be quick, and must not raise."""


def unheard(store: Store, writes: int, rows: int, seconds: float) -> None:
    """Stand in for a listener."""
