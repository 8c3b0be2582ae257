"""StorageService: the servicer of sagastore/v1/storage.proto, over any `StorageBackend`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from sagastore.v1 import storage_pb2
from sagastore_server.interfaces.errors import SearchTooLongError
from sagastore_server.rpc import batch_save, consistency, convert, page_tokens, requests
from sagastore_server.rpc.bulk import BulkStream, Request
from sagastore_server.rpc.handlers import Reserve, TimeLeft, sized, timed
from sagastore_server.rpc.ids import IdSource
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.offload import parsed
from sagastore_server.rpc.wire import InvalidText
from sagastore_server.runtime.worker_pool import SHORT, WorkerPool
from sagastore_server.search.pager import Cursor, InvalidCursorError, search_page
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import ResponseTooLargeError
from sagastore_server.storage.model import Message, Position
from sagastore_server.storage.query import Hit, Scan

MAX_BATCH_GET_BYTES = 64 * 1024 * 1024
"""Size of a BatchGet response. Clients raise their own limit to receive more than 4 MiB."""

_DURABILITY_TIMEOUT = 30.0
"""Seconds to wait for every store in a call without a deadline."""

_RESPONSE_RESERVE = 0.2
"""Seconds before the deadline that are kept for the response, and at most that share of the time
left: a caller that has waited for every store gets UNAVAILABLE instead of DEADLINE_EXCEEDED."""

_NON_ASCII_COST = 8
"""Time to analyse a non-ASCII character with its position, relative to an ASCII one: 0.9 to 3
microseconds against 0.2, measured on Cyrillic and Chinese."""

T = TypeVar("T")

_IDS_PER_READ = 25
"""Ids of a BatchGet per read. A part of the response has at most 150 MiB, and real ones a few
kilobytes."""

_PART_BYTES = 4 * 1024 * 1024
"""Bytes of a response that are built at a time, which takes about 5 ms."""

_BATCH_READS = 4
"""Reads of BatchGets at a time, which bounds the memory beyond the responses."""


_SEARCHES = 16
"""Searches at a time; others wait, within their time limit. The stores run fewer: this bounds the
matches that wait for their snippets, of up to 3 MiB for each search."""


class StorageServicer:
    """Implements each RPC as the method of its name; `handlers` connects it to gRPC."""

    def __init__(
        self,
        backend: StorageBackend,
        lifecycle: Lifecycle,
        worker_pool: WorkerPool,
        *,
        search_timeout: float = 10.0,
    ) -> None:
        """Serve from ``backend``, which must be open once ``lifecycle`` accepts calls.

        Large batches and long texts are processed in ``worker_pool``. A search is stopped after
        ``search_timeout`` seconds.
        """
        self._backend = backend
        self._lifecycle = lifecycle
        self._worker_pool = worker_pool
        self._ids = IdSource()
        self._batch_reads = asyncio.Semaphore(_BATCH_READS)
        self._search_timeout = search_timeout
        self._searches = asyncio.Semaphore(_SEARCHES)

    @timed
    async def Save(
        self, request: storage_pb2.SaveRequest, time_left: TimeLeft
    ) -> storage_pb2.SaveResponse:
        """Store one message. With a single store, both durabilities mean that store."""
        new_id = "" if request.message.id else self._ids.new()
        cost = len(request.message.metadata_json)
        wanted = await parsed(self._worker_pool, cost, requests.save, request, new_id)
        draft, if_revision, on_all_stores = wanted
        within = durability_timeout(time_left()) if on_all_stores else None
        result = await self._backend.save(draft, if_revision, within)
        return convert.saved(result)

    @timed
    async def BatchSave(
        self, request: storage_pb2.BatchSaveRequest | InvalidText, time_left: TimeLeft
    ) -> storage_pb2.BatchSaveResponse:
        """Store several messages in one commit, each with its own outcome."""
        batch = await batch_save.parse(request, self._ids, self._worker_pool)
        return await batch_save.run(batch, self._backend, durability_timeout(time_left()))

    async def Get(self, request: storage_pb2.GetRequest) -> storage_pb2.GetResponse:
        """Read one message."""
        found = await self._backend.get(requests.one_id(request.id))
        response = storage_pb2.GetResponse()
        convert.fill(response.message, found)
        return response

    @sized
    async def BatchGet(self, request: storage_pb2.BatchGetRequest, reserve: Reserve) -> bytes:
        """Read several messages, in the order of the requested ids.

        The response is serialized part by part, because all at once would hold the event loop.
        """
        ids = requests.batch_of_ids(request.ids)
        parts: list[bytes] = []
        size = 0
        for start in range(0, len(ids), _IDS_PER_READ):
            requested = ids[start : start + _IDS_PER_READ]
            async with self._batch_reads:
                found = await self._backend.batch_get(list(dict.fromkeys(requested)))
                async for part in _parts(requested, found):
                    parts.append(part)
                    size += len(part)
            if size > MAX_BATCH_GET_BYTES:
                raise ResponseTooLargeError(
                    f"the {len(ids):,} messages take more than {MAX_BATCH_GET_BYTES:,} bytes, "
                    "the limit of one response; request fewer at a time"
                )
            reserve(size)
        located = storage_pb2.BatchGetResponse(position=consistency.position_text())
        return b"".join((*parts, located.SerializeToString()))

    async def List(self, request: storage_pb2.ListRequest) -> storage_pb2.ListResponse:
        """Read a page of a session."""
        size = requests.list_page(request)
        key = page_tokens.request_key("List", request.session_id, request.newest_first)
        after = None
        if request.page_token:
            position = consistency.cursor_of(key, request.page_token, "page_token", (int, int))
            after = Position(*position)  # type: ignore[arg-type]
        scan = Scan(request.newest_first, size, after)
        page = await self._backend.list_session(request.session_id, scan)
        response = storage_pb2.ListResponse()
        _add(response, page.messages)
        if page.more:
            response.next_page_token = consistency.token_of(key, page.messages[-1].position)
        return response

    async def Search(self, request: storage_pb2.SearchRequest) -> storage_pb2.SearchResponse:
        """Read a page of matches."""
        cost = len(request.metadata_json) + len(request.query)
        wanted = await parsed(self._worker_pool, cost, requests.search, request)
        key = page_tokens.request_key("Search", *wanted.fingerprint(request.query))
        cursor = None
        if request.page_token:
            cursor = consistency.cursor_of(key, request.page_token, "page_token")
        hits, following = await self._search(wanted, cursor)
        response = storage_pb2.SearchResponse()
        for hit in hits:
            result = response.results.add(score=hit.score, snippet=hit.snippet)
            convert.fill(result.message, hit.message)
        if following is not None:
            response.next_page_token = consistency.token_of(key, following)
        return response

    async def _search(
        self, wanted: requests.Search, cursor: Cursor | None
    ) -> tuple[list[Hit], Cursor | None]:
        try:
            # The timeout also interrupts the statement in the store.
            async with asyncio.timeout(self._search_timeout) as limit, self._searches:
                return await search_page(
                    self._backend,
                    wanted.criteria,
                    wanted.order,
                    wanted.page_size,
                    cursor,
                    run=self._map,
                )
        except InvalidCursorError:
            page_tokens.reject("page_token")
        except TimeoutError:
            if not limit.expired():
                raise
            raise SearchTooLongError(
                f"the search was stopped after {self._search_timeout:g} seconds; use rarer words, "
                "or filter by session, tag or time"
            ) from None

    async def _map(
        self, function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
    ) -> list[T]:
        """Analyse texts, in the worker pool if they would block the event loop for too long."""
        if sum(_cost(one[-1]) for one in arguments) < SHORT:
            return [function(*one) for one in arguments]
        return await self._worker_pool.map(function, arguments)

    def BulkSave(
        self, requests: AsyncIterator[Request]
    ) -> AsyncIterator[storage_pb2.BulkSaveResponse]:
        """Store a stream of batches."""
        return BulkStream(self._backend, self._lifecycle, self._worker_pool).run(requests)

    async def Delete(self, request: storage_pb2.DeleteRequest) -> storage_pb2.DeleteResponse:
        """Remove one message."""
        await self._backend.delete(*requests.delete(request))
        return storage_pb2.DeleteResponse()

    async def Export(
        self, request: storage_pb2.ExportRequest
    ) -> AsyncIterator[storage_pb2.ExportResponse]:
        """Stream every message by sequence, up to the greatest one at the start of the export.

        Each batch is a separate query, made when the client has read the previous batch, so that
        a slow client holds no transaction and no connection.
        """
        size = requests.export_batch(request.batch_size)
        key = page_tokens.request_key("Export")
        if request.resume_token:
            cursor = consistency.cursor_of(key, request.resume_token, "resume_token", (int, int))
        else:
            cursor = (0, await self._backend.last_sequence())
        after: int
        upto: int
        after, upto = cursor  # type: ignore[assignment]  # cursor_of has checked the types
        while after < upto:
            page = await self._backend.scan_sequences(after, upto, size)
            if not page.messages:
                return
            after = page.messages[-1].sequence
            token = consistency.token_of(key, (after, upto))
            response = storage_pb2.ExportResponse(resume_token=token)
            _add(response, page.messages)
            yield response
            if not page.more:
                return
            if self._lifecycle.end_streams.is_set():
                raise self._lifecycle.refusal()


def durability_timeout(time_left: float | None) -> float:
    """Return the seconds to wait for every store."""
    if time_left is None:
        return _DURABILITY_TIMEOUT
    return time_left - min(_RESPONSE_RESERVE, time_left * _RESPONSE_RESERVE)


def _cost(text: str) -> int:
    """Return the time to analyse ``text``, in ASCII characters."""
    return len(text) if text.isascii() else _NON_ASCII_COST * len(text)


def _add(
    response: storage_pb2.ListResponse | storage_pb2.ExportResponse, messages: list[Message]
) -> None:
    for message in messages:
        convert.fill(response.messages.add(), message)


async def _parts(requested: Sequence[str], found: dict[str, Message]) -> AsyncIterator[bytes]:
    """Yield a BatchGetResponse in serialized parts, which joined are the whole.

    Other calls get their turn after each part of `_PART_BYTES`.
    """
    part = storage_pb2.BatchGetResponse()
    size = 0
    for message_id in requested:
        message = found.get(message_id)
        if message is None:
            part.missing_ids.append(message_id)
            continue
        convert.fill(part.messages.add(), message)
        size += message.size
        if size > _PART_BYTES:
            yield part.SerializeToString()
            await asyncio.sleep(0)
            part, size = storage_pb2.BatchGetResponse(), 0
    yield part.SerializeToString()
