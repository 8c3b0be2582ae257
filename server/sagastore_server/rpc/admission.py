"""What every call passes before anything is done for it, and how it is counted out.

In this order, the cheapest first, and all of it before the request is even parsed: does the
server take calls at all; who calls, and may they; do they call too often; is there room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

import structlog
from grpc import aio

from sagastore_server.interfaces import call_context
from sagastore_server.interfaces.access import ANYONE, AccessControl, Caller, Role
from sagastore_server.interfaces.call_context import CallContext
from sagastore_server.interfaces.errors import (
    OverloadedError,
    PermissionDeniedError,
    RateLimitedError,
    UnauthenticatedError,
)
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.limits import Limits
from sagastore_server.rpc.load_shedding import LoadFigures, LoadShedder
from sagastore_server.rpc.rate_limiter import RateLimiter
from sagastore_server.rpc.stream_revocation import StreamRevocation

Context = aio.ServicerContext[Any, Any]

CALL_ID_KEY = "x-request-id"
"""The header with which a caller may name a call; errors and logs then bear that name."""

_BEARER = "bearer "
_CERTIFICATE_KEYS = ("x509_subject_alternative_name", "x509_common_name")
_log = structlog.get_logger(__name__)


class IncomingCall(Protocol):
    """What the door looks at of a call that comes in."""

    def invocation_metadata(self) -> Any:
        """Return the headers, as pairs."""

    def auth_context(self) -> Mapping[str, Any]:
        """Return what the certificate says."""

    def peer(self) -> str:
        """Return the address that it comes from."""


class AdmissionControl:
    """Lets calls in and counts them out. Belongs to one event loop."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        access: AccessControl | None = None,
        instruments: Instruments | None = None,
        *,
        load_shedder: LoadShedder | None = None,
        log_calls: bool = False,
    ) -> None:
        """Let in whom ``access`` knows, as many as ``limits`` allow, and tell ``instruments``."""
        self.lifecycle = lifecycle
        self.limits = limits
        self.calls = 0
        """Single calls inside."""
        self.streams = 0
        """Streams inside."""
        self._access = access or AccessControl()
        self._stream_revocation = StreamRevocation()
        self._access.subscribe(self._stream_revocation.check_all)
        self._instruments = instruments or Instruments()
        self._rate_limiter = RateLimiter(limits.caller_rate) if limits.caller_rate else None
        self.load_shedder = load_shedder or LoadShedder(limits.max_calls, lambda: LoadFigures(0, 0))
        self._log_calls = log_calls

    def begin(self, method: str) -> tuple[CallContext, float]:
        """Take note of a call that came in; ``end`` must follow."""
        self._instruments.call_started(method)
        return call_context.begin(method), time.perf_counter()

    def end(self, call: CallContext, code: str, began: float, context: Context) -> None:
        """Take note of how a call ended."""
        seconds = time.perf_counter() - began
        call.code = code
        self._instruments.call_ended(call.method, code, seconds)
        if self._log_calls:
            adopt_id(call, context)
            _log.info(
                "call",
                method=call.method,
                code=code,
                seconds=round(seconds, 6),
                caller=call.caller,
                call=call.id,
            )

    def admit(self, call: CallContext, context: IncomingCall, role: Role) -> None:
        """Find out who calls, and whether they may, now.

        Raises:
            UnauthenticatedError: Nobody we know.
            PermissionDeniedError: Their role is less than ``role``.
            RateLimitedError: They have called too often.

        """
        # Lines that are logged from now on bear the id that the caller gave.
        call.named_by = partial(_given_id, context)
        self._authorize(call, context, role)
        if self._rate_limiter is not None:
            self._hold_to_rate(self._rate_limiter, context)

    def supervised(
        self, call: CallContext, context: IncomingCall, role: Role
    ) -> AbstractAsyncContextManager[None]:
        """End what is done in the context when who was admitted would be so no longer.

        Raises:
            UnauthenticatedError: They are nobody we know, now.
            PermissionDeniedError: Their role is less than ``role``, now.

        """
        if self._access.is_open:
            return nullcontext()
        return self._stream_revocation.over(lambda: self._authorize(call, context, role))

    def enter_call(self) -> None:
        """Take a place for a single call; ``leave_call`` gives it back.

        Raises:
            OverloadedError: There is none.

        """
        if self.calls >= self.limits.max_calls or self.load_shedder.turns_away():
            self._shed(f"{self.limits.max_calls:,} calls or more")
        self.calls += 1

    def leave_call(self) -> None:
        """Give back the place of a single call."""
        self.calls -= 1

    def enter_stream(self) -> None:
        """Take a place for a stream; ``leave_stream`` gives it back.

        Raises:
            OverloadedError: There is none.

        """
        if self.streams >= self.limits.max_streams:
            self._shed(f"{self.limits.max_streams:,} streams")
        self.streams += 1

    def leave_stream(self) -> None:
        """Give back the place of a stream."""
        self.streams -= 1

    async def pace(self, context: IncomingCall) -> None:
        """Wait until the caller of a stream may send another batch."""
        if self._rate_limiter is None:
            return
        while wait := self._rate_limiter.take(self._key(context)):  # noqa: ASYNC110 - time itself
            await asyncio.sleep(wait)

    def _authorize(self, call: CallContext, context: IncomingCall, role: Role) -> None:
        caller = ANYONE if self._access.is_open else self._identify(context)
        call.caller = caller.name
        if caller.role < role:
            raise PermissionDeniedError(
                f"{caller.name!r} has the role {caller.role.name.lower()}, "
                f"and this needs {role.name.lower()}"
            )

    def _identify(self, context: IncomingCall) -> Caller:
        token = _token(context)
        # A token decides; asking for the certificate takes longer than all the rest.
        names = () if token is not None else _certificate_names(context)
        return self._access.caller(token, names)

    def _hold_to_rate(self, rates: RateLimiter, context: IncomingCall) -> None:
        wait = rates.take(self._key(context))
        if wait:
            self._instruments.call_shed(RateLimitedError.reason)
            raise RateLimitedError(
                f"more than {self.limits.caller_rate:g} calls a second; slow down",
                retry_after=wait,
            )

    def _key(self, context: IncomingCall) -> str:
        call = call_context.current()
        if not self._access.is_open and call is not None:
            return call.caller
        return context.peer().rpartition(":")[0]

    def _shed(self, what: str) -> None:
        self._instruments.call_shed(OverloadedError.reason)
        raise OverloadedError(
            f"the server has {what} at hand already, which is its limit; try again",
            retry_after=self.load_shedder.retry_after(),
        )


def adopt_id(call: CallContext, context: IncomingCall) -> None:
    """Give the call the id that its caller gave it, if there is one."""
    call.adopt(_given_id(context))


def _given_id(context: IncomingCall) -> str:
    """Return the id that the caller gave the call; empty: none."""
    for key, value in context.invocation_metadata() or ():
        if key == CALL_ID_KEY and isinstance(value, str):
            return value
    return ""


def _token(context: IncomingCall) -> str | None:
    """Return the bearer token.

    Raises:
        UnauthenticatedError: There is an authorization of another kind, or more than one.

    """
    given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not given:
        return None
    if len(given) > 1 or not isinstance(given[0], str) or given[0][:7].lower() != _BEARER:
        raise UnauthenticatedError("the authorization must be one bearer token")
    token: str = given[0][7:].strip()
    return token


def _certificate_names(context: IncomingCall) -> list[str]:
    found = context.auth_context()
    return [
        name.decode("utf-8", "replace") for key in _CERTIFICATE_KEYS for name in found.get(key, ())
    ]
