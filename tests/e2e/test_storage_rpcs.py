"""Every RPC of StorageService with valid requests, over a real socket."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest

from sagastore.v1 import message_pb2, storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import at, batch, message, new_id
from tests.support.rpc_errors import refused


def save(storage: StorageServiceStub, sent: message_pb2.Message) -> storage_pb2.SaveResponse:
    return storage.Save(storage_pb2.SaveRequest(message=sent))


def get(storage: StorageServiceStub, message_id: str) -> message_pb2.Message:
    return storage.Get(storage_pb2.GetRequest(id=message_id)).message


def test_saved_message_round_trips(storage: StorageServiceStub) -> None:
    sent = message(
        content="Grüße 😀\n\ttabs and \x01 controls",
        tags=["b", "a", "a", "ünï"],
        timestamp=at(1_700_000_000, 123_456_000),
        metadata_json='{"b": 1.50, "a": [true, null, "x"], "big": 12345678901234567890}',
        session_id="session",
    )
    answer = save(storage, sent)
    assert answer.id == sent.id
    assert answer.created
    assert list(answer.durable_on) == [storage_pb2.STORE_SQLITE]

    found = get(storage, sent.id)
    assert found.revision == answer.revision > 0
    assert found.created_at.seconds > 1_700_000_000
    assert found.metadata_json == '{"a": [true, null, "x"], "b": 1.50, "big": 12345678901234567890}'
    found.ClearField("created_at")
    found.ClearField("revision")
    assert found.sequence > 0
    found.ClearField("sequence")
    found.metadata_json = sent.metadata_json
    assert found == sent


def test_absent_session_differs_from_empty_session(storage: StorageServiceStub) -> None:
    without, empty = message(), message(session_id="")
    save(storage, without)
    save(storage, empty)
    assert not get(storage, without.id).HasField("session_id")
    assert get(storage, empty.id).HasField("session_id")


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-62_135_596_800, 0), (-1, 999_999_000), (0, 0), (253_402_300_799, 999_999_000)],
    ids=["year 1", "just before 1970", "epoch", "year 9999"],
)
def test_timestamps_at_the_limits_round_trip(
    storage: StorageServiceStub, seconds: int, nanos: int
) -> None:
    sent = message(timestamp=at(seconds, nanos))
    save(storage, sent)
    found = get(storage, sent.id)
    assert found.HasField("timestamp")
    assert found.timestamp == sent.timestamp


def test_save_assigns_increasing_uuid7s(storage: StorageServiceStub) -> None:
    ids = [save(storage, message(id="")).id for _ in range(20)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 20
    assert {uuid.UUID(assigned).version for assigned in ids} == {7}


def test_saving_the_same_message_again_is_idempotent(storage: StorageServiceStub) -> None:
    sent = message(metadata_json='{"a":1}', timestamp=at(5))
    first = save(storage, sent)
    sent.metadata_json = '{ "a" : 1 }'
    second = save(storage, sent)
    assert (second.revision, second.created) == (first.revision, False)

    sent.ClearField("timestamp")
    assert save(storage, sent).revision == first.revision
    assert get(storage, sent.id).timestamp == at(5)

    sent.content = "something else"
    third = save(storage, sent)
    assert third.revision > first.revision
    assert not third.created


def test_save_without_timestamp_uses_the_current_time(storage: StorageServiceStub) -> None:
    sent = message()
    save(storage, sent)
    found = get(storage, sent.id)
    assert found.timestamp == found.created_at


def test_save_checks_if_revision(storage: StorageServiceStub) -> None:
    sent = message()
    guarded = storage_pb2.SaveRequest(message=sent, if_revision=0)
    revision = storage.Save(guarded).revision

    with refused(grpc.StatusCode.ALREADY_EXISTS) as again:
        storage.Save(guarded)
    assert again.refusal.reason == "MESSAGE_EXISTS"
    assert again.refusal.metadata == {"id": sent.id, "stored_revision": str(revision)}

    guarded.if_revision = revision + 1000
    with refused(grpc.StatusCode.ABORTED) as stale:
        storage.Save(guarded)
    assert stale.refusal.reason == "REVISION_MISMATCH"
    assert stale.refusal.metadata["stored_revision"] == str(revision)

    guarded.if_revision = revision
    guarded.message.content = "changed"
    assert storage.Save(guarded).revision > revision


def test_save_with_if_revision_of_missing_message_fails(storage: StorageServiceStub) -> None:
    with refused(grpc.StatusCode.ABORTED) as caught:
        storage.Save(storage_pb2.SaveRequest(message=message(), if_revision=7))
    assert "stored_revision" not in caught.refusal.metadata


@pytest.mark.parametrize("durability", storage_pb2.Durability.values())
def test_save_with_one_store_ignores_durability(
    storage: StorageServiceStub, durability: storage_pb2.Durability.ValueType
) -> None:
    answer = storage.Save(storage_pb2.SaveRequest(message=message(), durability=durability))
    assert list(answer.durable_on) == [storage_pb2.STORE_SQLITE]


def test_delete_removes_a_message_once(storage: StorageServiceStub) -> None:
    sent = message()
    revision = save(storage, sent).revision
    storage.Delete(storage_pb2.DeleteRequest(id=sent.id))
    for call in (
        lambda: storage.Get(storage_pb2.GetRequest(id=sent.id)),
        lambda: storage.Delete(storage_pb2.DeleteRequest(id=sent.id)),
    ):
        with refused(grpc.StatusCode.NOT_FOUND) as caught:
            call()
        assert caught.refusal.reason == "MESSAGE_NOT_FOUND"
        assert caught.refusal.metadata == {"id": sent.id}
    again = save(storage, sent)
    assert again.created
    assert again.revision > revision


def test_delete_checks_if_revision(storage: StorageServiceStub) -> None:
    sent = message()
    revision = save(storage, sent).revision
    with refused(grpc.StatusCode.ABORTED):
        storage.Delete(storage_pb2.DeleteRequest(id=sent.id, if_revision=revision + 1))
    storage.Delete(storage_pb2.DeleteRequest(id=sent.id, if_revision=revision))


def test_batch_get_returns_messages_in_request_order(storage: StorageServiceStub) -> None:
    known = [message() for _ in range(3)]
    for sent in known:
        save(storage, sent)
    unknown = [new_id(), new_id()]
    a, b, c = (sent.id for sent in known)
    answer = storage.BatchGet(
        storage_pb2.BatchGetRequest(ids=[c, unknown[1], a, c, unknown[0], b, unknown[1]])
    )
    assert [found.id for found in answer.messages] == [c, a, c, b]
    assert list(answer.missing_ids) == [unknown[1], unknown[0], unknown[1]]


def test_batch_get_accepts_a_thousand_ids(storage: StorageServiceStub) -> None:
    sent = message()
    save(storage, sent)
    ids = [new_id() for _ in range(999)] + [sent.id]
    answer = storage.BatchGet(storage_pb2.BatchGetRequest(ids=ids))
    assert len(answer.messages) == 1
    assert list(answer.missing_ids) == ids[:-1]


def test_list_pages_a_session_in_order(storage: StorageServiceStub) -> None:
    session = new_id()
    # Two messages per timestamp: the order in which they were saved decides.
    sent = [message(session_id=session, timestamp=at(1000 + n // 2)) for n in range(11)]
    sent.reverse()
    for one in sent:
        save(storage, one)
    expected = [m.id for m in sorted(sent, key=lambda m: m.timestamp.seconds)]
    for newest_first in (False, True):
        request = storage_pb2.ListRequest(
            session_id=session, page_size=4, newest_first=newest_first
        )
        sizes, ids = [], []
        while True:
            page = storage.List(request)
            sizes.append(len(page.messages))
            ids += [found.id for found in page.messages]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert sizes == [4, 4, 3]
        assert ids == (expected[::-1] if newest_first else expected)


def test_full_last_page_has_no_token(storage: StorageServiceStub) -> None:
    session = new_id()
    for _ in range(3):
        save(storage, message(session_id=session))
    page = storage.List(storage_pb2.ListRequest(session_id=session, page_size=3))
    assert len(page.messages) == 3
    assert not page.next_page_token


def test_large_messages_shorten_pages(storage: StorageServiceStub) -> None:
    session = new_id()
    content = "\N{GRINNING FACE}" * 100_000
    for n in range(12):
        save(storage, message(session_id=session, content=content, timestamp=at(n)))
    request = storage_pb2.ListRequest(session_id=session)
    seconds: list[int] = []
    while True:
        page = storage.List(request)
        assert page.ByteSize() < 4 * 1024 * 1024
        seconds += [found.timestamp.seconds for found in page.messages]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert seconds == list(range(12))


def test_search_filters_by_every_condition(storage: StorageServiceStub) -> None:
    marker = f"m{uuid.uuid4().hex}"
    sent = message(
        content=f"The {marker} dragons were flying",
        provider="anthropic",
        role="assistant",
        tags=["x", "y"],
        timestamp=at(500),
        metadata_json='{"a": {"b": [1, 2]}, "c": true}',
        session_id="s-1",
    )
    save(storage, sent)
    save(storage, message(content=f"another {marker}", timestamp=at(400)))

    hits: list[dict[str, Any]] = [
        {"query": f"{marker} dragon"},
        {"query": f'"{marker} dragons"'},
        {"query": f"{marker} -another"},
        {"query": f"{marker} drag*"},
        {"query": f"{marker} unicorns OR {marker} fly"},
        {"query": marker, "tags": ["y", "x"]},
        {"query": marker, "provider": "anthropic"},
        {"query": marker, "role": "assistant"},
        {"query": marker, "session_id": "s-1"},
        {"query": marker, "start_time": at(500), "end_time": at(501)},
        {"query": marker, "metadata_json": '{"a":{"b":[2]}}'},
        {"query": "", "provider": "anthropic", "session_id": "s-1", "start_time": at(500)},
    ]
    for conditions in hits:
        answer = storage.Search(storage_pb2.SearchRequest(**conditions))
        assert sent.id in [result.message.id for result in answer.results], conditions
        if conditions["query"]:
            assert [result.message.id for result in answer.results] == [sent.id], conditions
    misses: list[dict[str, Any]] = [
        {"query": f"{marker} unicorn"},
        {"query": f'"dragons {marker}"'},
        {"query": marker, "tags": ["x", "z"]},
        {"query": marker, "session_id": ""},
        {"query": marker, "end_time": at(400)},
        {"query": marker, "start_time": at(501)},
        {"query": marker, "metadata_json": '{"a":{"b":[3]}}'},
    ]
    for conditions in misses:
        answer = storage.Search(storage_pb2.SearchRequest(**conditions))
        assert not answer.results, conditions


def test_search_orders_and_highlights(storage: StorageServiceStub) -> None:
    marker = f"m{uuid.uuid4().hex}"
    for seconds, content in enumerate((f"{marker} {marker}", f"{marker} and more words", marker)):
        save(storage, message(content=content, timestamp=at(seconds)))

    def times(order: storage_pb2.Order.ValueType) -> list[int]:
        answer = storage.Search(storage_pb2.SearchRequest(query=marker, order=order))
        for result in answer.results:
            assert f"\x02{marker}\x03" in result.snippet
        return [result.message.timestamp.seconds for result in answer.results]

    assert times(storage_pb2.ORDER_NEWEST) == [2, 1, 0]
    assert times(storage_pb2.ORDER_OLDEST) == [0, 1, 2]
    by_relevance = storage.Search(storage_pb2.SearchRequest(query=marker)).results
    scores = [result.score for result in by_relevance]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0


@pytest.mark.parametrize("order", storage_pb2.Order.values())
def test_search_pages_return_every_match_once(
    storage: StorageServiceStub, order: storage_pb2.Order.ValueType
) -> None:
    marker = f"m{uuid.uuid4().hex}"
    sent = [message(content=f"{marker} word " * (n + 1)) for n in range(9)]
    list(storage.BulkSave(iter([batch(1, *sent)])))
    request = storage_pb2.SearchRequest(query=marker, order=order, page_size=4)
    ids: list[str] = []
    while True:
        page = storage.Search(request)
        ids += [result.message.id for result in page.results]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
        request.page_size = 3  # the size may change on the way
    assert sorted(ids) == sorted(one.id for one in sent)


def test_any_text_is_a_valid_query(storage: StorageServiceStub) -> None:
    texts = [
        '"', '""', "'", "a\"b", "NEAR(a b)", "a NEAR b", "*", "a*", "*a", "-", "--", "-a", "OR",
        "a OR", "OR a", "AND", "NOT a", "(", ")", "(a", "a)", "content:a", "{a b}:c", "^a", "a+b",
        "\N{GRINNING FACE}", "e\u0301", "\u200b", "%", "_", ";", "--'; DROP TABLE messages", "\\",
        "\x00", "a\x00b", "\n", " ", "word " * 10_000, '"' * 10_000, "-" * 10_000, "a OR " * 5_000,
        "x" * 100_000, "*" * 100_000, "(" * 50_000, "ﬁ ß İ", "\ufeff", "\U0010ffff",
    ]  # fmt: skip
    for text in texts:
        storage.Search(storage_pb2.SearchRequest(query=text, page_size=1))


def test_export_returns_every_message_once_by_sequence(running_storage: StorageServiceStub) -> None:
    sent = [message() for _ in range(25)]
    list(running_storage.BulkSave(iter([batch(1, *sent)])))
    answers = list(running_storage.Export(storage_pb2.ExportRequest(batch_size=10)))
    assert [len(answer.messages) for answer in answers] == [10, 10, 5]
    ids = [found.id for answer in answers for found in answer.messages]
    assert ids == [one.id for one in sent]


def test_export_resumes_after_interruption(running_storage: StorageServiceStub) -> None:
    sent = [message(id=f"{n:03}") for n in range(20)]
    list(running_storage.BulkSave(iter([batch(1, *sent)])))
    call = running_storage.Export(storage_pb2.ExportRequest(batch_size=6))
    first = next(iter(call))
    call.cancel()
    # The export skips messages deleted meanwhile, and excludes ids written beyond its end.
    running_storage.Delete(storage_pb2.DeleteRequest(id="010"))
    save(running_storage, message(id="999"))
    rest = running_storage.Export(
        storage_pb2.ExportRequest(resume_token=first.resume_token, batch_size=100)
    )
    ids = [found.id for answer in (first, *rest) for found in answer.messages]
    assert ids == [f"{n:03}" for n in range(20) if n != 10]


def test_export_resumed_at_its_end_is_empty(running_storage: StorageServiceStub) -> None:
    assert list(running_storage.Export(storage_pb2.ExportRequest())) == []
    save(running_storage, message())
    last = list(running_storage.Export(storage_pb2.ExportRequest()))[-1]
    again = storage_pb2.ExportRequest(resume_token=last.resume_token)
    assert list(running_storage.Export(again)) == []


def test_stalled_export_does_not_block_writers(running_storage: StorageServiceStub) -> None:
    content = "x" * 100_000
    sent = [message(id=f"{n:03}", content=content) for n in range(200)]
    for start in range(0, 200, 50):
        list(running_storage.BulkSave(iter([batch(1, *sent[start : start + 50])])))
    call = iter(running_storage.Export(storage_pb2.ExportRequest(batch_size=1)))
    first = next(call)
    for _ in range(50):
        save(running_storage, message(id=f"w{new_id()}"))
    ids = [found.id for answer in (first, *call) for found in answer.messages]
    assert ids[:200] == [one.id for one in sent]
