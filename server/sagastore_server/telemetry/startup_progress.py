"""StartupProgress: reports the progress of opening a store."""

from __future__ import annotations

import time

import structlog

from sagastore_server.telemetry.readiness import Readiness

_INTERVAL = 2.0
"""Seconds between two log lines about the same long operation."""

_log = structlog.get_logger(__name__)


class StartupProgress:
    """Reports the progress of long operations to readiness, and logs it every few seconds."""

    def __init__(self, readiness: Readiness) -> None:
        """Report to ``readiness``."""
        self._readiness = readiness
        self._next = time.monotonic() + _INTERVAL

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` rows of an operation are done."""
        self._readiness.progress(what, done, total)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL
            _log.info("opening", work=what, rows=done, of=total)
