"""The asyncio client."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Self

from sagastore import _convert as convert
from sagastore._arguments import checked
from sagastore._async_files import AsyncFileClient
from sagastore._async_migration import AsyncMigrationClient
from sagastore._async_reads import STREAM_TIMEOUT, AsyncReads
from sagastore._async_sessions import AsyncSessionClient
from sagastore._bulk import Batch, Batcher, BulkSender, Tally
from sagastore._call import Caller, History
from sagastore._consistency import Consistency
from sagastore._enums import Durability, OnConflict, Reads
from sagastore._ids import new_id
from sagastore._model import (
    BulkAck,
    BulkProgress,
    BulkResult,
    Message,
    SaveResult,
)
from sagastore._pool import Pool
from sagastore._retry import Deadline, RetryPolicy
from sagastore._target import Token, parse_targets, token_source
from sagastore._tls import TLS, Credentials
from sagastore._version import __version__
from sagastore.errors import (
    AbortedError,
    AlreadyExistsError,
    NotFoundError,
)
from sagastore.v1 import storage_pb2 as pb

__all__ = ["DEFAULT_TARGET", "AsyncClient"]

DEFAULT_TARGET = "127.0.0.1:50051"


class AsyncClient(AsyncReads):
    """A client of a SagaStore service, for asyncio.

    Use it as a context manager, or call `close`. It connects on first use and
    belongs to the event loop of that use; any number of tasks may share it. On
    another event loop, each method raises `WrongEventLoopError`.

    Every call is bounded by a timeout, retries included. Until then, calls that
    are safe to repeat are retried when the server is unavailable or overloaded,
    also before the first connection; see `RetryPolicy`. A wrong argument raises
    `InvalidArgumentError`, or its subclass `ArgumentTypeError`, before anything
    is sent. Besides the errors that a method documents, each method can raise
    `UnavailableError`, `ResourceExhaustedError`, `DeadlineExceededError`,
    `UnauthenticatedError`, `PermissionDeniedError` and `InternalError`. All are
    subclasses of `SagaStoreError`.

    Do not fork a process after using a client in it: gRPC does not support
    that. Create clients in the child process, or start child processes with
    `spawn`.

    Attributes:
        sessions: Reads and changes conversations as a whole.
        files: Stores and lists records about files.
        migration: Watches and controls a migration.
    """

    @checked
    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        tls: TLS | bool = False,
        token: Token | None = None,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
        reads: Reads | str = Reads.LATEST,
        coalesce: bool = True,
        allow_insecure_token: bool = False,
    ) -> None:
        """Create a client without connecting.

        Args:
            target: `HOST:PORT` or `unix:PATH`, or several of them (a sequence
                or a comma-separated string). Calls are balanced over all
                addresses, including those that one host name resolves to.
            tls: True, or a `TLS` with certificates; False for plain text.
            token: A bearer token to send with each call, or a function that
                returns it for each call, such as a `TokenFile`. Requires TLS or
                a server on this machine.
            timeout: Default timeout of a call in seconds, retries included;
                `math.inf` for no limit.
            retry: When failed calls are retried; None for the defaults of
                `RetryPolicy`.
            reads: The state that reads without `consistency` see. `session`: at
                least `position`, so that the client sees its own writes and
                never an older state than before, also on replicas; the latest
                state while it has no position.
            coalesce: Send concurrent saves together, and concurrent gets, so that
                many tasks need few requests. A call that is alone is not delayed.
                Each call keeps its own timeout, guard, errors and retries.
            allow_insecure_token: Send the token in plain text to other machines.

        Raises:
            InvalidArgumentError: An address is malformed, a number is out of
                range, a certificate or key cannot be used, or the token would
                cross a network in plain text.
        """
        addresses = parse_targets(target)
        settings = (TLS() if tls else None) if isinstance(tls, bool) else tls
        self._tls = None if settings is None else Credentials.read(settings)
        source = token_source(
            token, addresses, secure=self._tls is not None, allow_insecure=allow_insecure_token
        )
        pool = Pool(addresses, self._tls, source, f"sagastore-python/{__version__}")
        level = convert.member(Reads, reads, "reads")
        self._caller = Caller(pool, retry or RetryPolicy(), timeout, level, coalesce=coalesce)
        self.sessions = AsyncSessionClient(self._caller)
        self.files = AsyncFileClient(self._caller)
        self.migration = AsyncMigrationClient(self._caller)

    def __repr__(self) -> str:
        """Return a text with the addresses and without the token."""
        target = ",".join(a.text for a in self._caller.pool.addresses)
        return f"{type(self).__name__}({target!r}, tls={self._tls is not None})"

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls in progress fail. Can be called more than once."""
        await self._caller.pool.close()

    @property
    def position(self) -> str:
        """A position that covers every write that has returned and every state that was read.

        It is the newest one of all responses that the client has received. Pass it
        to another client or process as the `consistency` of a read, or to its
        `observe`. "" if there is none: the server tells no positions, or the outcome
        of the last call is not known. The latest state is then required.
        """
        return self._caller.positions.known

    @checked
    def observe(self, position: str) -> None:
        """Take note of the position of another client, as if this one had received it.

        With `reads="session"`, the following reads see at least that state. If the
        server refuses the position, because the store has moved to another
        PostgreSQL system, the client forgets it and reads the latest state.

        Everybody who shares this client waits for the position. Observe only
        positions that a server of this store has sent.

        Args:
            position: The `position` of a result or of a client. "" means that it is
                not known: the next read sees the latest state.

        Raises:
            InvalidArgumentError: The text is not a position.
        """
        self._caller.positions.note(position)

    @checked
    async def save(
        self,
        message: Message,
        *,
        if_revision: int | None = None,
        durability: Durability | str = Durability.PRIMARY,
        timeout: float | None = None,
    ) -> SaveResult:
        """Store one message durably.

        Idempotent by id: saving the same message again changes nothing, saving
        a different one replaces the stored message. The client assigns a
        missing id before the first attempt, so a retry cannot store the message
        twice.

        With `if_revision`, an attempt whose response was lost may already have
        changed the revision. If the server refuses a retry, the client
        therefore reads the message back. If it equals the message to save, the
        save has succeeded, even if another client stored the same values.

        Args:
            message: The message; `created_at` and `revision` are ignored.
            if_revision: 0 requires that the id is new. Another value must be
                the stored revision. None replaces any stored message.
            durability: The stores that must have the write before the call
                returns.
            timeout: Total seconds; None for the client's timeout.

        Returns:
            The stored id and revision. `created` can be False for a new message
            if the caller chose the id and the response to the first attempt was
            lost.

        Raises:
            InvalidArgumentError: The message is invalid; `violations` lists
                every problem.
            AlreadyExistsError: `if_revision` is 0 and the id exists.
            AbortedError: `if_revision` is not the stored revision.
            UnavailableError: Also if `Durability.BOTH` is not reached in time;
                the write then remains in the store that has it.
        """
        id = message.id or new_id()
        request = pb.SaveRequest(
            message=convert.message_to_pb(message, id),
            durability=pb.Durability.ValueType(
                convert.member(Durability, durability, "durability")
            ),
        )
        if if_revision is not None:
            _set_revision(request, if_revision)
        deadline = self._caller.deadline(timeout)
        history = History()
        try:
            response = await self._save(request, deadline, history)
        except (AlreadyExistsError, AbortedError):
            confirmed = await self._own_write(request, deadline) if history.uncertain else None
            if confirmed is None:
                raise
            return convert.save_result(confirmed, created=if_revision == 0)
        return convert.save_result(response, created=None if message.id else True)

    async def _save(
        self, request: pb.SaveRequest, deadline: Deadline, history: History | None = None
    ) -> pb.SaveResponse:
        return await self._caller.unary(
            "Save",
            lambda e: e.storage.Save,
            request,
            deadline,
            history=history,
            shared=self._caller.saves,
        )

    async def _own_write(
        self, request: pb.SaveRequest, deadline: Deadline
    ) -> pb.SaveResponse | None:
        """Return the result of a conditional save whose response was lost, or None.

        Saving the stored message again under its revision changes nothing and
        returns the stores in which it is durable. The read sees the latest state:
        a replica may be older than the refusal.
        """
        sent = request.message
        try:
            stored = await self._get(sent.id, deadline, Consistency.LATEST)
            if not convert.same_message(sent, stored):
                return None
            again = pb.SaveRequest(
                message=sent, if_revision=stored.revision, durability=request.durability
            )
            return await self._save(again, deadline)
        except (NotFoundError, AbortedError):
            return None

    @checked
    async def bulk_save(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        on_conflict: OnConflict | str = OnConflict.REPLACE,
        keep_created_at: bool = False,
        batch_size: int = 1000,
        max_in_flight: int = 4,
        on_progress: Callable[[BulkProgress], object] | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> BulkResult:
        """Store any number of messages in batches.

        Memory use does not depend on the number of messages, except for the
        list of rejected ones; use `bulk_save_stream` if that list may be long.
        The guarantees are those of `bulk_save_stream`.

        Args:
            messages: The messages, in order.
            on_conflict: What to do with a message whose id is already stored.
            keep_created_at: Whether an id that is new gets the `created_at` of
                its message, if it has one, for an import or a restore.
            batch_size: Messages per batch, 1 to 1000.
            max_in_flight: Maximum number of batches without acknowledgement.
            on_progress: Called with the counts after each acknowledgement.
            timeout: Maximum seconds between acknowledgements, retries included.

        Raises:
            SagaStoreError: The messages cannot be saved. Acknowledged messages
                are durable; saving all messages again is safe.
        """
        tally = Tally()
        acks = self.bulk_save_stream(
            messages,
            on_conflict=on_conflict,
            keep_created_at=keep_created_at,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            timeout=timeout,
        )
        async with aclosing(acks):
            async for ack in acks:
                progress = tally.add(ack)
                if on_progress is not None:
                    on_progress(progress)
        return tally.result()

    @checked
    async def bulk_save_stream(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        on_conflict: OnConflict | str = OnConflict.REPLACE,
        keep_created_at: bool = False,
        batch_size: int = 1000,
        max_in_flight: int = 4,
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncGenerator[BulkAck, None]:
        """Store any number of messages; yield the result of each batch once it is durable.

        - Results come in input order without gaps: all messages before
          `first_position + count` of the last result are processed.
        - If the connection breaks, the client resends the batches without an
          acknowledgement.
        - The client assigns missing ids.
        - Invalid messages are reported as rejected and do not affect others.

        The client sends a batch when it has `batch_size` messages or about
        2 MiB, so this method is for bulk loads, not for single messages that
        arrive over time. A plain iterable is read on the event loop; pass an
        async iterable if reading may block.

        Args:
            messages: The messages, in order.
            on_conflict: What to do with a message whose id is already stored.
            keep_created_at: Whether an id that is new gets the `created_at` of
                its message, if it has one, for an import or a restore.
            batch_size: Messages per batch, 1 to 1000.
            max_in_flight: Maximum number of batches without acknowledgement.
            timeout: Maximum seconds between acknowledgements, retries included.

        Raises:
            SagaStoreError: The batches in flight cannot be saved. Whether they
                are stored is unknown; saving them again is safe.
            ArgumentTypeError: An item is not a Message.
        """
        batcher = Batcher(batch_size, on_conflict, keep_created_at=keep_created_at)
        sender = await self._bulk_sender(max_in_flight, timeout)
        try:
            async with aclosing(_batches(batcher, messages)) as batches:
                async for batch in batches:
                    for ack in await sender.exchange(batch):
                        yield ack
            while sender.in_flight:
                for ack in await sender.drain():
                    yield ack
            await sender.finish()
        finally:
            await sender.close()

    async def _bulk_sender(self, max_in_flight: int, timeout: float) -> BulkSender:
        return BulkSender(self._caller, max_in_flight, timeout)

    @checked
    async def delete(
        self, id: str, *, if_revision: int | None = None, timeout: float | None = None
    ) -> None:
        """Delete one message.

        An attempt whose response was lost may have deleted the message. If a
        retry does not find it, the deletion has therefore succeeded.

        Args:
            id: The message's id.
            if_revision: Must be the stored revision; None for any.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            NotFoundError: No message has the id.
            AbortedError: `if_revision` is not the stored revision.
            InvalidArgumentError: The id is empty or too long, or `if_revision`
                is not greater than 0.
        """
        request = pb.DeleteRequest(id=id)
        if if_revision is not None:
            _set_revision(request, if_revision)
        history = History()
        try:
            await self._caller.unary(
                "Delete",
                lambda e: e.storage.Delete,
                request,
                self._caller.deadline(timeout),
                history=history,
            )
        except NotFoundError:
            if not history.uncertain:
                raise


def _set_revision(request: pb.SaveRequest | pb.DeleteRequest, revision: int) -> None:
    request.if_revision = revision


async def _batches(
    batcher: Batcher, messages: Iterable[Message] | AsyncIterable[Message]
) -> AsyncGenerator[Batch, None]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            if (batch := batcher.add(message)) is not None:
                yield batch
    else:
        for message in messages:
            if (batch := batcher.add(message)) is not None:
                yield batch
    if (batch := batcher.flush()) is not None:
        yield batch
