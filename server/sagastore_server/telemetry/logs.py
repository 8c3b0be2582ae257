"""Logs: JSON lines on standard error, or a readable form where that is a terminal.

One event a line, named by ``event``. Never the content of a message, nor a secret:
tracebacks come without local variables for that reason.
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
                *_rendering(stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # It tells of every attempt to reach a database that is away, with a traceback each time,
    # and of connections that we give up. That a database is away, we tell ourselves, once.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    # It tells of every statement, with what goes into it: what users say and search for.
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    grpc_core = logging.getLogger("grpc._cython.cygrpc")
    if _told_without_traceback not in grpc_core.filters:
        grpc_core.addFilter(_told_without_traceback)
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
    """Add the id of the call in which the line is logged; the call's error bears it as well.

    Not once the call has ended: what it has set going, such as a backfill, may go on for days.
    """
    call = current()
    if call is not None and not call.code:
        event.setdefault("call", call.id)
    return event


def _told_without_traceback(record: logging.LogRecord) -> bool:
    """Tell in a line for debugging that a client had gone; gRPC makes it an error with a traceback.

    Its ``ExecuteBatchError`` says that an answer could not be handed to a connection, which
    is what becomes of a connection that breaks in that instant.
    """
    kind = record.exc_info[0] if record.exc_info else None
    if kind is None or kind.__name__ != "ExecuteBatchError":
        return True
    record.msg, record.args = "the client had gone before its answer could be sent", ()
    record.exc_info = record.exc_text = None
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def _rendering(stream: TextIO) -> list[Processor]:
    if stream.isatty():
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
