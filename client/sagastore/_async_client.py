"""The client for asyncio."""

# A timeout here goes with the call to the server, or spans several calls.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Self

from sagastore import _convert as convert
from sagastore._async_migration import AsyncMigrationClient
from sagastore._async_reads import STREAM_TIMEOUT, AsyncReads
from sagastore._bulk import Batch, Batcher, BulkSender, Tally
from sagastore._call import Caller, History
from sagastore._enums import Durability, OnConflict
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
from sagastore._target import TLS, Token, parse_targets, token_source
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

    Use it as a context manager, or call `close`. It connects on first use, and
    belongs to the event loop of that use; any number of tasks may share it.

    Every call is bounded by a timeout, retries included. What may be repeated
    safely is repeated when the server is unavailable or overloaded; see
    `RetryPolicy`. Besides the errors that a method names, each can raise
    `UnavailableError`, `ResourceExhaustedError`, `DeadlineExceededError`,
    `UnauthenticatedError`, `PermissionDeniedError` and `InternalError`, which
    are all `SagaStoreError`.

    Do not fork a process after a client was used in it; gRPC does not survive
    that. Make clients in the child, or start children by `spawn`.

    Attributes:
        migration: What operators use to watch and steer a migration.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        tls: TLS | bool = False,
        token: Token | None = None,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
        allow_insecure_token: bool = False,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            target: `HOST:PORT`, or several (a sequence, or joined by commas),
                among which calls are balanced. A name with several addresses is
                balanced as well. `unix:PATH` works, too.
            tls: True, or a `TLS` with certificates; False: plain text.
            token: A bearer token to send with each call, or a function that
                returns it each time, as a `TokenFile` is. Only over TLS or to
                this machine.
            timeout: Seconds for each call, retries included, where the call
                names none; `math.inf` for no limit.
            retry: How often failed calls are repeated; None: the defaults of
                `RetryPolicy`.
            allow_insecure_token: Send the token in plain text to other machines.

        Raises:
            ValueError: An address is malformed, a number is out of range, or
                the token would cross a network in plain text.
        """
        addresses = parse_targets(target)
        self._tls = (TLS() if tls else None) if isinstance(tls, bool) else tls
        source = token_source(
            token, addresses, secure=self._tls is not None, allow_insecure=allow_insecure_token
        )
        pool = Pool(addresses, self._tls, source, f"sagastore-python/{__version__}")
        self._caller = Caller(pool, retry or RetryPolicy(), timeout)
        self.migration = AsyncMigrationClient(self._caller)

    def __repr__(self) -> str:
        """Return the addresses; never the token."""
        target = ",".join(a.text for a in self._caller.pool.addresses)
        return f"{type(self).__name__}({target!r}, tls={self._tls is not None})"

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls under way fail. Safe to repeat."""
        await self._caller.pool.close()

    async def save(
        self,
        message: Message,
        *,
        if_revision: int | None = None,
        durability: Durability = Durability.PRIMARY,
        timeout: float | None = None,
    ) -> SaveResult:
        """Store one message, durably.

        Idempotent by id: the same message again changes nothing, a different
        one replaces what is stored. A message without an id is given one before
        it is sent, so that a repeated attempt cannot store it twice.

        With `if_revision`, an attempt whose outcome was lost may have been the
        one that moved the revision on. Where a repeated attempt is refused, the
        message is therefore read back: if it is the one that was to be saved,
        the save has succeeded. (If somebody else saved the very same values
        just then, that counts as ours.)

        Args:
            message: What to store; `created_at` and `revision` are ignored.
            if_revision: 0: the id must be new. Another value: must be the
                stored revision. None: whatever is stored is replaced.
            durability: When the write counts as done.
            timeout: Seconds in all; None: the client's timeout.

        Returns:
            The id and the revision stored. `created` can be False for a message
            that is new if the answer to the first attempt was lost and the id
            was the caller's own.

        Raises:
            InvalidArgumentError: The message breaks a rule; `violations` names
                every one.
            AlreadyExistsError: `if_revision` is 0 and the id exists.
            AbortedError: `if_revision` is not the stored revision.
            UnavailableError: Also where `Durability.BOTH` cannot be had in
                time; the write then stays where it is durable.
        """
        id = message.id or new_id()
        request = pb.SaveRequest(
            message=convert.message_to_pb(message, id),
            durability=pb.Durability.ValueType(durability),
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
            "Save", lambda e: e.storage.Save, request, deadline, history=history
        )

    async def _own_write(
        self, request: pb.SaveRequest, deadline: Deadline
    ) -> pb.SaveResponse | None:
        """Return the result of a guarded save that happened unseen, or None.

        Saving the stored message once more under its revision changes nothing,
        and says where it is durable.
        """
        sent = request.message
        try:
            stored = await self._get(sent.id, deadline)
            if not convert.same_message(sent, stored):
                return None
            again = pb.SaveRequest(
                message=sent, if_revision=stored.revision, durability=request.durability
            )
            return await self._save(again, deadline)
        except (NotFoundError, AbortedError):
            return None

    async def bulk_save(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        on_conflict: OnConflict = OnConflict.REPLACE,
        batch_size: int = 1000,
        max_in_flight: int = 4,
        on_progress: Callable[[BulkProgress], object] | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> BulkResult:
        """Store any number of messages, in batches.

        Memory stays flat however many there are, but for the list of rejected
        ones; use `bulk_save_stream` where that may be long. See there for
        everything else.

        Args:
            messages: The messages, in order.
            on_conflict: What happens to ids that are stored already.
            batch_size: Messages in a batch, 1 to 1000.
            max_in_flight: Batches sent and not acknowledged yet, at most.
            on_progress: Called with the counts after each acknowledgement.
            timeout: Seconds without any acknowledgement after which it gives up.

        Raises:
            SagaStoreError: The messages cannot be saved. Those acknowledged
                before are durable; saving all of them again is safe.
        """
        tally = Tally()
        acks = self.bulk_save_stream(
            messages,
            on_conflict=on_conflict,
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

    async def bulk_save_stream(
        self,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        on_conflict: OnConflict = OnConflict.REPLACE,
        batch_size: int = 1000,
        max_in_flight: int = 4,
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncGenerator[BulkAck, None]:
        """Store any number of messages; yield the outcome of each batch once it is durable.

        Outcomes come in the order of the input and leave no message out, so
        that everything before `first_position + count` of the last one is
        dealt with. When the connection breaks, the batches that are not
        acknowledged are sent again. Messages without an id are given one.
        Messages that break a rule are reported as rejected and spoil nothing
        else.

        Batches are full before they are sent, but for the last one (and are cut
        at about 2 MiB): this is for loads, not for a trickle. A plain iterable
        is read on the event loop; give an async one where reading may block.

        Args:
            messages: The messages, in order.
            on_conflict: What happens to ids that are stored already.
            batch_size: Messages in a batch, 1 to 1000.
            max_in_flight: Batches sent and not acknowledged yet, at most.
            timeout: Seconds without any acknowledgement after which it gives up.

        Raises:
            SagaStoreError: The batches in flight cannot be saved. They may be
                stored or not; saving them again is safe.
            TypeError: An item is not a Message.
        """
        batcher = Batcher(batch_size, on_conflict)
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

    async def delete(
        self, id: str, *, if_revision: int | None = None, timeout: float | None = None
    ) -> None:
        """Remove one message.

        An attempt whose outcome was lost may have removed it: where a repeated
        attempt finds nothing, the removal has succeeded.

        Args:
            id: The message's id.
            if_revision: Must be the stored revision; None: whatever it is.
            timeout: Seconds in all; None: the client's timeout.

        Raises:
            NotFoundError: No message has the id.
            AbortedError: `if_revision` is not the stored revision.
            InvalidArgumentError: The id is empty or too long, or `if_revision`
                is not greater than 0.
        """
        with convert.naming("id"):
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
    with convert.naming("if_revision"):
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
