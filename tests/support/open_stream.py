"""A BulkSave stream that stays open."""

from __future__ import annotations

import queue
from collections.abc import Iterator

from sagastore.v1 import message_pb2, storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import batch


class OpenStream:
    """A BulkSave stream that is written and read batch by batch."""

    def __init__(self, storage: StorageServiceStub) -> None:
        self._batches: queue.SimpleQueue[storage_pb2.BulkSaveRequest | None] = queue.SimpleQueue()
        self._answers = iter(storage.BulkSave(self._requests()))
        self._sent = 0

    def store(self, one: message_pb2.Message) -> None:
        """Send a batch of one message and wait until it is acknowledged."""
        self._sent += 1
        self._batches.put(batch(self._sent, one))
        answer = next(self._answers)
        assert (answer.sequence, answer.saved) == (self._sent, 1)

    def finish(self) -> None:
        """Close the request stream, and expect the stream to end with OK."""
        self._batches.put(None)
        assert list(self._answers) == []

    def next_answer(self) -> storage_pb2.BulkSaveResponse:
        """Expect the stream to end with an error."""
        try:
            return next(self._answers)
        finally:
            self._batches.put(None)

    def _requests(self) -> Iterator[storage_pb2.BulkSaveRequest]:
        while (request := self._batches.get()) is not None:
            yield request
