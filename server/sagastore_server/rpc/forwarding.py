"""Forwarding: passes the calls of a server on to the holder of a migration, until the last phase.

Requests and answers are passed on as bytes, with their headers, deadline, cancellation and status.
The caller was admitted here, and the holder decides about it again.

* A call is sent only over a connection that is established, to a holder that answered the last
  probe. Otherwise it waits for up to `HOLD_SECONDS`, and is then refused with HOLDER_UNREACHABLE.
  A call that the holder refused because it starts or drains had no effect, and waits as well.
* Nothing is answered in place of the holder: if the connection is lost after a call was sent, its
  outcome is unknown, and the answer is HOLDER_LOST. Whether to repeat it is the client's decision.
* After `end` this server answers. Calls that wait are then answered here. Those that the holder
  has continue, and so do streams until it ends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from sagastore_server.interfaces.errors import HolderLostError, HolderUnreachableError
from sagastore_server.interfaces.forwarding import ForwardingCounts, ForwardingState
from sagastore_server.interfaces.tls import ClientTlsMaterial
from sagastore_server.interfaces.tracing import NO_TRACER, Tracer
from sagastore_server.rpc.admission import Context
from sagastore_server.rpc.forwarded_calls import mark
from sagastore_server.rpc.holder_connection import (
    ForwardedStatusError,
    HolderConnection,
    Target,
)
from sagastore_server.runtime.supervisor import SupervisedTask, Supervisor, awaited

HOLD_SECONDS = 5.0
"""Seconds that a call waits for a holder that can be reached. A restart of the holder takes two;
half of the client library's default time limit remains for another attempt."""

PROBE_SECONDS = 0.5
"""Seconds between two probes of a holder that answers."""

RETRY_SECONDS = 0.1
"""Seconds between two probes of a holder that does not answer, and until a call that it refused
is sent again."""

RETIRE_SECONDS = 1.0
"""Seconds that calls in progress have when another server has become the holder."""

_UNKNOWN = "the address of the server with the SQLite file is not known yet"

_DROPPED = ("user-agent", "te", "content-type", "host")
"""Headers of the connection of the client, besides those that begin with ``grpc-`` or ``:``."""

_TRACE = ("traceparent", "tracestate")


class ForwardingOptions(NamedTuple):
    """Options of `Forwarding`."""

    tls: ClientTlsMaterial | None = None
    """How to connect to the holder; None: in plain text."""
    tracer: Tracer = NO_TRACER


class Forwarding:
    """Forwards calls while it is `active`. Belongs to one event loop."""

    def __init__(self, options: ForwardingOptions, supervisor: Supervisor) -> None:
        """Begin without a holder; ``supervisor`` runs the probes."""
        self._options = options
        self._supervisor = supervisor
        self.active = True
        """Whether calls are forwarded; False from `end` on."""
        self.counts = ForwardingCounts()
        self._connection: HolderConnection | None = None
        self._detail = _UNKNOWN
        self._change = asyncio.Event()
        self._prober: SupervisedTask | None = None
        self._retired: dict[asyncio.Task[None], None] = {}

    # ------------------------------------------------------------------ the holder

    def set_target(self, target: Target | None, detail: str = _UNKNOWN) -> None:
        """Forward to ``target`` from now on; None: to no server, because of ``detail``."""
        former = self._connection
        self._detail = detail
        if target is not None and former is not None and former.target.address == target.address:
            former.target = target
            return
        self._connection = None if target is None else HolderConnection(target, self._options.tls)
        if former is not None:
            self._retire(former)
        if self._prober is None:
            self._prober = self._supervisor.start("holder-probe", self._probe)
        self._notify()

    def end(self) -> None:
        """Let this server answer all calls from now on."""
        self.active = False
        self._notify()

    async def stop(self) -> None:
        """Stop probing, and close the connections."""
        if self._prober is not None:
            await self._prober.stop()
        if self._connection is not None:
            self._retire(self._connection, grace=0.0)
        await asyncio.gather(*self._retired)

    def state(self) -> ForwardingState:
        """Return whether the holder can be reached. The phase is not known here."""
        connection = self._connection
        if connection is None:
            return ForwardingState("", None, False, self._detail)
        return ForwardingState(
            connection.target.address, None, connection.is_serving, connection.detail
        )

    @property
    def answers(self) -> bool:
        """Whether the holder answered the last probe, ready or not."""
        return self._connection is not None and self._connection.answers

    async def changed(self, within: float) -> None:
        """Wait for a change of the holder or its state, for ``within`` seconds at most."""
        change = self._change
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await change.wait()

    def _retire(self, connection: HolderConnection, grace: float = RETIRE_SECONDS) -> None:
        task = awaited(connection.close(grace))
        self._retired[task] = None
        task.add_done_callback(self._retired.pop)

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    async def _probe(self) -> None:
        while self.active:
            connection = self._connection
            if connection is None:
                await self.changed(PROBE_SECONDS)
                continue
            await connection.probe()
            # Also if nothing has changed: the connection may have been established again.
            self._notify()
            await self.changed(PROBE_SECONDS if connection.answers else RETRY_SECONDS)

    # ------------------------------------------------------------------ calls

    async def unary(self, method: str, request: bytes, context: Context) -> bytes | None:
        """Forward a call of ``method`` (``service/method``), and return the answer.

        Returns:
            None if this server must answer the call.

        Raises:
            ForwardedStatusError: The holder has ended the call with this status.
            HolderUnreachableError: The call was not sent.
            HolderLostError: The outcome is unknown.

        """
        if not self.active:
            return None
        until = _now() + HOLD_SECONDS
        while (connection := await self._connected(until)) is not None:
            metadata = self._metadata(context, connection)
            try:
                answer = await connection.unary(method, request, metadata, context.time_remaining())
            except ForwardedStatusError as exc:
                if exc.is_refused_for_now and await self._pause(until):
                    continue
                self._count(forwarded=1)
                raise
            except HolderLostError:
                self._lost()
                raise
            self._count(forwarded=1)
            return answer
        return None

    async def connected(self) -> HolderConnection | None:
        """Wait for a holder that can be reached; None: this server must answer.

        Raises:
            HolderUnreachableError: None can be reached.

        """
        return await self._connected(_now() + HOLD_SECONDS)

    async def stream(
        self,
        connection: HolderConnection,
        method: str,
        requests: AsyncIterator[bytes],
        context: Context,
    ) -> AsyncIterator[bytes]:
        """Forward a stream of ``method``, and yield the answers.

        Raises:
            ForwardedStatusError: The holder has ended the stream with this status.
            HolderLostError: The outcome is unknown.
            StorageError: As ``requests``.

        """
        metadata = self._metadata(context, connection)
        answers = connection.stream(method, requests, metadata, context.time_remaining())
        try:
            async with aclosing(answers):  # type: ignore[type-var]
                async for answer in answers:
                    yield answer
        except HolderLostError:
            self._lost()
            raise
        except ForwardedStatusError:
            self._count(forwarded=1)
            raise
        self._count(forwarded=1)

    async def _connected(self, until: float) -> HolderConnection | None:
        try:
            async with asyncio.timeout_at(until):
                while self.active:
                    connection = self._connection
                    if connection is not None:
                        if connection.is_open:
                            return connection
                        self._probe_now(connection)
                    await self._change.wait()
        except TimeoutError:
            if not self.active:
                return None
            self._count(unreachable=1)
            raise self._unreachable() from None
        return None

    def _probe_now(self, connection: HolderConnection) -> None:
        """Probe a holder whose connection has ended since it answered."""
        if connection.answers:
            connection.answers = False
            self._notify()

    def _lost(self) -> None:
        self._count(lost=1)
        self._notify()  # The next probe is due.

    async def _pause(self, until: float) -> bool:
        """Wait until a call may be sent again; return whether there is time for that."""
        if _now() + RETRY_SECONDS >= until:
            return False
        await self.changed(RETRY_SECONDS)
        return True

    def _unreachable(self) -> HolderUnreachableError:
        state = self.state()
        if not state.holder:
            return HolderUnreachableError(f"{state.detail}; try again")
        return HolderUnreachableError(
            f"the server with the SQLite file cannot be reached from this one ({state.holder}: "
            f"{state.detail or 'it does not answer'}); try again"
        )

    def _metadata(
        self, context: Context, connection: HolderConnection
    ) -> tuple[tuple[str, str | bytes], ...]:
        parent = self._options.tracer.headers()
        return (
            *_passed(context.invocation_metadata() or (), parent),
            *parent.items(),
            mark(connection.target.store_id, context.peer()),
        )

    def _count(self, *, forwarded: int = 0, unreachable: int = 0, lost: int = 0) -> None:
        counts = self.counts
        self.counts = ForwardingCounts(
            counts.forwarded + forwarded, counts.unreachable + unreachable, counts.lost + lost
        )


def _passed(headers: Any, parent: Mapping[str, str]) -> list[tuple[str, str | bytes]]:
    """Return the headers to pass on: not those of the connection, nor of a replaced trace."""
    return [
        (key, value)
        for key, value in headers
        if not key.startswith(("grpc-", ":"))
        and key not in _DROPPED
        and not (parent and key in _TRACE)
    ]


def _now() -> float:
    return asyncio.get_running_loop().time()
