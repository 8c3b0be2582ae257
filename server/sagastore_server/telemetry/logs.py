"""Logging setup: JSON lines on standard error, or a readable form on a terminal.

Each line is one event, named by ``event``. Logs contain no message content and no secrets; for
that reason tracebacks come without local variables, and `log_text` masks and bounds every value.
`log_handler` bounds the bytes per second that a caller can add.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

import structlog

from sagastore_server.interfaces.call_context import current
from sagastore_server.telemetry import log_text
from sagastore_server.telemetry.line_limiter import shown_peer
from sagastore_server.telemetry.log_handler import LimitedHandler

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


def configure(
    level: str,
    stream: TextIO = sys.stderr,
    secrets: Iterable[str | None] = (),
    *,
    worker: int | None = None,
) -> None:
    """Send the logs of this process, its libraries included, to ``stream``.

    Args:
        level: One of debug, info, warning, error.
        stream: Receives the lines.
        secrets: Passwords that are masked wherever they occur; shorter ones than 8 characters
            are masked only where they look like a password.
        worker: Number of this worker process, which each line then has; None: not a worker.

    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        *([] if worker is None else [_Worker(worker)]),
        _with_call,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = LimitedHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _Cleaning(log_text.literals(secrets)),
                _renderer(stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncpg logs every failed connection attempt with a traceback, and every connection that is
    # abandoned. The server logs an unavailable database itself, once.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    # aiosqlite logs every statement with its parameters, which are user data.
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    grpc_core = logging.getLogger("grpc._cython.cygrpc")
    if _without_caller_text not in grpc_core.filters:
        grpc_core.addFilter(_without_caller_text)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def capture_unhandled() -> None:
    """Log what Python would write to standard error itself, for the life of the process.

    That is errors in threads and in destructors, and warnings. They may quote values as well.
    """
    logging.captureWarnings(True)
    log = structlog.get_logger(__name__)

    def in_thread(failure: threading.ExceptHookArgs) -> None:
        log.error("unhandled error in a thread", exc_info=failure.exc_value or failure.exc_type)

    def unraisable(failure: sys.UnraisableHookArgs) -> None:
        log.error("unhandled error", exc_info=failure.exc_value or failure.exc_type)

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def _with_call(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Add the id of the current call, which the error of the call has as well, and its peer.

    Not after the call has ended: a task that it started, such as a backfill, may run for days.
    """
    call = current()
    if call is not None and not call.code:
        event.setdefault("call", call.id)
        if call.peer:
            event.setdefault("peer", shown_peer(call.peer))
    return event


class _Worker:
    """Adds the number of the worker process to each line."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        event["worker"] = self._number
        return event


class _Cleaning:
    """Masks secrets in the fields of a line, and bounds their length."""

    def __init__(self, secrets: log_text.Secrets) -> None:
        self._secrets = secrets

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        return log_text.clean_event(event, self._secrets)


def _without_caller_text(record: logging.LogRecord) -> bool:
    """Remove from the lines of gRPC what the caller has sent, and the traceback of disconnects.

    gRPC logs each header that is not UTF-8 with its whole value, which may be a token, and a
    traceback. It raises ``ExecuteBatchError`` when it cannot send a response, which happens
    whenever a connection breaks at that moment: one debug line instead of an error.
    """
    kind = record.exc_info[0] if record.exc_info else None
    if kind is None:
        return True
    if issubclass(kind, UnicodeError):
        return _replaced(record, logging.DEBUG, "a header of a call is not text in UTF-8")
    if kind.__name__ == "ExecuteBatchError":
        text = "the client disconnected before its response was sent"
        return _replaced(record, logging.DEBUG, text)
    return True


def _replaced(record: logging.LogRecord, level: int, text: str) -> bool:
    record.msg, record.args = text, ()
    record.exc_info = record.exc_text = None
    record.levelno, record.levelname = level, logging.getLevelName(level)
    return logging.getLogger().isEnabledFor(level)


def _renderer(stream: TextIO) -> Processor:
    if stream.isatty():
        return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    return structlog.processors.JSONRenderer(ensure_ascii=False)
