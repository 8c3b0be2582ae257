"""BatchSave over a real socket: each request has the outcome that Save would have had."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from sagastore.v1 import storage_pb2
from sagastore.v1.message_pb2 import Message
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import at, message, new_id
from tests.support.rpc_errors import invalid_fields, refusal_of


def sent(*messages: Message, **fields: int) -> storage_pb2.BatchSaveRequest:
    """Return a batch of requests with the same further fields."""
    return storage_pb2.BatchSaveRequest(
        requests=[storage_pb2.SaveRequest(message=one, **fields) for one in messages]  # type: ignore[arg-type]
    )


def status_of(outcome: storage_pb2.Outcome) -> status_pb2.Status:
    """Return the status of a failure, which repeats its code and message."""
    status = status_pb2.Status.FromString(outcome.failure.status)
    assert (status.code, status.message) == (outcome.failure.code, outcome.failure.message)
    return status


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_batch_answers_as_saves_do(storage: StorageServiceStub) -> None:
    messages = [message(), message(id=""), message(tags=["a", "b"])]
    answer = storage.BatchSave(sent(*messages))
    saved = [one.saved for one in answer.outcomes]
    assert [one.id for one in saved[::2]] == [one.id for one in messages[::2]]
    assert len(saved[1].id) == 36
    for one in saved:
        assert one.created
        assert list(one.durable_on) == [storage_pb2.STORE_SQLITE]
        found = storage.Get(storage_pb2.GetRequest(id=one.id)).message
        assert found.revision == one.revision
    again = storage.BatchSave(sent(messages[0], durability=storage_pb2.DURABILITY_BOTH))
    assert again.outcomes[0].saved.revision == saved[0].revision
    assert not again.outcomes[0].saved.created


def test_batch_request_fails_as_a_save_does(storage: StorageServiceStub) -> None:
    taken = message()
    storage.Save(storage_pb2.SaveRequest(message=taken))
    wrong = message(provider="", tags=[""])
    requests = [
        storage_pb2.SaveRequest(message=wrong),
        storage_pb2.SaveRequest(message=message()),
        storage_pb2.SaveRequest(message=taken, if_revision=0),
        storage_pb2.SaveRequest(message=message(id=taken.id, content="other"), if_revision=10**9),
        storage_pb2.SaveRequest(),
        storage_pb2.SaveRequest(message=message(), if_revision=-1, durability=77),  # type: ignore[arg-type]
    ]
    answer = storage.BatchSave(storage_pb2.BatchSaveRequest(requests=requests))
    assert [one.WhichOneof("result") for one in answer.outcomes] == [
        "failure", "saved", "failure", "failure", "failure", "failure",
    ]  # fmt: skip
    for request, outcome in zip(requests, answer.outcomes, strict=True):
        if outcome.HasField("saved"):
            continue
        with pytest.raises(grpc.RpcError) as caught:
            storage.Save(request)
        status, alone = status_of(outcome), refusal_of(caught.value)
        assert (status.code, status.message) == (alone.code.value[0], alone.message)
        assert (info_of(status).reason, info_of(status).domain) == (alone.reason, "sagastore")
        bad = error_details_pb2.BadRequest()
        named = any(one.Unpack(bad) for one in status.details)
        assert named is bool(alone.fields)
        assert {one.field for one in bad.field_violations} == set(alone.fields)


@pytest.mark.parametrize("count", [0, 1001])
def test_batch_of_a_wrong_size_is_refused(storage: StorageServiceStub, count: int) -> None:
    batch = sent(*[message() for _ in range(count)])
    assert set(invalid_fields(lambda: storage.BatchSave(batch))) == {"requests"}


def test_batch_of_the_greatest_size_is_stored_in_order(storage: StorageServiceStub) -> None:
    session, same = new_id(), at(1_700_000_000)
    messages = [message(session_id=session, timestamp=same) for _ in range(1000)]
    answer = storage.BatchSave(sent(*messages))
    assert [one.saved.id for one in answer.outcomes] == [one.id for one in messages]
    listed = storage.List(storage_pb2.ListRequest(session_id=session, page_size=500))
    assert [one.id for one in listed.messages] == [one.id for one in messages[:500]]


def test_batch_with_unreadable_text_fails_for_that_request(channel: grpc.Channel) -> None:
    """A lone surrogate in UTF-8 is no character; protobuf would refuse the whole batch."""
    good, bad = message(), message(content="X")
    raw = sent(good, bad).SerializeToString().replace(b"X", b"\xff")
    call: grpc.UnaryUnaryMultiCallable[bytes, storage_pb2.BatchSaveResponse] = channel.unary_unary(
        "/sagastore.v1.StorageService/BatchSave",
        response_deserializer=storage_pb2.BatchSaveResponse.FromString,
    )
    first, second = call(raw).outcomes
    assert first.saved.created
    assert second.failure.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "message.content" in second.failure.message


def test_large_batch_names_what_is_wrong_with_each_request(storage: StorageServiceStub) -> None:
    """It is validated in a worker process."""
    messages = [message(provider="" if number % 10 == 0 else "p") for number in range(600)]
    answer = storage.BatchSave(sent(*messages))
    for number, outcome in enumerate(answer.outcomes):
        assert outcome.HasField("failure") is (number % 10 == 0)
        if outcome.HasField("failure"):
            status = status_of(outcome)
            assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert "message.provider" in status.message
