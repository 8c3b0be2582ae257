"""What the rooms report as it happens; ``ops`` turns it into metrics."""

from __future__ import annotations

from sagastore_server.storage.model import Store


class Instruments:
    """Hears what happens. This one does not listen.

    Its methods are called on the event loop, for every call and every commit: they
    must be quick, must not block, and must not raise.
    """

    def call_started(self, method: str) -> None:
        """Hear that a call came in: ``sagastore.v1.StorageService/Save``."""

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Hear with which status (``OK``, ``NOT_FOUND``, …) it ended, and after how long."""

    def call_shed(self, reason: str) -> None:
        """Hear that a call was refused at the door, and why: ``OVERLOADED``, ``RATE_LIMITED``."""

    def task_failed(self, task: str) -> None:
        """Record that the background task of this name failed."""

    def group_committed(self, store: Store, writes: int, rows: int, seconds: float) -> None:
        """Hear of a transaction: the writes and messages in it, and how long it took."""
