"""Makes calls: deadlines, retries and errors in one place."""

# A timeout here goes with the call to the server, or spans several calls.
# ruff: noqa: ASYNC109

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import grpc.aio

from sagastore import _status
from sagastore._retry import Deadline, RetryPolicy, delay_before_retry
from sagastore.errors import (
    DeadlineExceededError,
    ResourceExhaustedError,
    SagaStoreError,
    UnavailableError,
)

if TYPE_CHECKING:
    from sagastore._pool import Endpoint, Pool

__all__ = ["Caller", "History", "Patience", "closed", "silent"]

Q = TypeVar("Q")
R = TypeVar("R")

_log = logging.getLogger("sagastore")

# The server let the call not in at all.
_REFUSED_AT_THE_DOOR = frozenset({"SERVER_STARTING", "SERVER_DRAINING", "UNAUTHENTICATED"})


class History:
    """Remembers whether an earlier attempt of a call may have taken effect."""

    __slots__ = ("uncertain",)

    def __init__(self) -> None:
        self.uncertain = False

    def note(self, error: SagaStoreError) -> None:
        """Take in what one attempt ended with."""
        refused = isinstance(error, ResourceExhaustedError) or error.reason in _REFUSED_AT_THE_DOOR
        unsent = isinstance(error, UnavailableError) and error.unsent
        self.uncertain = self.uncertain or not (refused or unsent)


class Patience:
    """Decides how long a stream that breaks is taken up again.

    Until the stream has brought anything, as often as the policy says: a server
    that is not there is reported soon. After that, for `timeout` seconds
    without progress: a long transfer survives a restart of the server.
    """

    __slots__ = ("_clock", "_failing_since", "_failures", "_policy", "_progressed", "timeout")

    def __init__(self, policy: RetryPolicy, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be greater than 0, not {timeout!r}")
        self._policy = policy
        self.timeout = timeout
        self._clock = asyncio.get_running_loop().time
        self._failures = 0
        self._failing_since = 0.0
        self._progressed = False

    @property
    def progressed(self) -> bool:
        """True when the stream has brought something."""
        return self._progressed

    def progress(self) -> None:
        """Note that the stream brought something."""
        self._progressed = True
        self._failures = 0

    async def pause(self, error: SagaStoreError, call: str) -> None:
        """Wait before the stream is taken up again.

        Raises:
            SagaStoreError: The error given, where it is final.
        """
        self._failures += 1
        if self._failures == 1:
            self._failing_since = self._clock()
        delay = self._delay(error)
        if delay is None:
            raise error from None
        _log.debug("%s broke (%s); again in %.2f s", call, error.code, delay)
        await asyncio.sleep(delay)

    def _delay(self, error: SagaStoreError) -> float | None:
        policy = self._policy
        if not self._progressed or policy.max_attempts == 1:
            return delay_before_retry(policy, error, self._failures)
        if not _status.is_transient(error):
            return None
        delay = (error.retry_after or 0.0) + policy.backoff(self._failures)
        waited = self._clock() - self._failing_since
        return delay if waited + delay < self.timeout else None


class Caller:
    """Makes the calls of one client."""

    def __init__(self, pool: Pool, policy: RetryPolicy, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be greater than 0, not {timeout!r}")
        self.pool = pool
        self.policy = policy
        self.timeout = timeout

    def deadline(self, timeout: float | None) -> Deadline:
        """Return the end of a call that begins now."""
        return Deadline(self.timeout if timeout is None else timeout)

    def patience(self, timeout: float) -> Patience:
        """Return the patience with a stream that begins now."""
        return Patience(self.policy, timeout)

    async def unary(
        self,
        name: str,
        method: Callable[[Endpoint], grpc.aio.UnaryUnaryMultiCallable[Q, R]],
        request: Q,
        deadline: Deadline,
        *,
        history: History | None = None,
        retry: bool = True,
    ) -> R:
        """Call once, or until it succeeds, within the deadline.

        Raises:
            SagaStoreError: What the last attempt ended with.
        """
        failures = 0
        previous: SagaStoreError | None = None
        while True:
            endpoint = await self.pool.acquire(deadline)
            metadata = self.pool.metadata()
            try:
                return await method(endpoint)(
                    request, timeout=deadline.remaining(), metadata=metadata
                )
            except grpc.aio.AioRpcError as exc:
                error = _status.from_rpc_error(exc, name, endpoint.address, endpoint.security)
                self.pool.note_token(error, metadata)
            except asyncio.CancelledError:
                if self._was_closed():
                    raise closed(name) from None
                raise
            failures += 1
            delay = delay_before_retry(self.policy, error, failures) if retry else None
            if delay is None or not deadline.leaves_room_for(delay):
                raise _final(error, previous) from None
            if history is not None:
                history.note(error)
            previous = error
            _log.debug("%s failed (%s); again in %.2f s", name, error.code, delay)
            await asyncio.sleep(delay)

    async def stream(
        self,
        name: str,
        method: Callable[[Endpoint], grpc.aio.UnaryStreamMultiCallable[Q, R]],
        request: Callable[[], Q],
        timeout: float,
        *,
        resume: bool = True,
    ) -> AsyncGenerator[R, None]:
        """Yield what a stream brings, taking it up again when it breaks.

        Args:
            name: Name of the RPC.
            method: Finds it at a server.
            request: Makes the request, from where the stream is now.
            timeout: Seconds without anything after which the stream counts as
                broken for good.
            resume: False where a stream that has brought something cannot be
                continued.

        Raises:
            SagaStoreError: The stream cannot be had.
        """
        patience = self.patience(timeout)
        while True:
            endpoint = await self.pool.acquire()
            metadata = self.pool.metadata()
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
                        return
                    patience.progress()
                    yield response
            finally:
                call.cancel()
            if patience.progressed and not resume:
                raise error from None
            await patience.pause(error, name)

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
            return silent(name, endpoint.address, timeout)
        except grpc.aio.AioRpcError as exc:
            return _status.from_rpc_error(exc, name, endpoint.address, endpoint.security)
        except asyncio.CancelledError:
            if self._was_closed():
                return closed(name)
            raise

    def _was_closed(self) -> bool:
        """Tell whether a call was cancelled by `close`, not together with its task."""
        task = asyncio.current_task()
        return self.pool.closed and (task is None or not task.cancelling())


def closed(name: str) -> SagaStoreError:
    """Return the error for a call that was under way when its client was closed."""
    return SagaStoreError(f"{name}: the client was closed during the call", code="CANCELLED")


def silent(name: str, address: str, timeout: float) -> DeadlineExceededError:
    """Return the error for a stream that brings nothing."""
    return DeadlineExceededError(f"{name}: nothing came from {address} for {timeout:g} s")


def _final(error: SagaStoreError, previous: SagaStoreError | None) -> SagaStoreError:
    """Say in a timeout's error why there was no answer before."""
    if previous is None or not isinstance(error, DeadlineExceededError):
        return error
    return DeadlineExceededError(
        f"{error}; the attempt before: {previous}",
        reason=error.reason,
        domain=error.domain,
        metadata=error.metadata,
    )
