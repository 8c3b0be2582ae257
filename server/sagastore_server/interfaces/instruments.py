"""Instruments: the events that components report and ``telemetry`` turns into metrics."""

from __future__ import annotations

from sagastore_server.storage.model import Store


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
