"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

from sagastore._async_client import DEFAULT_TARGET, AsyncClient
from sagastore._async_reads import STREAM_TIMEOUT
from sagastore._bulk import Batch, Batcher, Tally
from sagastore._enums import Durability, OnConflict, Order, ServingStatus
from sagastore._model import (
    BatchGetResult,
    BulkAck,
    BulkProgress,
    BulkResult,
    ExportBatch,
    Message,
    SaveResult,
    SearchResult,
)
from sagastore._paging import Pager
from sagastore._portal import get_portal
from sagastore._retry import RetryPolicy
from sagastore._sync_migration import MigrationClient
from sagastore._target import TLS, Token

__all__ = ["Client"]


class Client:
    """A client of a SagaStore service that blocks until it has the answer.

    The methods are those of `AsyncClient`, where limits and errors are
    described. Use it as a context manager, or call `close`. Threads may share
    it; an iterator that a method returns belongs to one thread at a time.

    The work is done by an `AsyncClient` on a background thread, one for all
    clients of the process; so this can be used where an event loop is running
    already, which then waits like everything else in its thread.

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
        self._async = AsyncClient(
            target,
            tls=tls,
            token=token,
            timeout=timeout,
            retry=retry,
            allow_insecure_token=allow_insecure_token,
        )
        self._portal = get_portal()
        self._portal.close_at_exit(self._async)
        self.migration = MigrationClient(self._async.migration, self._portal)

    def __repr__(self) -> str:
        """Return the addresses; never the token."""
        return repr(self._async).removeprefix("Async")

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close the connections; calls under way fail. Safe to repeat."""
        if self._portal.alive:
            self._portal.run(self._async.close())

    def save(
        self,
        message: Message,
        *,
        if_revision: int | None = None,
        durability: Durability = Durability.PRIMARY,
        timeout: float | None = None,
    ) -> SaveResult:
        """Store one message, durably; see `AsyncClient.save`."""
        return self._portal.run(
            self._async.save(
                message, if_revision=if_revision, durability=durability, timeout=timeout
            )
        )

    def get(self, id: str, *, timeout: float | None = None) -> Message:
        """Read one message; see `AsyncClient.get`."""
        return self._portal.run(self._async.get(id, timeout=timeout))

    def batch_get(self, ids: Iterable[str], *, timeout: float | None = None) -> BatchGetResult:
        """Read any number of messages by id; see `AsyncClient.batch_get`."""
        # Read here: the caller's iterable belongs to the caller's thread.
        wanted = ids if isinstance(ids, str) else tuple(ids)
        return self._portal.run(self._async.batch_get(wanted, timeout=timeout))

    def list(
        self,
        session_id: str,
        *,
        newest_first: bool = False,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> Pager[Message]:
        """List the messages of one session; see `AsyncClient.list`."""
        pager = self._async.list(
            session_id,
            newest_first=newest_first,
            page_size=page_size,
            page_token=page_token,
            timeout=timeout,
        )
        return Pager(lambda token: self._portal.run(pager.page(token)))

    def search(
        self,
        query: str = "",
        *,
        tags: Iterable[str] = (),
        provider: str = "",
        role: str = "",
        session_id: str | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        order: Order = Order.RELEVANCE,
        page_size: int = 0,
        page_token: str = "",
        timeout: float | None = None,
    ) -> Pager[SearchResult]:
        """Find messages; see `AsyncClient.search`."""
        pager = self._async.search(
            query,
            tags=tags,
            provider=provider,
            role=role,
            session_id=session_id,
            start=start,
            end=end,
            metadata=metadata,
            order=order,
            page_size=page_size,
            page_token=page_token,
            timeout=timeout,
        )
        return Pager(lambda token: self._portal.run(pager.page(token)))

    def bulk_save(
        self,
        messages: Iterable[Message],
        *,
        on_conflict: OnConflict = OnConflict.REPLACE,
        batch_size: int = 1000,
        max_in_flight: int = 4,
        on_progress: Callable[[BulkProgress], object] | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> BulkResult:
        """Store any number of messages, in batches; see `AsyncClient.bulk_save`.

        The messages are read, and `on_progress` is called, in the calling
        thread.
        """
        tally = Tally()
        for ack in self.bulk_save_stream(
            messages,
            on_conflict=on_conflict,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            timeout=timeout,
        ):
            progress = tally.add(ack)
            if on_progress is not None:
                on_progress(progress)
        return tally.result()

    def bulk_save_stream(
        self,
        messages: Iterable[Message],
        *,
        on_conflict: OnConflict = OnConflict.REPLACE,
        batch_size: int = 1000,
        max_in_flight: int = 4,
        timeout: float = STREAM_TIMEOUT,
    ) -> Generator[BulkAck, None, None]:
        """Store any number of messages; yield the outcome of each batch.

        See `AsyncClient.bulk_save_stream`. The messages are read in the calling
        thread.
        """
        run = self._portal.run
        batcher = Batcher(batch_size, on_conflict)
        sender = run(self._async._bulk_sender(max_in_flight, timeout))
        try:
            for batch in _batches(batcher, messages):
                yield from run(sender.exchange(batch))
            while sender.in_flight:
                yield from run(sender.drain())
            run(sender.finish())
        finally:
            self._portal.release(sender.close())

    def delete(
        self, id: str, *, if_revision: int | None = None, timeout: float | None = None
    ) -> None:
        """Remove one message; see `AsyncClient.delete`."""
        self._portal.run(self._async.delete(id, if_revision=if_revision, timeout=timeout))

    def export(
        self, *, resume_token: str = "", batch_size: int = 0, timeout: float = STREAM_TIMEOUT
    ) -> Iterator[Message]:
        """Yield every message, ordered by id; see `AsyncClient.export`."""
        for batch in self.export_batches(
            resume_token=resume_token, batch_size=batch_size, timeout=timeout
        ):
            yield from batch.messages

    def export_batches(
        self, *, resume_token: str = "", batch_size: int = 0, timeout: float = STREAM_TIMEOUT
    ) -> Iterator[ExportBatch]:
        """Yield every message in batches; see `AsyncClient.export_batches`."""
        return self._portal.iterate(
            self._async.export_batches(
                resume_token=resume_token, batch_size=batch_size, timeout=timeout
            )
        )

    def health(self, service: str = "", *, timeout: float | None = None) -> ServingStatus:
        """Ask the server how it is; see `AsyncClient.health`."""
        return self._portal.run(self._async.health(service, timeout=timeout))


def _batches(batcher: Batcher, messages: Iterable[Message]) -> Iterator[Batch]:
    for message in messages:
        if (batch := batcher.add(message)) is not None:
            yield batch
    if (batch := batcher.flush()) is not None:
        yield batch
