"""StorageService: what sagastore/v1/storage.proto promises, over any backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from sagastore.v1 import storage_pb2
from sagastore_server.interfaces.errors import SearchTooLongError
from sagastore_server.rpc import convert, requests, tokens
from sagastore_server.rpc.bulk import BulkStream, Request
from sagastore_server.rpc.handlers import TimeLeft, timed
from sagastore_server.rpc.ids import IdSource
from sagastore_server.rpc.lifecycle import Lifecycle
from sagastore_server.rpc.offload import aside
from sagastore_server.search.pager import Cursor, InvalidCursorError, search_page
from sagastore_server.storage.base import StorageBackend
from sagastore_server.storage.errors import ResponseTooLargeError
from sagastore_server.storage.model import Message, Position
from sagastore_server.storage.query import Hit, Scan

MAX_BATCH_GET_BYTES = 64 * 1024 * 1024
"""Bytes of a BatchGet answer. Clients must raise their own limit to receive more than 4 MiB."""

_EVERYWHERE_SECONDS = 30.0
"""Seconds for which every store is waited for, in a call without a deadline."""

_FOR_THE_ANSWER = 0.2
"""Seconds kept for the answer, and no more than that share of what is left: who has waited
for every store is told UNAVAILABLE, not left with DEADLINE_EXCEEDED."""

_STRANGE = 8
"""How many times as long as a character of ASCII any other takes, with its place: 0.9 to 3
microseconds where that takes 0.2, in Cyrillic and in Chinese."""

T = TypeVar("T")

_IDS_AT_ONCE = 100
"""Ids of a BatchGet read in one go, which bounds what is in memory beyond the answer."""


class StorageServicer:
    """Serves the RPCs by their names; ``handlers`` connects it with gRPC."""

    def __init__(
        self, backend: StorageBackend, lifecycle: Lifecycle, *, search_timeout: float = 10.0
    ) -> None:
        """Serve from ``backend``, which may be opened later, before ``lifecycle`` is.

        A search is stopped after ``search_timeout`` seconds.
        """
        self._backend = backend
        self._lifecycle = lifecycle
        self._ids = IdSource()
        self._search_timeout = search_timeout

    @timed
    async def Save(
        self, request: storage_pb2.SaveRequest, time_left: TimeLeft
    ) -> storage_pb2.SaveResponse:
        """Store one message. With one store, both durabilities mean that store."""
        new_id = "" if request.message.id else self._ids.new()
        draft, if_revision, everywhere = requests.save(request, new_id)
        within = _everywhere_within(time_left()) if everywhere else None
        result = await self._backend.save(draft, if_revision, within)
        return storage_pb2.SaveResponse(
            id=result.id,
            revision=result.revision,
            created=result.created,
            durable_on=[convert.STORES[store] for store in result.durable_on],
        )

    async def Get(self, request: storage_pb2.GetRequest) -> storage_pb2.GetResponse:
        """Read one message."""
        found = await self._backend.get(requests.one_id(request.id))
        answer = storage_pb2.GetResponse()
        convert.fill(answer.message, found)
        return answer

    async def BatchGet(self, request: storage_pb2.BatchGetRequest) -> storage_pb2.BatchGetResponse:
        """Read several messages, in the order asked."""
        ids = requests.batch_of_ids(request.ids)
        answer = storage_pb2.BatchGetResponse()
        for start in range(0, len(ids), _IDS_AT_ONCE):
            asked = ids[start : start + _IDS_AT_ONCE]
            found = await self._backend.batch_get(list(dict.fromkeys(asked)))
            _add_found(answer, asked, found)
            if answer.ByteSize() > MAX_BATCH_GET_BYTES:
                raise ResponseTooLargeError(
                    f"the {len(ids):,} messages take more than {MAX_BATCH_GET_BYTES:,} bytes, "
                    "which is the limit of one answer; ask for fewer at a time"
                )
        return answer

    async def List(self, request: storage_pb2.ListRequest) -> storage_pb2.ListResponse:
        """Read a page of a session."""
        size = requests.list_page(request)
        key = tokens.request_key("List", request.session_id, request.newest_first)
        after = None
        if request.page_token:
            place = tokens.unseal(key, request.page_token, "page_token", (int, str))
            after = Position(*place)  # type: ignore[arg-type]
        scan = Scan(request.newest_first, size, after)
        page = await self._backend.list_session(request.session_id, scan)
        answer = storage_pb2.ListResponse()
        _add(answer, page.messages)
        if page.more:
            answer.next_page_token = tokens.seal(key, page.messages[-1].position)
        return answer

    async def Search(self, request: storage_pb2.SearchRequest) -> storage_pb2.SearchResponse:
        """Read a page of matches."""
        wanted = requests.search(request)
        key = tokens.request_key("Search", *wanted.fingerprint(request.query))
        cursor = None
        if request.page_token:
            cursor = tokens.unseal(key, request.page_token, "page_token")
        hits, following = await self._search(wanted, cursor)
        answer = storage_pb2.SearchResponse()
        for hit in hits:
            result = answer.results.add(score=hit.score, snippet=hit.snippet)
            convert.fill(result.message, hit.message)
        if following is not None:
            answer.next_page_token = tokens.seal(key, following)
        return answer

    async def _search(
        self, wanted: requests.Search, cursor: Cursor | None
    ) -> tuple[list[Hit], Cursor | None]:
        try:
            # What the store works on for it is interrupted when the time is over.
            async with asyncio.timeout(self._search_timeout) as limit:
                return await search_page(
                    self._backend,
                    wanted.criteria,
                    wanted.order,
                    wanted.page_size,
                    cursor,
                    run=_run_aside,
                )
        except InvalidCursorError:
            tokens.refuse("page_token")
        except TimeoutError:
            if not limit.expired():
                raise
            raise SearchTooLongError(
                f"the search took more than {self._search_timeout:g} seconds and was stopped; "
                "ask for rarer words, or for a session, a tag or a stretch of time as well"
            ) from None

    def BulkSave(
        self, requests: AsyncIterator[Request]
    ) -> AsyncIterator[storage_pb2.BulkSaveResponse]:
        """Store a stream of batches."""
        return BulkStream(self._backend, self._lifecycle).run(requests)

    async def Delete(self, request: storage_pb2.DeleteRequest) -> storage_pb2.DeleteResponse:
        """Remove one message."""
        await self._backend.delete(*requests.delete(request))
        return storage_pb2.DeleteResponse()

    async def Export(
        self, request: storage_pb2.ExportRequest
    ) -> AsyncIterator[storage_pb2.ExportResponse]:
        """Stream every message, by id, up to the greatest id there was at the beginning.

        Nothing is held between two batches: each is a query of its own, made
        when the consumer has taken the one before.
        """
        size = requests.export_batch(request.batch_size)
        key = tokens.request_key("Export")
        after, upto = "", await self._backend.last_id()
        if request.resume_token:
            place = tokens.unseal(key, request.resume_token, "resume_token", (str, str))
            after, upto = map(str, place)
        while upto is not None and after < upto:
            page = await self._backend.scan_ids(after, upto, size)
            if not page.messages:
                return
            after = page.messages[-1].id
            answer = storage_pb2.ExportResponse(resume_token=tokens.seal(key, (after, upto)))
            _add(answer, page.messages)
            yield answer
            if not page.more:
                return
            if self._lifecycle.end_streams.is_set():
                raise self._lifecycle.refusal()


def _everywhere_within(time_left: float | None) -> float:
    """Return how many seconds every store is waited for."""
    if time_left is None:
        return _EVERYWHERE_SECONDS
    return time_left - min(_FOR_THE_ANSWER, time_left * _FOR_THE_ANSWER)


async def _run_aside(function: Callable[..., T], arguments: Sequence[tuple[Any, ...]]) -> list[T]:
    """Analyse texts elsewhere if they would hold up the event loop."""
    return await aside(function, arguments, sum(_work(one[-1]) for one in arguments))


def _work(text: str) -> int:
    return len(text) if text.isascii() else _STRANGE * len(text)


def _add(
    answer: storage_pb2.ListResponse | storage_pb2.ExportResponse, messages: list[Message]
) -> None:
    for message in messages:
        convert.fill(answer.messages.add(), message)


def _add_found(
    answer: storage_pb2.BatchGetResponse, asked: Sequence[str], found: dict[str, Message]
) -> None:
    for message_id in asked:
        message = found.get(message_id)
        if message is None:
            answer.missing_ids.append(message_id)
        else:
            convert.fill(answer.messages.add(), message)
