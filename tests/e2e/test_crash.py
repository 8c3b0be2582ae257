"""SIGKILL under writes: acknowledged writes are stored, and every other write completely or not.

Clients keep a ledger of sent and acknowledged writes. After each kill the test opens the file
again and compares the store with the ledger.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator

import grpc

from sagastore.v1 import message_pb2, storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.conftest import ServerFactory
from tests.support.messages import batch, message
from tests.support.server_process import ServerProcess

MARK = "ledgermark"
"""A word in every message; a search for it finds all of them."""

BATCH = 40
"""Messages in a batch."""

READ_AHEAD = 4
"""Batches of a stream that the server reads ahead of its responses."""

KILLS = 3
CALLS_BEFORE_KILL = 150
BATCHES_BEFORE_KILL = 10


class Ledger:
    """Sent and acknowledged versions by id (-1: deleted)."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.batches: list[list[str]] = []
        """The ids of each batch; an id is in one batch only."""
        self._grown = threading.Condition()
        self.over = False
        self._calls = self._batches = 0

    def acknowledge(self, *entries: tuple[str, int]) -> None:
        with self._grown:
            self.acknowledged.update(entries)
            self._calls += len(entries) == 1
            self._batches += len(entries) > 1
            self._grown.notify_all()

    def wait_for_turn(self, sequence: int) -> None:
        """Delay a stream while it is far ahead of the clients that use unary calls."""
        with self._grown:
            self._grown.wait_for(lambda: sequence <= READ_AHEAD + self._calls // 8 or self.over)

    def end(self) -> None:
        """Wake every waiting client."""
        with self._grown:
            self.over = True
            self._grown.notify_all()

    def wait_for_more(self, calls: int, batches: int) -> None:
        """Wait until that many more calls and batches are acknowledged."""
        with self._grown:
            calls, batches = calls + self._calls, batches + self._batches
            assert self._grown.wait_for(
                lambda: self._calls >= calls and self._batches >= batches, timeout=90
            )


Writer = Callable[[StorageServiceStub, Ledger, str], None]


def version_of(message_id: str, version: int) -> message_pb2.Message:
    """Return the only possible message for ``version`` of ``message_id``."""
    return message(
        id=message_id,
        content=f"{MARK} {message_id.replace('-', ' ')} version v{version} ",
        tags=[f"v{version}"],
        metadata_json=f'{{"version": {version}}}',
        session_id=f"session of {message_id}",
    )


def save_and_delete(storage: StorageServiceStub, ledger: Ledger, name: str) -> None:
    """Save messages, change each twice, and delete one in five, until the server is killed."""
    for number in itertools.count():
        message_id = f"{name}-{number}"
        for version in range(3):
            ledger.sent[message_id] = version
            sent = version_of(message_id, version)
            storage.Save(storage_pb2.SaveRequest(message=sent))
            ledger.acknowledge((message_id, version))
        if number % 5 == 0:
            ledger.sent[message_id] = -1
            storage.Delete(storage_pb2.DeleteRequest(id=message_id))
            ledger.acknowledge((message_id, -1))


def bulk_save(storage: StorageServiceStub, ledger: Ledger, name: str) -> None:
    """Stream batches until the server is killed."""
    under_way: dict[int, list[str]] = {}

    def batches() -> Iterator[storage_pb2.BulkSaveRequest]:
        for sequence in itertools.count():
            ids = [f"{name}-{sequence}-{index}" for index in range(BATCH)]
            ledger.wait_for_turn(sequence)
            under_way[sequence] = ids
            ledger.batches.append(ids)
            ledger.sent.update(dict.fromkeys(ids, 0))
            yield batch(sequence, *(version_of(one, 0) for one in ids))

    for answer in storage.BulkSave(batches()):
        assert answer.saved == BATCH
        ledger.acknowledge(*((one, 0) for one in under_way.pop(answer.sequence)))


def write_until_killed(server: ServerProcess, ledger: Ledger, prefix: str) -> None:
    """Write with six clients, and kill the server meanwhile."""
    surprises: list[BaseException] = []

    def client(work: Writer, name: str) -> None:
        try:
            with server.channel() as channel:
                work(StorageServiceStub(channel), ledger, name)
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.UNAVAILABLE:
                surprises.append(exc)
        except BaseException as exc:  # noqa: BLE001 - raised in the test's thread
            surprises.append(exc)

    works: list[Writer] = [*[save_and_delete] * 4, *[bulk_save] * 2]
    threads = [
        threading.Thread(target=client, args=(work, f"{prefix}-{number}"))
        for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    try:
        ledger.wait_for_more(CALLS_BEFORE_KILL, BATCHES_BEFORE_KILL)
    finally:
        server.kill9()
        ledger.end()
        for thread in threads:
            thread.join()
    assert not surprises
    ledger.over = False


def everything(storage: StorageServiceStub) -> dict[str, message_pb2.Message]:
    """Return every stored message by id."""
    exported = [
        found for answer in storage.Export(storage_pb2.ExportRequest()) for found in answer.messages
    ]
    by_id = {found.id: found for found in exported}
    assert len(by_id) == len(exported)
    return by_id


def searched(storage: StorageServiceStub) -> list[str]:
    """Return the ids that a search for the common word finds."""
    ids: list[str] = []
    request = storage_pb2.SearchRequest(query=MARK, page_size=500, order=storage_pb2.ORDER_NEWEST)
    while True:
        page = storage.Search(request)
        ids += [result.message.id for result in page.results]
        request.page_token = page.next_page_token
        if not request.page_token:
            return ids


def compare(storage: StorageServiceStub, ledger: Ledger) -> None:
    """Compare the stored messages with the ledger."""
    stored = everything(storage)
    for message_id, version in ledger.acknowledged.items():
        last_sent = ledger.sent[message_id]
        found = stored.get(message_id)
        if found is None:
            assert -1 in {version, last_sent}, f"{message_id} was acknowledged and is lost"
    for message_id, found in stored.items():
        version = int(found.tags[0].removeprefix("v"))
        acknowledged = ledger.acknowledged.get(message_id, 0)
        assert acknowledged != -1, f"{message_id} was deleted and is back"
        last_sent = ledger.sent[message_id]
        assert acknowledged <= version
        assert last_sent == -1 or version <= last_sent
        for field in ("timestamp", "created_at", "revision", "sequence"):
            found.ClearField(field)
        assert found == version_of(message_id, version)
    for ids in ledger.batches:
        assert len({one in stored for one in ids}) == 1, "a batch is there by half"
    assert sorted(searched(storage)) == sorted(stored)


def test_acknowledged_writes_survive_sigkill(server_process: ServerFactory) -> None:
    server, ledger = server_process(), Ledger()
    for kill in range(KILLS):
        server.start()
        write_until_killed(server, ledger, f"round{kill}")
        with server.start().channel() as channel:
            compare(StorageServiceStub(channel), ledger)
        assert server.terminate() == 0
    assert len(ledger.acknowledged) >= KILLS * BATCHES_BEFORE_KILL * BATCH
    assert -1 in ledger.acknowledged.values()
