"""Error responder: ends a call with the status of an error, and logs defects and outages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NoReturn

import grpc
import structlog
from grpc import aio

from sagastore_server.interfaces.call_context import CallContext
from sagastore_server.interfaces.errors import SilentError, StalledError
from sagastore_server.rpc.admission import adopt_call_id
from sagastore_server.rpc.holder_connection import ForwardedStatusError
from sagastore_server.rpc.lifecycle import ServerDrainingError, ServerStartingError
from sagastore_server.rpc.status import STATUS_KEY, refusal_of
from sagastore_server.storage.errors import FencedError, StorageFullError, UnavailableError

STATUS_TIMEOUT = 1.0
"""Seconds that sending headers or a status may take after the end of a call."""

_LOG_INTERVAL = 1.0
"""Seconds between two log lines about outages: during one, every call fails."""

_OUTAGES = (UnavailableError, StorageFullError, FencedError)
_NO_OUTAGES = (ServerStartingError, ServerDrainingError, StalledError, SilentError)

_log = structlog.get_logger(__name__)


class ErrorResponder:
    """Ends calls of one server with an error. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a responder that limits its log lines by ``clock``."""
        self._clock = clock
        self._next_line = 0.0
        self._unlogged = 0

    async def refuse(
        self, context: aio.ServicerContext[Any, Any], call: CallContext, error: Exception
    ) -> NoReturn:
        """End ``call`` with the status that `status.refusal_of` gives ``error``.

        Raises:
            asyncio.CancelledError: Always. gRPC logs any other exception as a defect.

        """
        if isinstance(error, aio.InternalError):
            # The client disconnected while a message was being sent or received.
            call.code = "CANCELLED"
            raise asyncio.CancelledError from error
        adopt_call_id(call, context)
        if isinstance(error, ForwardedStatusError):
            call.code, call.refusal = error.code.name, error.message
            await _abort(context.abort(error.code, error.message, error.metadata))
            raise asyncio.CancelledError
        refusal = refusal_of(error, call.id)
        call.code, call.refusal = refusal.code.name, refusal.message
        if refusal.code is grpc.StatusCode.INTERNAL:
            _log.error("internal error", method=call.method, call=call.id, exc_info=error)
        elif isinstance(error, _OUTAGES) and not isinstance(error, _NO_OUTAGES):
            self._log_outage(call, error.reason, str(error))
        _drop_tracebacks(error)
        details = ((STATUS_KEY, refusal.details),)
        await _abort(context.abort(refusal.code, refusal.message, details))
        raise asyncio.CancelledError

    def _log_outage(self, call: CallContext, reason: str, detail: str) -> None:
        now = self._clock()
        if now < self._next_line:
            self._unlogged += 1
            return
        _log.warning(
            "call refused",
            method=call.method,
            reason=reason,
            detail=detail,
            call=call.id,
            more=self._unlogged,
        )
        self._next_line, self._unlogged = now + _LOG_INTERVAL, 0


async def _abort(abort: Awaitable[Any]) -> None:
    """End a call.

    The status queues behind the messages that the client has not read. It has been handed to gRPC
    by the time of the timeout; a client that does not read must not keep the call.
    """
    with suppress(TimeoutError, aio.InternalError):
        async with asyncio.timeout(STATUS_TIMEOUT):
            await abort


def _drop_tracebacks(error: BaseException) -> None:
    """Free the requests and answers to which the frames of a traceback refer.

    They would stay in memory until the status has been sent, and then until the garbage collector
    comes: gRPC's task and state of a call refer to each other. The frames must not be cleared:
    calls whose writes were committed together share an error, so its traceback may contain the
    frames of another call, and clearing the frame of a suspended coroutine ends it.
    """
    chain: BaseException | None = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
