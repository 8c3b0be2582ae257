"""Log handler: bounds the bytes per second that a caller, or a library, can add to the log.

Lines of a call in progress count for the address of its client, lines of libraries outside of
calls for the name of their logger. Other lines, such as those of background tasks, are always
written. Suppressed lines are counted; a line with their number follows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from typing import TextIO

from sagastore_server.interfaces.access import ANYONE
from sagastore_server.interfaces.call_context import CallContext, current
from sagastore_server.telemetry.line_limiter import LineLimiter, Rate, source_of

STRANGER_RATE = Rate(240, 4096)
"""Rate of a source without authentication, and of a library. A caller may cause lines of both, and
lines of `audit` about refused calls: with the summaries, less than 60 kB in a minute."""
KNOWN_RATE = Rate(8192, 65_536)
"""Rate of a source whose caller is authenticated: two tracebacks a second."""
TOTAL_RATE = Rate(32_768, 131_072)
"""Rate of all sources together."""

SUMMARY_SECONDS = 10.0
"""Seconds from the first suppressed line to the line with the number."""

_OWN = "sagastore"
_log = logging.getLogger(__name__)


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, within the limits of each source."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        super().__init__(stream)
        self._strangers = LineLimiter(STRANGER_RATE, TOTAL_RATE)
        self._known = LineLimiter(KNOWN_RATE, TOTAL_RATE)
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it as suppressed. Formats only what is written."""
        limiter, source = self._limit(record)
        if limiter is None:
            super().emit(record)
            return
        if not limiter.accept(source):
            self._summarize_later()
            return
        try:
            line = self.format(record) + self.terminator
            limiter.charge(source, len(line.encode("utf-8", "replace")))
            self.stream.write(line)
            self.flush()
        except Exception:  # noqa: BLE001 - as in the base class
            self.handleError(record)

    def write_lines(self, lines: bytes) -> None:
        """Write complete lines of another process, which has formatted and limited them."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            self.stream.flush()
            self.stream.buffer.write(lines)
            self.stream.buffer.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name of the base class
        """Report that a line could not be written, without the arguments that the base prints."""
        line = {"event": "a log line could not be written", "level": "error", "logger": record.name}
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(json.dumps(line) + self.terminator)

    def close(self) -> None:
        """Write the numbers of suppressed lines. Called at the end of the process."""
        timer = self._timer
        if timer is not None:
            timer.cancel()
            with contextlib.suppress(OSError, ValueError):
                self._summarize()
        super().close()

    def _limit(self, record: logging.LogRecord) -> tuple[LineLimiter | None, str]:
        """Return the limiter and the source of a line; None: it is not limited."""
        call = current()
        if call is not None and not (call.code and call.identity):
            limiter = self._known if _is_known(call) else self._strangers
            return limiter, source_of(call.peer)
        if not record.name.startswith(_OWN):
            return self._strangers, f"library {record.name}"
        return None, ""

    def _summarize_later(self) -> None:
        # Under the lock of the handler, like every `emit`.
        if self._timer is None:
            self._timer = threading.Timer(SUMMARY_SECONDS, self._summarize)
            self._timer.daemon = True
            self._timer.start()

    def _summarize(self) -> None:
        self._timer = None
        for limiter in (self._strangers, self._known):
            for source, lines in limiter.take_suppressed():
                _log.warning("log lines suppressed: %d, from %s", lines, source)


def _is_known(call: CallContext) -> bool:
    return call.identity is not None and call.identity is not ANYONE
