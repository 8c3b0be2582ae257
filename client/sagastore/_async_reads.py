"""The read methods of the asyncio client."""

# Timeouts are sent to the server or span several calls; `asyncio.timeout` cannot replace them.
# ruff: noqa: ASYNC109

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sagastore import _convert as convert
from sagastore import _json, _wire
from sagastore._arguments import checked
from sagastore._async_paging import AsyncPager
from sagastore._consistency import Consistency, covering, with_consistency
from sagastore._enums import Order, ServingStatus
from sagastore._model import BatchGetResult, ExportBatch, Message, Page, SearchResult
from sagastore._retry import Deadline
from sagastore.errors import InvalidArgumentError, ResourceExhaustedError
from sagastore.v1 import storage_pb2 as pb

if TYPE_CHECKING:
    from sagastore._call import Caller
    from sagastore.v1 import message_pb2

__all__ = ["STREAM_TIMEOUT", "AsyncReads", "batch_get", "chosen", "exported", "with_token"]

STREAM_TIMEOUT = 60.0
"""Seconds without progress."""

_MAX_IDS = 1000


class AsyncReads:
    """The read methods of `AsyncClient`."""

    _caller: Caller

    @checked
    async def get(
        self,
        id: str,
        *,
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Read one message.

        Args:
            id: The message's id.
            consistency: Which state the read must see; None: as `reads` of the client.
            timeout: Total seconds; None for the client's timeout.

        Raises:
            NotFoundError: No message has the id.
            InvalidArgumentError: The id is empty or too long.
        """
        found = await self._get(id, self._caller.deadline(timeout), chosen(consistency))
        return convert.message_from_pb(found)

    async def _get(
        self, id: str, deadline: Deadline, consistency: Consistency | None
    ) -> message_pb2.Message:
        response = await self._caller.read(
            "Get",
            lambda e: e.storage.Get,
            pb.GetRequest(id=id),
            deadline,
            consistency,
            shared=self._caller.gets,
        )
        return response.message

    @checked
    async def batch_get(
        self,
        ids: Iterable[str],
        *,
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> BatchGetResult:
        """Read any number of messages by id, in the order of the ids.

        Unknown ids are listed in the result and are not an error. More than
        1000 ids take several calls.

        Args:
            ids: The ids. A repeated id returns its message repeatedly.
            consistency: Which state the read must see; None: as `reads` of the client.
            timeout: Total seconds for all calls; None for the client's timeout.

        Raises:
            InvalidArgumentError: An id is empty or too long.
        """
        wanted = tuple(ids)
        deadline = self._caller.deadline(timeout)
        messages: list[Message] = []
        missing: list[str] = []
        positions: list[str] = []
        for start in range(0, len(wanted), _MAX_IDS):
            some = wanted[start : start + _MAX_IDS]
            for part in await batch_get(self._caller, some, deadline, chosen(consistency)):
                messages += map(convert.message_from_pb, part.messages)
                missing += part.missing_ids
                positions.append(part.position)
        return BatchGetResult(tuple(messages), tuple(missing), covering(positions))

    @checked
    def list(
        self,
        session_id: str,
        *,
        newest_first: bool = False,
        page_size: int = 0,
        page_token: str = "",
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> AsyncPager[Message]:
        """List the messages of one session by time, then by sequence.

        Args:
            session_id: The session. "" is the session whose id is empty, not
                the messages without a session.
            newest_first: True for newest first, False for oldest first.
            page_size: Messages per page: 0 means 50, above 500 means 500.
            page_token: Where to start: the `next_page_token` of a page.
            consistency: Which state each page must see; None: as `reads` of the client.
            timeout: Seconds for each page; None for the client's timeout.

        Raises:
            InvalidArgumentError: The session id is too long, the page size is
                negative, or the token belongs to another request.
        """
        request = pb.ListRequest(
            session_id=session_id, newest_first=newest_first, page_size=page_size
        )

        async def fetch(token: str) -> Page[Message]:
            response = await self._caller.read(
                "List",
                lambda e: e.storage.List,
                with_token(request, token),
                self._caller.deadline(timeout),
                chosen(consistency),
            )
            return convert.message_page(response)

        return AsyncPager(fetch, page_token)

    @checked
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
        order: Order | str = Order.RELEVANCE,
        page_size: int = 0,
        page_token: str = "",
        consistency: Consistency | str | None = None,
        timeout: float | None = None,
    ) -> AsyncPager[SearchResult]:
        """Find the messages that match all conditions.

        Args:
            query: Words that must all be in the content; `"a phrase"`;
                `-excluded`; `prefix*`; the upper-case operators `AND`, `OR` and
                `NOT` with parentheses. `NOT` binds closest, `OR` loosest. Case,
                accents and English endings are ignored. Any text is a valid
                query. An empty query matches all messages.
            tags: Tags that the message must have.
            provider: The provider; "" for any.
            role: The role; "" for any.
            session_id: The session; None for any.
            start: The earliest timestamp, inclusive.
            end: The latest timestamp, exclusive.
            metadata: Values that the metadata must contain: `{"a": 1}` is
                contained in `{"a": 1, "b": 2}`.
            order: The order of the results.
            page_size: Results per page: 0 means 50, above 500 means 500.
            page_token: Where to start: the `next_page_token` of a page.
            consistency: Which state each page must see; None: as `reads` of the client.
            timeout: Seconds for each page; None for the client's timeout.

        Raises:
            InvalidArgumentError: A value is too long or cannot be encoded, the
                page size is negative, or the token belongs to another request.
        """
        with convert.naming("metadata"):
            contained = _json.dumps(metadata) if metadata else ""
        request = pb.SearchRequest(
            query=query,
            tags=tags,
            provider=provider,
            role=role,
            session_id=session_id,
            start_time=None if start is None else convert.timestamp_to_pb(start, "start"),
            end_time=None if end is None else convert.timestamp_to_pb(end, "end"),
            metadata_json=contained,
            page_size=page_size,
            order=pb.Order.ValueType(convert.member(Order, order, "order")),
        )

        async def fetch(token: str) -> Page[SearchResult]:
            response = await self._caller.read(
                "Search",
                lambda e: e.storage.Search,
                with_token(request, token),
                self._caller.deadline(timeout),
                chosen(consistency),
            )
            return convert.search_page(response)

        return AsyncPager(fetch, page_token)

    @checked
    async def export(
        self,
        *,
        resume_token: str = "",
        batch_size: int = 0,
        consistency: Consistency | str | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncGenerator[Message, None]:
        """Yield every message, ordered by the UTF-8 bytes of the id.

        Every message that exists at the start and is not deleted during the
        export is yielded exactly once, even if the connection breaks. Writers
        are not blocked.

        Args:
            resume_token: Where to start: the `resume_token` of a batch.
            batch_size: Messages per batch: 0 means 500, above 1000 means 1000.
            consistency: Which state the export must see; None: as `reads` of the client.
            timeout: Maximum seconds between responses, retries included.

        Raises:
            InvalidArgumentError: The token is not from an export, or the batch
                size is negative.
        """
        batches = self.export_batches(
            resume_token=resume_token,
            batch_size=batch_size,
            consistency=consistency,
            timeout=timeout,
        )
        async with aclosing(batches):
            async for batch in batches:
                for message in batch.messages:
                    yield message

    @checked
    async def export_batches(
        self,
        *,
        resume_token: str = "",
        batch_size: int = 0,
        consistency: Consistency | str | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> AsyncGenerator[ExportBatch, None]:
        """Yield every message as `export` does, in batches with their resume tokens.

        Args:
            resume_token: Where to start: the `resume_token` of a batch.
            batch_size: Messages per batch: 0 means 500, above 1000 means 1000.
            consistency: Which state the export must see; None: as `reads` of the client.
            timeout: Maximum seconds between responses, retries included.

        Raises:
            InvalidArgumentError: The token is not from an export, or the batch
                size is negative.
        """
        start = pb.ExportRequest(resume_token=resume_token, batch_size=batch_size)
        responses = exported(self._caller, start, timeout, chosen(consistency))
        async with aclosing(responses):
            async for response in responses:
                yield convert.export_batch(response)

    @checked
    async def health(self, service: str = "", *, timeout: float | None = None) -> ServingStatus:
        """Return the health of a service. Never retried: the result is about this moment.

        Args:
            service: Full name of a service, for example
                `sagastore.v1.StorageService`; "" for the whole server.
            timeout: Seconds; None for the client's timeout.

        Raises:
            NotFoundError: The server does not know the service.
            UnavailableError: The server cannot be reached.
        """
        request = _wire.message_class("grpc.health.v1.HealthCheckRequest")(service=service)
        response = await self._caller.unary(
            "Check", lambda e: e.health, request, self._caller.deadline(timeout), retry=False
        )
        return ServingStatus(response.status)


async def batch_get(
    caller: Caller, ids: Sequence[str], deadline: Deadline, consistency: Consistency | None
) -> Sequence[pb.BatchGetResponse]:
    """Read up to 1000 messages; several responses if they do not fit into one."""
    request = pb.BatchGetRequest(ids=ids)
    try:
        found = await caller.read(
            "BatchGet", lambda e: e.storage.BatchGet, request, deadline, consistency
        )
        return (found,)
    except ResourceExhaustedError as error:
        # Too large for one response: a message can have a megabyte.
        if len(ids) == 1 or not error.too_large:
            raise
    half = len(ids) // 2
    left = await batch_get(caller, ids[:half], deadline, consistency)
    right = await batch_get(caller, ids[half:], deadline, consistency)
    return (*left, *right)


async def exported(
    caller: Caller, start: pb.ExportRequest, timeout: float, consistency: Consistency | None
) -> AsyncGenerator[pb.ExportResponse, None]:
    """Yield the responses of an export; a broken stream continues after the last one.

    A remembered position that the server refuses is handled as by `Caller.read`.
    """
    request = pb.ExportRequest()
    request.CopyFrom(start)
    required = Consistency.LATEST

    def following() -> pb.ExportRequest:
        nonlocal required
        required = caller.positions.requirement(consistency)
        made: pb.ExportRequest = with_consistency(request, required)
        return made

    while True:
        responses = caller.stream("Export", lambda e: e.storage.Export, following, timeout)
        try:
            async with aclosing(responses):
                async for response in responses:
                    request.resume_token = response.resume_token
                    yield response
            return
        except InvalidArgumentError as error:
            if consistency is not None or not caller.positions.forget(required, error):
                raise
            consistency = Consistency.LATEST


def chosen(consistency: Consistency | str | None) -> Consistency | None:
    """Return the argument of a public method, which `checked` has converted."""
    return Consistency(consistency) if isinstance(consistency, str) else consistency


def with_token(request: Any, token: str) -> Any:
    """Return the request for one page: a copy if the token differs."""
    if request.page_token == token:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.page_token = token
    return copy
