"""Calls to the server, with deadlines, retries and error conversion."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio

from sagastore import _checks as checks
from sagastore import _status
from sagastore._coalescing import AttemptError, Coalescer, Gets, Saves, closed
from sagastore._consistency import Consistency, Positions, with_consistency
from sagastore._enums import Reads
from sagastore._retry import Deadline, RetryPolicy, delay_before_retry
from sagastore.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    SagaStoreError,
    UnauthenticatedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from sagastore._pool import Endpoint, Pool

__all__ = [
    "Caller",
    "History",
    "StreamRetry",
    "annotated",
    "may_have_taken_effect",
    "stalled",
]

Q = TypeVar("Q")
R = TypeVar("R")
E = TypeVar("E", bound=SagaStoreError)

_log = logging.getLogger("sagastore")

# Attempts with another token each. A function that returns a new token for each call would
# otherwise make the client repeat a refused call until its timeout.
_TOKEN_ATTEMPTS = 6

# With the default policy, half a second after the first failure.
_NOTICED_ATTEMPT = 4

# Reasons of errors after which nothing was stored: the server raises most of them before it
# processes a call.
_WITHOUT_EFFECT = frozenset(
    {
        *("SERVER_STARTING", "SERVER_DRAINING", "UNAUTHENTICATED"),
        *("HOLDER_UNREACHABLE", "FORWARDED_TWICE", "WRONG_STORE"),
        _status.NOT_REPLICATED,
    }
)

# Errors that tell of a state that the client may not have seen.
_STATE_TOLD = (AbortedError, AlreadyExistsError, NotFoundError)


def may_have_taken_effect(error: SagaStoreError) -> bool:
    """Report whether an attempt with a transient error may have changed something."""
    if isinstance(error, ResourceExhaustedError) or error.reason in _WITHOUT_EFFECT:
        return False
    return not (isinstance(error, UnavailableError) and error.unsent)


class History:
    """Records whether an earlier attempt of a call may have taken effect."""

    __slots__ = ("uncertain",)

    def __init__(self) -> None:
        self.uncertain = False

    def note(self, error: SagaStoreError) -> None:
        """Record the error of one attempt."""
        self.uncertain = self.uncertain or may_have_taken_effect(error)


class StreamRetry:
    """The retry limit of a stream.

    Retries continue for `timeout` seconds without a response, before the first
    response as well as after it. A long transfer therefore survives any number of
    restarts of the server.
    """

    __slots__ = (
        "_clock",
        "_failing_since",
        "_failures",
        "_policy",
        "_progressed",
        "_refused",
        "timeout",
    )

    def __init__(self, policy: RetryPolicy, timeout: float) -> None:
        self._policy = policy
        self.timeout = checks.seconds(timeout, "timeout")
        self._clock = asyncio.get_running_loop().time
        self._failures = self._refused = 0
        self._failing_since = self._clock()
        self._progressed = False

    @property
    def progressed(self) -> bool:
        """True after the first response."""
        return self._progressed

    def begin(self) -> None:
        """Record that an attempt begins."""
        if self._failures == 0:
            self._failing_since = self._clock()

    def progress(self) -> None:
        """Record that a response arrived."""
        self._progressed = True
        self._failures = self._refused = 0

    async def pause(self, error: SagaStoreError, call: str) -> None:
        """Wait before the stream is restarted.

        Raises:
            SagaStoreError: `error`, if the stream must not be restarted.
        """
        self._failures += 1
        self._refused += isinstance(error, UnauthenticatedError)
        if self._failures == 1 and self._progressed:
            self._failing_since = self._clock()
        failing = self._clock() - self._failing_since
        delay = self._delay(error, self.timeout - failing)
        if delay is None:
            raise _gave_up(error, failing, self._failures) from None
        _note_retry(call, error, self._failures, delay, self.timeout)
        await asyncio.sleep(delay)

    def _delay(self, error: SagaStoreError, remaining: float) -> float | None:
        policy = self._policy
        if self._refused >= _TOKEN_ATTEMPTS:
            return None
        if self._progressed and policy.max_attempts != 1:
            # The limit of attempts is one for starting the stream.
            policy = replace(policy, max_attempts=None)
        return delay_before_retry(policy, error, self._failures, remaining)


class Caller:
    """Calls the servers of one client."""

    def __init__(
        self,
        pool: Pool,
        policy: RetryPolicy,
        timeout: float,
        reads: Reads = Reads.LATEST,
        *,
        coalesce: bool = False,
    ) -> None:
        self.pool = pool
        self.policy = policy
        self.positions = Positions(reads)
        self.timeout = checks.seconds(timeout, "timeout")
        self.saves = Coalescer(pool, Saves()) if coalesce else None
        self.gets = Coalescer(pool, Gets()) if coalesce else None

    def deadline(self, timeout: float | None) -> Deadline:
        """Return the deadline of a call that starts now."""
        return Deadline(self.timeout if timeout is None else timeout)

    def stream_retry(self, timeout: float) -> StreamRetry:
        """Return the retry limit of a stream that starts now."""
        return StreamRetry(self.policy, timeout)

    async def unary(
        self,
        name: str,
        method: Callable[[Endpoint], grpc.aio.UnaryUnaryMultiCallable[Q, R]],
        request: Q,
        deadline: Deadline,
        *,
        history: History | None = None,
        retry: bool = True,
        repeatable: bool = True,
        required: Consistency | None = None,
        shared: Coalescer[Q, R] | None = None,
    ) -> R:
        """Make a unary call, with retries within the deadline.

        Args:
            name: Name of the RPC.
            method: Returns the RPC of an endpoint.
            request: The request of every attempt.
            deadline: The deadline of all attempts together.
            history: Records whether an attempt that was retried may have taken
                effect.
            retry: False: there is one attempt.
            repeatable: False if the call must not take effect twice: it is
                retried only after an attempt that had no effect for certain.
            required: The state that a read must see; None for other calls.
            shared: Sends the attempts together with those of other calls; None: each alone.

        Raises:
            SagaStoreError: The error of the last attempt.
        """

        async def alone() -> R:
            return await self._send(method, request, deadline)

        async def together() -> R:
            return await alone() if shared is None else await shared.send(request, deadline, alone)

        began = self.positions.turn
        try:
            response = await self._attempts(
                name, together, deadline, history, retry=retry, repeatable=repeatable
            )
        except BaseException as error:
            if required is None or isinstance(error, _STATE_TOLD):
                self.positions.note("")
            raise
        current = required in {None, Consistency.LATEST}
        self._note(response, began if current else -1)
        return response

    def _note(self, response: Any, began: int = -1) -> None:
        """Record the position of a response; those about a migration have none."""
        position: str | None = getattr(response, "position", None)
        if position is not None:
            self.positions.note(position, began)

    async def _attempts(
        self,
        name: str,
        send: Callable[[], Awaitable[R]],
        deadline: Deadline,
        history: History | None,
        *,
        retry: bool,
        repeatable: bool,
    ) -> R:
        failures = refused = 0
        previous: SagaStoreError | None = None
        while True:
            try:
                return await send()
            except AttemptError as failed:
                connected = failed.connected
                error = failed.error(name, deadline.timeout)
                self.pool.note_token(error, failed.metadata)
            except asyncio.CancelledError:
                if self._was_closed():
                    raise closed(name) from None
                raise
            failures += 1
            refused += isinstance(error, UnauthenticatedError)
            again = (
                retry
                and refused < _TOKEN_ATTEMPTS
                and (repeatable or not may_have_taken_effect(error))
            )
            left = deadline.remaining()
            delay = (
                delay_before_retry(self.policy, error, failures, math.inf if left is None else left)
                if again
                else None
            )
            if delay is None:
                final = _final(error, previous, connected=connected)
                raise _gave_up(final, deadline.elapsed(), failures) from None
            if history is not None:
                history.note(error)
            previous = error
            _note_retry(name, error, failures, delay, deadline.timeout)
            await asyncio.sleep(delay)

    async def _send(
        self,
        method: Callable[[Endpoint], grpc.aio.UnaryUnaryMultiCallable[Q, R]],
        request: Q,
        deadline: Deadline,
    ) -> R:
        endpoint = await self.pool.acquire(deadline)
        metadata = self.pool.metadata()
        try:
            return await method(endpoint)(request, timeout=deadline.remaining(), metadata=metadata)
        except grpc.aio.AioRpcError as exc:
            connected = endpoint.connected()
            raise AttemptError(exc, endpoint, metadata, connected=connected) from None

    async def read(
        self,
        name: str,
        method: Callable[[Endpoint], grpc.aio.UnaryUnaryMultiCallable[Any, R]],
        request: Any,
        deadline: Deadline,
        consistency: Consistency | None,
        *,
        shared: Coalescer[Any, R] | None = None,
    ) -> R:
        """Make a unary call that reads, with a requirement on the state it sees.

        A remembered position that the server refuses is forgotten, and the call repeated with
        the latest state. A position of the caller is not.

        Args:
            name: Name of the RPC.
            method: Returns the RPC of an endpoint.
            request: The request without a requirement; it is not changed.
            deadline: The deadline of all attempts together.
            consistency: The requirement of the caller; None for that of the client.
            shared: As for `unary`.

        Raises:
            SagaStoreError: The error of the last attempt.
        """
        required = self.positions.requirement(consistency)
        try:
            asked = with_consistency(request, required)
            return await self.unary(name, method, asked, deadline, required=required, shared=shared)
        except InvalidArgumentError as error:
            if consistency is not None or not self.positions.forget(required, error):
                raise
        return await self.unary(
            name, method, request, deadline, required=Consistency.LATEST, shared=shared
        )

    async def stream(
        self,
        name: str,
        method: Callable[[Endpoint], grpc.aio.UnaryStreamMultiCallable[Q, R]],
        request: Callable[[], Q],
        timeout: float,
        *,
        resume: bool = True,
        endless: bool = False,
    ) -> AsyncGenerator[R, None]:
        """Yield the responses of a stream; restart it when it breaks.

        Args:
            name: Name of the RPC.
            method: Returns the RPC of an endpoint.
            request: Returns a request that continues at the current position.
            timeout: Maximum seconds between responses.
            resume: False if the stream cannot be continued after its first
                response.
            endless: True if the server never ends the stream.

        Raises:
            SagaStoreError: The stream failed and cannot be restarted.
        """
        retry = self.stream_retry(timeout)
        while True:
            endpoint = await self.pool.acquire()
            metadata = self.pool.metadata()
            retry.begin()
            call = method(endpoint)(request(), metadata=metadata)
            error: SagaStoreError | None = None
            try:
                while True:
                    response = await self._read(call, name, endpoint, timeout)
                    if isinstance(response, SagaStoreError):
                        error = response
                        self.pool.note_token(error, metadata)
                        break
                    if response is grpc.aio.EOF:
                        if not endless:
                            return
                        error = UnavailableError(f"{name}: the server ended the stream")
                        break
                    retry.progress()
                    self._note(response)
                    yield response
            finally:
                call.cancel()
            if retry.progressed and not resume:
                raise error from None
            await retry.pause(error, name)

    async def _read(
        self,
        call: grpc.aio.UnaryStreamCall[Q, R],
        name: str,
        endpoint: Endpoint,
        timeout: float,
    ) -> R | SagaStoreError:
        """Return the next response, EOF, or the error that ended the stream."""
        try:
            async with asyncio.timeout(timeout):
                return cast("R", await call.read())
        except TimeoutError:
            return stalled(name, endpoint.address, timeout)
        except grpc.aio.AioRpcError as exc:
            return _status.from_rpc_error(exc, name, endpoint.address, endpoint.security)
        except asyncio.CancelledError:
            if self._was_closed():
                return closed(name)
            raise

    def _was_closed(self) -> bool:
        """Report whether `close` cancelled the call, rather than its task."""
        task = asyncio.current_task()
        return self.pool.closed and (task is None or not task.cancelling())


def annotated(error: E, note: str) -> E:
    """Return the error itself with a note after its text."""
    error.args = (f"{error}; {note}",)
    return error


def stalled(name: str, address: str, timeout: float) -> DeadlineExceededError:
    """Return the error for a stream without a response for `timeout` seconds."""
    return DeadlineExceededError(f"{name}: no response from {address} for {timeout:g} s")


def _final(
    error: SagaStoreError, previous: SagaStoreError | None, *, connected: bool
) -> SagaStoreError:
    """Return the error to raise: the last one, or a timeout with the one before it.

    A last attempt that has found no connection before the deadline says less than the one
    before it.
    """
    if previous is None or not isinstance(error, DeadlineExceededError):
        return error
    if not connected and isinstance(previous, UnavailableError):
        # The connection may also have been lost after the last attempt was sent.
        previous.unsent = False
        return previous
    return DeadlineExceededError(
        f"{error}; the previous attempt failed: {previous}",
        reason=error.reason,
        domain=error.domain,
        metadata=error.metadata,
    )


def _gave_up(error: E, seconds: float, attempts: int) -> E:
    """Return a transient error with how long the client has tried."""
    if attempts == 1 or not _status.is_transient(error):
        return error
    error.args = (f"{error} (gave up after {attempts} attempts in {seconds:.3g} s)",)
    return error


def _note_retry(
    call: str, error: SagaStoreError, attempts: int, delay: float, timeout: float
) -> None:
    """Log a retry: at level INFO once a call has failed repeatedly, which users notice."""
    _log.log(
        logging.INFO if attempts == _NOTICED_ATTEMPT else logging.DEBUG,
        "%s (%s is retried for up to %g s, next in %.2f s)",
        error,
        call,
        timeout,
        delay,
    )
