"""Instruments: the events that components report and ``telemetry`` turns into metrics."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from sagastore_server.interfaces.consistency import Level
from sagastore_server.storage.model import Store

PRIMARY = "primary"
"""Name of the primary among the servers of PostgreSQL; a replica has a number."""


class Fallback(enum.Enum):
    """Why the primary of PostgreSQL answers a read that a replica might have answered."""

    NO_REPLICA = "no_replica"
    """No replica is in rotation."""
    BEHIND = "behind"
    """No replica reached the position in time."""
    CONFLICT = "conflict"
    """The replica cancelled the read, usually because it conflicted with a change from the
    primary."""
    FAILED = "failed"
    """The replica could not be reached, or did not answer, or has refused the read."""


class Instruments:
    """Receives events. This class ignores them.

    Its methods are called on the event loop for every call and every commit: they are fast, do
    not block and do not raise.
    """

    def call_started(self, method: str) -> None:
        """Record the start of a call of ``method``: ``sagastore.v1.StorageService/Save``."""

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Record the status code (``OK``, ``NOT_FOUND``, …) and the duration of a call."""

    def call_shed(self, reason: str) -> None:
        """Record a call that admission control refused: ``OVERLOADED`` or ``RATE_LIMITED``."""

    def task_started(self, task: str) -> None:
        """Record that the background task of this name was started, not restarted."""

    def task_failed(self, task: str) -> None:
        """Record a failure of the background task ``task``."""

    def group_committed(self, store: Store, writes: int, rows: int, seconds: float) -> None:
        """Record a group commit: its writes, the messages in them, and its duration."""

    def replicas_used(self, nodes: Sequence[str]) -> None:
        """Record that replicas of PostgreSQL with these names may answer reads from now on."""

    def read_answered(self, node: str, level: Level) -> None:
        """Record which server of PostgreSQL has answered a read: `PRIMARY`, or a replica."""

    def read_fell_back(self, reason: Fallback) -> None:
        """Record that the primary answers a read because no replica can."""

    def replica_awaited(self, seconds: float) -> None:
        """Record how long a read waited for a replica to reach its position."""
