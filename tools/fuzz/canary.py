"""Canary: a well-behaved client that runs during the campaign and checks every answer."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import grpc
from grpc import aio

from sagastore.v1 import message_pb2, storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import at

_REST = 0.03
"""Seconds between two rounds."""
_TIMEOUT = 30.0
_ATTEMPTS = 50
_WORTH_REPEATING = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
_AT_ONCE = 500


class Canary:
    """Saves, reads and searches its own messages."""

    def __init__(self, channel: aio.Channel) -> None:
        self._storage: Any = StorageServiceStub(channel)
        self._saved: dict[str, message_pb2.Message] = {}
        self._over = False
        self.calls = 0
        self.refused = 0
        """Calls that were shed and repeated."""

    async def run(self) -> None:
        """Run until ``stop``.

        Raises:
            AssertionError: An answer was wrong.
            grpc.RpcError: A valid call was refused.
        """
        for number in itertools.count():
            if self._over:
                return
            await self._round(number)
            await asyncio.sleep(_REST)

    def stop(self) -> None:
        """Let ``run`` return after its current round."""
        self._over = True

    async def verify_saved(self) -> int:
        """Check that all saved messages exist unchanged; return their number."""
        ids = list(self._saved)
        for start in range(0, len(ids), _AT_ONCE):
            asked = ids[start : start + _AT_ONCE]
            answer = await self._ask("BatchGet", storage_pb2.BatchGetRequest(ids=asked))
            assert not answer.missing_ids, f"lost: {answer.missing_ids}"
            for found in answer.messages:
                _same(found, self._saved[found.id])
        return len(ids)

    async def _round(self, number: int) -> None:
        sent = message_pb2.Message(
            id=f"canary-{number:06}",
            provider="anthropic",
            role="assistant",
            content=f"canaryword{number} sings in the mine 🐤 é",
            tags=["canary", f"t{number % 7}"],
            timestamp=at(1_700_000_000 + number, 123_456_000),
            metadata_json=f'{{"n": {number}, "é": [1.50, null]}}',
            session_id=f"canary-session-{number % 5}",
        )
        answer = await self._ask("Save", storage_pb2.SaveRequest(message=sent))
        assert answer.id == sent.id
        self._saved[sent.id] = sent
        got = await self._ask("Get", storage_pb2.GetRequest(id=sent.id))
        _same(got.message, sent)
        search = storage_pb2.SearchRequest(query=f"canaryword{number}", tags=["canary"])
        found = await self._ask("Search", search)
        (result,) = found.results
        _same(result.message, sent)
        if number % 10 == 0:
            request = storage_pb2.ListRequest(session_id=sent.session_id, newest_first=True)
            listed = await self._ask("List", request)
            _same(listed.messages[0], sent)

    async def _ask(self, method: str, request: Any) -> Any:
        for attempt in range(_ATTEMPTS):
            self.calls += 1
            try:
                return await getattr(self._storage, method)(request, timeout=_TIMEOUT)
            except aio.AioRpcError as exc:
                if exc.code() not in _WORTH_REPEATING or attempt + 1 == _ATTEMPTS:
                    raise
                self.refused += 1
                await asyncio.sleep(0.1)
        raise AssertionError


def _same(found: message_pb2.Message, sent: message_pb2.Message) -> None:
    for name in ("id", "provider", "role", "content", "tags", "timestamp", "metadata_json"):
        assert getattr(found, name) == getattr(sent, name), f"{name} of {sent.id} has changed"
    assert found.session_id == sent.session_id
