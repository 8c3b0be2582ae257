"""Admission control for every RPC: authentication, authorization, rate and concurrency limits.

The checks run in order of cost, before the request is parsed:

1. the lifecycle accepts calls (``UNAVAILABLE``);
2. the caller is known and has the role that the method requires;
3. the caller stays within its rate limit (``RATE_LIMITED``);
4. there is a free slot for the call or stream (``OVERLOADED``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

import structlog
from google.protobuf.descriptor import MethodDescriptor
from grpc import aio

from sagastore_server.interfaces import call_context
from sagastore_server.interfaces.access import ANYONE, AccessControl, Caller, Role
from sagastore_server.interfaces.audit import Audit
from sagastore_server.interfaces.call_context import CallContext
from sagastore_server.interfaces.errors import (
    OverloadedError,
    PermissionDeniedError,
    RateLimitedError,
    UnauthenticatedError,
)
from sagastore_server.interfaces.instruments import Instruments
from sagastore_server.rpc.call_id import given_call_id
from sagastore_server.rpc.client_certificates import ClientCertificates
from sagastore_server.rpc.forwarded_calls import ForwardedCalls, mark_of
from sagastore_server.rpc.grpc_internals import CallCounts
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.load_shedding import LoadShedder
from sagastore_server.rpc.memory_budget import ByteBudget
from sagastore_server.rpc.pending_reads import PendingReads, QueuedReads, ReadLimits
from sagastore_server.rpc.places import Place, PlaceLimits, Places
from sagastore_server.rpc.rate_limiter import RateLimiter
from sagastore_server.rpc.stream_revocation import StreamRevocation

Context = aio.ServicerContext[Any, Any]

MIB = 1024 * 1024

_BEARER = "bearer "
_CERTIFICATE_KEYS = ("x509_subject_alternative_name", "x509_common_name")
_STORAGE = "sagastore.v1.StorageService"
_SESSIONS = "sagastore.v1.SessionService"
_FILES = "sagastore.v1.FileService"
_ROLES = {
    **{f"{_STORAGE}.{name}": Role.READER for name in ("Get", "BatchGet", "List", "Search")},
    f"{_STORAGE}.Export": Role.READER,
    **{f"{_STORAGE}.{name}": Role.WRITER for name in ("Save", "BatchSave", "BulkSave", "Delete")},
    **{f"{_SESSIONS}.{name}": Role.READER for name in ("GetSession", "ListSessions")},
    **{
        f"{_SESSIONS}.{name}": Role.WRITER
        for name in ("Append", "UpdateSession", "TruncateSession", "DeleteSession")
    },
    **{f"{_FILES}.{name}": Role.READER for name in ("GetFile", "ListFiles")},
    **{f"{_FILES}.{name}": Role.WRITER for name in ("SaveFile", "DeleteFile")},
}
_WATCH_SECONDS = 1.0
"""Seconds between two checks for clients that neither send nor read."""

_FAILURES_PER_SECOND = 10.0
"""Calls without valid credentials per second and address. Beyond that, the answer is
RATE_LIMITED; valid credentials are accepted all the same."""
_FAILURES_AT_ONCE = 100.0
"""Calls without valid credentials that an address may make at once: a deployment with an old token
restarts its clients together."""

_log = structlog.get_logger(__name__)


class Limits(NamedTuple):
    """Limits on calls and connections; the settings have the same names."""

    max_request_bytes: int = 32 * MIB
    """Size of a request. gRPC refuses a larger one before it is in memory, with
    RESOURCE_EXHAUSTED. A batch of 1000 real messages takes about 0.4 MiB; a batch holds at least 5
    messages of any size (``storage.limits.LARGEST_MESSAGE``)."""
    max_calls: int = 512
    """Concurrent unary calls."""
    max_streams: int = 64
    """Concurrent streams."""
    caller_rate: float = 0.0
    """Calls and batches per second and caller; 0: unlimited."""
    search_timeout: float = 10.0
    """Seconds after which a search is stopped."""
    stall_timeout: float = 300.0
    """Seconds that a client may leave a message of a stream unread."""
    connection_age: float = 3600.0
    """Seconds after which a client must reconnect; 0: never."""
    max_connections: int = 1000
    """Concurrent connections; gRPC closes further ones at once."""
    request_memory: int = 256 * MIB
    """Bytes of requests in memory."""
    answer_memory: int = 256 * MIB
    """Bytes of answers that clients have not read."""
    caller_share: float = 0.5
    """Share of the streams, of the memory and of the connections for one caller or address."""
    message_timeout: float = 30.0
    """Seconds until the request of a call must have arrived."""
    request_compression: bool = False
    """Whether compressed requests are accepted."""

    @property
    def places(self) -> PlaceLimits:
        """Limits of places and of the memory of calls."""
        return PlaceLimits(
            self.max_calls,
            self.max_streams,
            self.request_memory,
            self.answer_memory,
            self.caller_share,
            self.stall_timeout,
        )

    @property
    def reads(self) -> ReadLimits:
        """Limits of messages that are being received."""
        slow = max(1, self.request_memory // self.max_request_bytes)
        return ReadLimits(slow, max(1, int(slow * self.caller_share)), self.message_timeout)


class IncomingCall(Protocol):
    """The part of gRPC's context that admission control reads."""

    def invocation_metadata(self) -> Any:
        """Return the headers, as pairs."""

    def auth_context(self) -> Mapping[str, Any]:
        """Return the properties of the client certificate."""

    def peer(self) -> str:
        """Return the address of the client."""


def required_role(method: MethodDescriptor) -> Role:
    """Return the least role that may call ``method``: ADMIN unless a lesser one is listed."""
    return _ROLES.get(method.full_name, Role.ADMIN)


class AdmissionControl:
    """Admits calls and streams, and records their start and end. Belongs to one event loop."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        access: AccessControl | None = None,
        instruments: Instruments | None = None,
        *,
        load_shedder: LoadShedder | None = None,
        client_certificates: ClientCertificates | None = None,
        queue_reads: bool = False,
        log_calls: bool = False,
        audit: Audit | None = None,
        forwarded_calls: ForwardedCalls | None = None,
    ) -> None:
        """Admit the callers that ``access`` allows, up to ``limits``.

        Args:
            lifecycle: Whether the server accepts calls.
            limits: Rate and concurrency limits.
            access: Authenticates callers; None: every caller may call everything.
            instruments: Receives metrics.
            load_shedder: Refuses calls under overload; None: only the limits apply.
            client_certificates: Checks the certificates of callers without a token; None: the
                server requests no certificates.
            queue_reads: Whether few requests are received at a time, for callers without
                credentials.
            log_calls: Whether each call is logged when it ends.
            audit: Records changes and refused callers; None: nothing is recorded.
            forwarded_calls: Checks calls that another server has forwarded.

        """
        self.lifecycle = lifecycle
        self.limits = limits
        self.begun = 0
        """Calls that gRPC has handed over."""
        self._places = Places(limits.places)
        self.reads = QueuedReads(limits.reads) if queue_reads else PendingReads(limits.reads)
        """Calls that wait for a message of the client."""
        self._access = access or AccessControl()
        self._stream_revocation = StreamRevocation()
        self._access.subscribe(self._stream_revocation.check_all)
        self._instruments = instruments or Instruments()
        self._rate_limiter = RateLimiter(limits.caller_rate) if limits.caller_rate else None
        self.load_shedder = load_shedder or LoadShedder(limits.max_calls, lambda: CallCounts(0, 0))
        self._failures = RateLimiter(_FAILURES_PER_SECOND, burst=_FAILURES_AT_ONCE)
        self._client_certificates = client_certificates
        self._log_calls = log_calls
        self.audit = audit or Audit()
        self._forwarded_calls = forwarded_calls or ForwardedCalls()

    @property
    def calls(self) -> int:
        """Unary calls in progress."""
        return self._places.calls

    @property
    def streams(self) -> int:
        """Open streams."""
        return self._places.streams

    @property
    def requests(self) -> ByteBudget:
        """Memory of the requests that have arrived."""
        return self._places.requests

    @property
    def answers(self) -> ByteBudget:
        """Memory of the answers that were not sent yet."""
        return self._places.answers

    def record_start(self, method: str) -> tuple[CallContext, float]:
        """Record that a call has arrived; `record_end` must follow."""
        self.begun += 1
        self._instruments.call_started(method)
        return call_context.begin(method), time.perf_counter()

    def record_end(self, call: CallContext, code: str, began: float, context: Context) -> None:
        """Record the status code and the duration of a call."""
        seconds = time.perf_counter() - began
        call.code = code
        self._instruments.call_ended(call.method, code, seconds)
        if self._log_calls:
            adopt_call_id(call, context)
            _log.info(
                "call",
                method=call.method,
                code=code,
                seconds=round(seconds, 6),
                caller=call.caller,
                call=call.id,
            )
        # After the id was read, so that the audit line has it.
        self.audit.ended(call, code)

    def admit(self, call: CallContext, context: IncomingCall, role: Role) -> None:
        """Authenticate and authorize the caller, and apply its rate limit.

        Raises:
            UnauthenticatedError: The caller is unknown.
            PermissionDeniedError: The role of the caller is less than ``role``.
            RateLimitedError: The caller exceeds its rate limit.
            ForwardedTwiceError, WrongStoreError: A forwarded call is not meant for this server.

        """
        # From here on, log lines carry the caller's id for the call.
        call.read_id = partial(_given_id, context)
        call.peer, call.read_certificate = context.peer(), context.auth_context
        self._forwarded_calls.check(call, context)
        self._authorize(call, context, role)
        if self._rate_limiter is not None:
            self._check_rate(self._rate_limiter, call, context)

    def revocable(
        self, call: CallContext, context: IncomingCall, role: Role
    ) -> AbstractAsyncContextManager[None]:
        """Cancel the body of the context when the caller loses access.

        Raises:
            UnauthenticatedError: The caller is no longer known.
            PermissionDeniedError: The role of the caller is now less than ``role``.

        """
        if self._access.is_open:
            return nullcontext()
        return self._stream_revocation.watch(lambda: self._authorize(call, context, role))

    def acquire_call(self, call: CallContext, context: Context) -> Place:
        """Take a place of a unary call, which is returned when the call has ended.

        Raises:
            OverloadedError: The limit is reached, or the load shedder refuses the call.

        """
        place = None
        self.load_shedder.note_arrival()
        if self.calls < self.limits.max_calls and not self.load_shedder.should_refuse():
            place = self._places.call(self._owner(call, context))
        if place is None:
            self._refuse_overload("calls", self.limits.max_calls)
        place.task.add_done_callback(place.release)
        return place

    def acquire_stream(self, call: CallContext, context: Context) -> Place:
        """Take a place of a stream, which is returned when the call has ended.

        Raises:
            OverloadedError: The limit, or the share of the caller, is reached.

        """
        place = self._places.stream(self._owner(call, context))
        if place is None:
            self._refuse_overload("streams", self.limits.max_streams)
        place.task.add_done_callback(place.release)
        return place

    async def wait_for_rate(self, owner: str) -> None:
        """Wait until the rate limit of the caller allows another message of a stream."""
        if self._rate_limiter is None:
            return
        while wait := self._rate_limiter.take(owner):  # noqa: ASYNC110 - time itself
            await asyncio.sleep(wait)

    async def watch(self) -> None:
        """End calls whose client neither sends nor reads, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self.reads.end_silent()
            self._places.sweep()

    def is_known(self, context: IncomingCall) -> bool:
        """Return whether the caller is authenticated, without an effect on its limits."""
        try:
            self._caller(context)
        except UnauthenticatedError:
            return False
        return True

    def _authorize(self, call: CallContext, context: IncomingCall, role: Role) -> None:
        try:
            caller = self._caller(context)
        except UnauthenticatedError:
            self._count_failure(context)
            raise
        call.caller, call.identity = caller.name, caller
        if caller.role < role:
            raise PermissionDeniedError(
                f"{caller.name!r} has the role {caller.role.name.lower()}; "
                f"this method requires {role.name.lower()}"
            )

    def _caller(self, context: IncomingCall) -> Caller:
        if self._access.is_open:
            if self._client_certificates is not None:
                self._client_certificates.check(context.auth_context())
            return ANYONE
        token = _token(context)
        if token is not None:
            # A token takes precedence. Reading the certificate costs more than every other check.
            return self._access.caller(token, ())
        found = context.auth_context()
        if self._client_certificates is not None:
            self._client_certificates.check(found)
        names = _certificate_names(found)
        if names and mark_of(context) is not None:
            # The certificate is that of the forwarder, whose rights are not those of its callers.
            raise UnauthenticatedError("a forwarded call needs a token; certificates do not count")
        return self._access.caller(None, names)

    def _count_failure(self, context: IncomingCall) -> None:
        """Limit the failures of an address. A caller with valid credentials is not affected."""
        wait = self._failures.take(_address(context))
        if wait:
            self._instruments.call_shed(RateLimitedError.reason)
            raise RateLimitedError(
                "too many calls without valid credentials from this address; retry later",
                retry_after=wait,
            ) from None

    def _check_rate(
        self, rate_limiter: RateLimiter, call: CallContext, context: IncomingCall
    ) -> None:
        wait = rate_limiter.take(self._owner(call, context))
        if wait:
            self._instruments.call_shed(RateLimitedError.reason)
            raise RateLimitedError(
                f"too many calls per second (limit {self.limits.caller_rate:g}); retry later",
                retry_after=wait,
            )

    def _owner(self, call: CallContext, context: IncomingCall) -> str:
        """Return the owner of limits: the caller, or without access rules the address."""
        return _address(context) if self._access.is_open else call.caller

    def _refuse_overload(self, kind: str, limit: int) -> NoReturn:
        self._instruments.call_shed(OverloadedError.reason)
        raise OverloadedError(
            f"too many concurrent {kind} (limit {limit:,}); retry later",
            retry_after=self.load_shedder.retry_after(),
        )


def adopt_call_id(call: CallContext, context: IncomingCall) -> None:
    """Use the caller's id for the call, if the request carries one."""
    call.adopt(_given_id(context))


def _given_id(context: IncomingCall) -> str:
    """Return the caller's id for the call, or an empty string."""
    return given_call_id(context.invocation_metadata() or ())


def _token(context: IncomingCall) -> str | None:
    """Return the bearer token.

    Raises:
        UnauthenticatedError: The header has another scheme, or is repeated.

    """
    given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not given:
        return None
    if len(given) > 1 or not isinstance(given[0], str) or given[0][:7].lower() != _BEARER:
        raise UnauthenticatedError("the authorization header must be one bearer token")
    token: str = given[0][7:].strip()
    return token


def _address(context: IncomingCall) -> str:
    """Return the source address of a call, without the port."""
    return context.peer().rpartition(":")[0]


def _certificate_names(found: Mapping[str, Any]) -> list[str]:
    return [
        name.decode("utf-8", "replace") for key in _CERTIFICATE_KEYS for name in found.get(key, ())
    ]
