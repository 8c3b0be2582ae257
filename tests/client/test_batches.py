from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore import BulkAck, Message, OnConflict
from sagastore._bulk import Batch, Batcher, Tally, _varint
from sagastore.v1 import storage_pb2


def cut(messages: list[Message], size: int = 1000) -> list[Batch]:
    batcher = Batcher(size, OnConflict.SKIP)
    batches = [batch for message in messages if (batch := batcher.add(message))]
    last = batcher.flush()
    return batches + ([last] if last else [])


def request(batch: Batch) -> storage_pb2.BulkSaveRequest:
    assert batch.payload is not None
    return storage_pb2.BulkSaveRequest.FromString(batch.payload)


def message(content: str = "x", **values: str) -> Message:
    return Message("a", "b", content, **values)  # type: ignore[arg-type]


@given(st.lists(st.text(), max_size=30), st.integers(1, 7))
def test_every_message_is_sent_once_in_order(contents: list[str], size: int) -> None:
    batches = cut([message(content) for content in contents], size)
    requests = [request(batch) for batch in batches]
    assert [m.content for r in requests for m in r.messages] == contents
    assert [b.count for b in batches[:-1]] == [size] * len(batches[:-1])
    assert [b.sequence for b in batches] == [r.sequence for r in requests]
    assert [b.sequence for b in batches] == list(range(len(batches)))
    assert [b.first_position for b in batches] == [i * size for i in range(len(batches))]
    assert all(r.on_conflict == storage_pb2.ON_CONFLICT_SKIP for r in requests)
    assert all(m.id for r in requests for m in r.messages)


@given(st.integers(0, 2**40))
def test_varint_matches_protobuf(value: int) -> None:
    pb = storage_pb2.BulkSaveRequest.FromString(b"\x08" + _varint(value))
    assert pb.sequence == value


def test_ids_are_preserved_or_assigned() -> None:
    (batch,) = cut([message(id="mine"), message()])
    mine, given_id = (m.id for m in request(batch).messages)
    assert mine == "mine"
    assert len(given_id) == 36


@pytest.mark.parametrize("size", [1, 1000])
def test_batches_are_limited_by_bytes(size: int) -> None:
    batches = cut([message("x" * 900_000) for _ in range(7)], size)
    assert [b.count for b in batches] == ([1] * 7 if size == 1 else [2, 2, 2, 1])
    assert all(len(b.payload or b"") < 2_200_000 for b in batches)
    assert [b.first_position for b in batches] == [0, 1, 2, 3, 4, 5, 6][:: 1 if size == 1 else 2]


def test_large_message_is_a_batch_of_its_own() -> None:
    batches = cut([message(), message("x" * 6_000_000), message(), message()])
    assert [b.count for b in batches] == [1, 1, 2]
    assert not any(b.rejected for b in batches)


def test_invalid_message_is_rejected_without_affecting_others() -> None:
    messages = [
        message("ok"),
        message("\ud800", id="bad"),
        message("x" * 6_300_000, id="big"),
        message("fine"),
    ]
    (batch,) = cut(messages)
    assert [m.content for m in request(batch).messages] == ["ok", "fine"]
    answer = storage_pb2.BulkSaveResponse(saved=1)
    answer.rejected.add(index=1, id="four", field="role", reason="no")
    ack = batch.acknowledged(answer)
    assert (ack.first_position, ack.count) == (0, 4)
    found = [(r.position, r.id, r.field) for r in ack.rejected]
    assert found == [(1, "bad", "content"), (2, "big", "message"), (3, "four", "role")]
    assert ack.saved + ack.unchanged + ack.skipped + len(ack.rejected) == ack.count


def test_batch_of_rejected_messages_has_no_payload() -> None:
    (batch,) = cut([message("\ud800")])
    assert batch.payload is None
    assert batch.count == 1


def test_rejections_have_input_positions_in_later_batches() -> None:
    batches = cut([message() for _ in range(5)], 2)
    answer = storage_pb2.BulkSaveResponse()
    answer.rejected.add(index=1)
    assert batches[1].acknowledged(answer).rejected[0].position == 3


def test_batcher_rejects_invalid_arguments() -> None:
    for size in (0, 1001):
        with pytest.raises(ValueError, match="batch_size must be 1 to 1000"):
            Batcher(size, OnConflict.REPLACE)
    batcher = Batcher(10, OnConflict.REPLACE)
    batcher.add(message())
    with pytest.raises(TypeError, match=r"messages\[1\]: expected a Message, got str"):
        batcher.add("x")  # type: ignore[arg-type]


def test_tally_sums_batches() -> None:
    tally = Tally()
    assert tally.add(BulkAck(0, 3, 1, 1, 1, ())).acknowledged == 3
    progress = tally.add(BulkAck(3, 2, 2, 0, 0, ()))
    assert (progress.acknowledged, progress.saved, progress.rejected) == (5, 3, 0)
    assert (tally.result().total, tally.result().skipped) == (5, 1)
