"""Logging setup: JSON lines on standard error, or a readable form on a terminal.

Each line is one event, named by ``event``. Logs contain no message content and no secrets; for
that reason tracebacks come without local variables.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

import structlog

from sagastore_server.interfaces.call_context import current

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Send the logs of this process, its libraries included, to ``stream``.

    ``level`` is one of debug, info, warning, error.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _with_call,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(stream),
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
    if _without_disconnect_traceback not in grpc_core.filters:
        grpc_core.addFilter(_without_disconnect_traceback)
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


def _with_call(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Add the id of the current call, which the error of the call has as well.

    Not after the call has ended: a task that it started, such as a backfill, may run for days.
    """
    call = current()
    if call is not None and not call.code:
        event.setdefault("call", call.id)
    return event


def _without_disconnect_traceback(record: logging.LogRecord) -> bool:
    """Log a client that disconnected as one debug line instead of an error with a traceback.

    gRPC raises ``ExecuteBatchError`` when it cannot send a response, which happens whenever a
    connection breaks at that moment.
    """
    kind = record.exc_info[0] if record.exc_info else None
    if kind is None or kind.__name__ != "ExecuteBatchError":
        return True
    record.msg, record.args = "the client disconnected before its response was sent", ()
    record.exc_info = record.exc_text = None
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def _renderers(stream: TextIO) -> list[Processor]:
    if stream.isatty():
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
