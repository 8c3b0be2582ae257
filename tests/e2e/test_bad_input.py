"""Invalid requests return INVALID_ARGUMENT with every invalid field, and never INTERNAL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from sagastore.v1 import migration_pb2, session_pb2, storage_pb2
from sagastore.v1.migration_pb2_grpc import MigrationServiceStub
from sagastore.v1.session_pb2_grpc import SessionServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import at, batch, message, new_id
from tests.support.rpc_errors import invalid_fields, refused

MEGABYTE = 1024 * 1024
NUL = "a\x00b"

BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"provider": ""}, "provider"),
    ({"role": ""}, "role"),
    ({"id": "x" * 129}, "id"),
    ({"provider": "x" * 65}, "provider"),
    ({"role": "x" * 33}, "role"),
    ({"content": "x" * 1_000_001}, "content"),
    ({"tags": ["x"] * 513}, "tags"),
    ({"tags": ["ok", ""]}, "tags[1]"),
    ({"tags": ["x" * 257]}, "tags[0]"),
    ({"session_id": "x" * 257}, "session_id"),
    ({"id": NUL}, "id"),
    ({"provider": NUL}, "provider"),
    ({"role": NUL}, "role"),
    ({"content": NUL}, "content"),
    ({"tags": [NUL]}, "tags[0]"),
    ({"session_id": NUL}, "session_id"),
    ({"metadata_json": '{"a": "b\x00"}'}, "metadata_json"),
    ({"metadata_json": '{"a": "\\u0000"}'}, "metadata_json"),
    ({"metadata_json": '{"\\u0000": 1}'}, "metadata_json"),
    ({"metadata_json": '{"a": "\\ud800"}'}, "metadata_json"),
    ({"metadata_json": "{"}, "metadata_json"),
    ({"metadata_json": "{'a': 1}"}, "metadata_json"),
    ({"metadata_json": '{"a": 1} x'}, "metadata_json"),
    ({"metadata_json": "{a: 1}"}, "metadata_json"),
    ({"metadata_json": '{"a": 01}'}, "metadata_json"),
    ({"metadata_json": " "}, "metadata_json"),
    ({"metadata_json": "[]"}, "metadata_json"),
    ({"metadata_json": "null"}, "metadata_json"),
    ({"metadata_json": "1"}, "metadata_json"),
    ({"metadata_json": '"text"'}, "metadata_json"),
    ({"metadata_json": '{"a": NaN}'}, "metadata_json"),
    ({"metadata_json": '{"a": Infinity}'}, "metadata_json"),
    ({"metadata_json": '{"a": -Infinity}'}, "metadata_json"),
    ({"metadata_json": '{"a": 1e999999999}'}, "metadata_json"),
    ({"metadata_json": '{"a": 1e-999999999}'}, "metadata_json"),
    ({"metadata_json": '{"a": 1e131073}'}, "metadata_json"),
    ({"metadata_json": '{"a": 1, "a": 2}'}, "metadata_json"),
    ({"metadata_json": '{"a":' * 201 + "1" + "}" * 201}, "metadata_json"),
    ({"metadata_json": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"}, "metadata_json"),
    ({"metadata_json": '{"a": "' + "x" * 1_048_576 + '"}'}, "metadata_json"),
    ({"timestamp": at(0, -1000)}, "timestamp"),
    ({"timestamp": at(0, 1_000_000_000)}, "timestamp"),
    ({"timestamp": at(-62_135_596_801)}, "timestamp"),
    ({"timestamp": at(253_402_300_800)}, "timestamp"),
    ({"timestamp": at(2**63 - 1)}, "timestamp"),
    ({"timestamp": at(-(2**63))}, "timestamp"),
]
NAMES = [f"{field}-{index}" for index, (_, field) in enumerate(BAD_MESSAGES)]


@pytest.mark.parametrize(("fields", "field"), BAD_MESSAGES, ids=NAMES)
def test_save_reports_the_invalid_field(
    storage: StorageServiceStub, fields: dict[str, Any], field: str
) -> None:
    request = storage_pb2.SaveRequest(message=message(**fields))
    assert list(invalid_fields(lambda: storage.Save(request))) == [f"message.{field}"]


@pytest.mark.parametrize(("fields", "field"), [*BAD_MESSAGES, ({"id": ""}, "id")])
def test_bulk_save_rejects_only_invalid_messages(
    storage: StorageServiceStub, fields: dict[str, Any], field: str
) -> None:
    good = [message(), message()]
    bad = message(**fields)
    (answer,) = storage.BulkSave(iter([batch(7, good[0], bad, good[1])]))
    assert (answer.sequence, answer.saved, answer.unchanged, answer.skipped) == (7, 2, 0, 0)
    (rejected,) = answer.rejected
    assert (rejected.index, rejected.field) == (1, field)
    assert rejected.id == (bad.id if len(bad.id) <= 128 else bad.id[:128] + "…")
    assert field in rejected.reason
    assert "\n" not in rejected.reason
    found = storage.BatchGet(storage_pb2.BatchGetRequest(ids=[one.id for one in good]))
    assert not found.missing_ids


def test_save_reports_all_violations_together(storage: StorageServiceStub) -> None:
    broken = message(
        provider="", tags=["", "ok", "x" * 300], metadata_json="[1]", timestamp=at(0, -1)
    )
    request = storage_pb2.SaveRequest(message=broken, if_revision=-1, durability=99)  # type: ignore[arg-type]
    assert set(invalid_fields(lambda: storage.Save(request))) == {
        "message.provider",
        "message.tags[0]",
        "message.tags[2]",
        "message.metadata_json",
        "message.timestamp",
        "if_revision",
        "durability",
    }


def test_bulk_save_reports_all_violations_in_one_line(
    storage: StorageServiceStub,
) -> None:
    (answer,) = storage.BulkSave(iter([batch(1, message(provider="", role="", content=NUL))]))
    (rejected,) = answer.rejected
    assert rejected.field == "provider"
    for field in ("provider", "role", "content"):
        assert field in rejected.reason


def test_violations_are_truncated_to_fit_a_response(storage: StorageServiceStub) -> None:
    broken = message(tags=["\N{GRINNING FACE}" * 300] * 512)
    fields = invalid_fields(lambda: storage.Save(storage_pb2.SaveRequest(message=broken)))
    assert "message.tags[0]" in fields
    assert "more invalid fields" in list(fields.values())[-1]


def test_save_without_message_is_rejected(storage: StorageServiceStub) -> None:
    assert list(invalid_fields(lambda: storage.Save(storage_pb2.SaveRequest()))) == ["message"]


BAD_REQUESTS: list[tuple[str, Any, list[str]]] = [
    ("Get", storage_pb2.GetRequest(), ["id"]),
    ("Get", storage_pb2.GetRequest(id="x" * 129), ["id"]),
    ("Get", storage_pb2.GetRequest(id=NUL), ["id"]),
    ("Delete", storage_pb2.DeleteRequest(), ["id"]),
    ("Delete", storage_pb2.DeleteRequest(id="x" * 129, if_revision=0), ["id", "if_revision"]),
    ("Delete", storage_pb2.DeleteRequest(id=NUL, if_revision=-5), ["id", "if_revision"]),
    ("BatchGet", storage_pb2.BatchGetRequest(), ["ids"]),
    ("BatchGet", storage_pb2.BatchGetRequest(ids=["x"] * 1001), ["ids"]),
    ("BatchGet", storage_pb2.BatchGetRequest(ids=["x", "", NUL]), ["ids[1]", "ids[2]"]),
    ("List", storage_pb2.ListRequest(session_id="x" * 257), ["session_id"]),
    ("List", storage_pb2.ListRequest(session_id=NUL, page_size=-1), ["session_id", "page_size"]),
    ("List", storage_pb2.ListRequest(page_token="garbage"), ["page_token"]),
    ("Search", storage_pb2.SearchRequest(query="x" * 100_001), ["query"]),
    ("Search", storage_pb2.SearchRequest(tags=["x"] * 513), ["tags"]),
    ("Search", storage_pb2.SearchRequest(page_token="😀"), ["page_token"]),
    ("Search", storage_pb2.SearchRequest(page_token="x" * 1_000_000), ["page_token"]),
    (
        "Search",
        storage_pb2.SearchRequest(
            tags=["", "x" * 257, NUL],
            provider="x" * 65,
            role=NUL,
            session_id="x" * 257,
            start_time=at(0, -1),
            end_time=at(2**62),
            metadata_json="[]",
            page_size=-1,
            order=17,  # type: ignore[arg-type]
        ),
        [
            "provider",
            "role",
            "tags[0]",
            "tags[1]",
            "tags[2]",
            "order",
            "start_time",
            "end_time",
            "session_id",
            "metadata_json",
            "page_size",
        ],
    ),
]


@pytest.mark.parametrize(("method", "request_", "fields"), BAD_REQUESTS)
def test_unary_requests_report_invalid_fields(
    storage: StorageServiceStub, method: str, request_: Any, fields: list[str]
) -> None:
    call: Callable[[Any], Any] = getattr(storage, method)
    assert sorted(invalid_fields(lambda: call(request_))) == sorted(fields)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (storage_pb2.ExportRequest(batch_size=-1), "batch_size"),
        (storage_pb2.ExportRequest(resume_token="garbage"), "resume_token"),
    ],
)
def test_export_reports_invalid_fields(
    storage: StorageServiceStub, request_: storage_pb2.ExportRequest, field: str
) -> None:
    assert list(invalid_fields(lambda: list(storage.Export(request_)))) == [field]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (migration_pb2.ListQuarantineRequest(page_size=-1), "page_size"),
        (migration_pb2.ListQuarantineRequest(page_token="garbage"), "page_token"),
    ],
)
def test_list_quarantine_reports_invalid_fields(
    migration: MigrationServiceStub, request_: migration_pb2.ListQuarantineRequest, field: str
) -> None:
    assert list(invalid_fields(lambda: migration.ListQuarantine(request_))) == [field]


@pytest.mark.parametrize("count", [0, 1001])
def test_bulk_save_batch_of_invalid_size_ends_the_stream(
    storage: StorageServiceStub, count: int
) -> None:
    before, after = message(), message()
    bad = batch(2, *(message() for _ in range(count)))
    call = storage.BulkSave(iter([batch(1, before), bad, batch(3, after)]))
    answers: list[storage_pb2.BulkSaveResponse] = []

    def read_all() -> None:
        answers.extend(call)

    assert list(invalid_fields(read_all)) == ["messages"]
    assert [answer.sequence for answer in answers] == [1]
    found = storage.BatchGet(storage_pb2.BatchGetRequest(ids=[before.id, after.id]))
    assert list(found.missing_ids) == [after.id]


def test_bulk_save_unknown_on_conflict_ends_the_stream(storage: StorageServiceStub) -> None:
    bad = batch(1, message(), on_conflict=9)
    assert list(invalid_fields(lambda: list(storage.BulkSave(iter([bad]))))) == ["on_conflict"]


def unary(channel: grpc.Channel, method: str) -> Callable[[bytes], Any]:
    """Return a function that calls ``method`` with raw bytes."""
    raw: grpc.UnaryUnaryMultiCallable[Any, Any] = channel.unary_unary(f"/sagastore.v1.{method}")
    return raw


def not_utf8(serialized: bytes) -> bytes:
    """Replace the text MARK by a lone surrogate, encoded as in UTF-8."""
    assert b"MARK" in serialized
    return serialized.replace(b"MARK", b"\xed\xa0\x80K")


def test_invalid_utf8_is_reported_by_field(shared_channel: grpc.Channel) -> None:
    save = unary(shared_channel, "StorageService/Save")
    broken = message(content="MARK", tags=["ok", "MARK"], session_id="MARK")
    request = not_utf8(storage_pb2.SaveRequest(message=broken).SerializeToString())
    fields = invalid_fields(lambda: save(request))
    assert sorted(fields) == ["message.content", "message.session_id", "message.tags[1]"]
    search = unary(shared_channel, "StorageService/Search")
    request = not_utf8(storage_pb2.SearchRequest(query="MARK").SerializeToString())
    assert list(invalid_fields(lambda: search(request))) == ["query"]


def test_bulk_save_invalid_utf8_rejects_only_its_message(
    shared_channel: grpc.Channel, storage: StorageServiceStub
) -> None:
    good = [message(), message()]
    bad = message(content="MARK", provider="")
    bulk: grpc.StreamStreamMultiCallable[Any, Any] = shared_channel.stream_stream(
        "/sagastore.v1.StorageService/BulkSave",
        response_deserializer=storage_pb2.BulkSaveResponse.FromString,
    )
    request = not_utf8(batch(1, good[0], bad, good[1]).SerializeToString())
    (answer,) = bulk(iter([request]))
    assert answer.saved == 2
    (rejected,) = answer.rejected
    assert (rejected.index, rejected.id, rejected.field) == (1, bad.id, "content")
    assert "provider" in rejected.reason


@pytest.mark.parametrize("request_", [b"\xff", b"\x0a\x05abc", b"\x0b", b"\x0a\x80\x80\x80"])
def test_unparsable_request_is_rejected(shared_channel: grpc.Channel, request_: bytes) -> None:
    for method in ("StorageService/Save", "StorageService/List", "MigrationService/ChangePhase"):
        call = unary(shared_channel, method)
        assert list(invalid_fields(lambda call=call: call(request_))) == ["request"]  # type: ignore[misc]


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("limit", [8 * MEGABYTE, 32 * MEGABYTE])
def test_request_of_maximum_size_is_accepted(
    shared_channel: grpc.Channel, limit: int, extra: int
) -> None:
    """A Save takes 8 MiB, an Append as much as the server accepts."""
    sent: Callable[[Any], Any]
    if limit == 8 * MEGABYTE:
        sent, field = StorageServiceStub(shared_channel).Save, "message.content"
        request: Any = storage_pb2.SaveRequest(message=message())
        one = request.message
    else:
        sent, field = SessionServiceStub(shared_channel).Append, "messages[0].content"
        request = session_pb2.AppendRequest(session_id="s", messages=[message()])
        one = request.messages[0]
    one.content = "x" * (limit - 1000)
    one.content += "x" * (limit - request.ByteSize() + extra)
    assert request.ByteSize() == limit + extra
    if extra:
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
            sent(request)
        assert str(limit) in caught.refusal.message.replace(",", "")
    else:
        assert list(invalid_fields(lambda: sent(request))) == [field]


@pytest.mark.parametrize(
    ("method", "limit"),
    [("StorageService/Get", 64 * 1024), ("MigrationService/GetMigration", 64 * 1024)],
)
def test_request_above_the_limit_of_its_method_is_refused(
    shared_channel: grpc.Channel, method: str, limit: int
) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        unary(shared_channel, method)(b"\x7a" * (limit + 1))
    assert caught.refusal.reason == "REQUEST_TOO_LARGE"
    assert caught.refusal.retry_after is None


@pytest.mark.parametrize("method", ["StorageService/Get", "StorageService/Export"])
def test_call_without_a_request_is_refused(shared_channel: grpc.Channel, method: str) -> None:
    call: Any = shared_channel.stream_stream(f"/sagastore.v1.{method}")
    with refused(grpc.StatusCode.UNIMPLEMENTED) as caught:
        list(call(iter(())))
    assert caught.refusal.reason == "NO_REQUEST"


def test_compressed_request_is_refused(storage: StorageServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        storage.Get(storage_pb2.GetRequest(id="x"), compression=grpc.Compression.Gzip)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_bulk_save_above_request_limit_is_refused(storage: StorageServiceStub) -> None:
    first, huge = message(), message(content="x" * 33 * MEGABYTE)
    answers: list[storage_pb2.BulkSaveResponse] = []
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        answers.extend(storage.BulkSave(iter([batch(1, first), batch(2, huge)])))
    assert str(32 * MEGABYTE) in caught.refusal.message
    storage.Get(storage_pb2.GetRequest(id=first.id))


def test_batch_get_above_response_limit_is_refused(storage: StorageServiceStub) -> None:
    ids = [new_id() for _ in range(3)]
    for message_id in ids:
        large = message(
            id=message_id,
            content="\N{GRINNING FACE}" * 100_000,
            tags=["\N{GRINNING FACE}" * 256] * 512,
        )
        storage.Save(storage_pb2.SaveRequest(message=large))
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED) as caught:
        storage.BatchGet(storage_pb2.BatchGetRequest(ids=ids * 100))
    assert caught.refusal.reason == "RESPONSE_TOO_LARGE"
    assert "67,108,864" in caught.refusal.message
    assert len(storage.BatchGet(storage_pb2.BatchGetRequest(ids=ids * 20)).messages) == 60


class TestPageTokens:
    def token(self, storage: StorageServiceStub, session: str) -> str:
        if not storage.List(storage_pb2.ListRequest(session_id=session)).messages:
            for _ in range(3):
                one = message(session_id=session)
                storage.Save(storage_pb2.SaveRequest(message=one))
        page = storage.List(storage_pb2.ListRequest(session_id=session, page_size=1))
        return page.next_page_token

    def test_a_token_that_was_altered(self, storage: StorageServiceStub) -> None:
        session = new_id()
        token = self.token(storage, session)
        altered = [token[:-1], token + "A", token[1:], token + "=", token.swapcase(), " " + token]
        altered += [
            token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            for at in range(0, len(token), 5)
        ]
        for bad in altered:
            request = storage_pb2.ListRequest(session_id=session, page_token=bad)
            assert list(invalid_fields(lambda r=request: storage.List(r))) == ["page_token"]  # type: ignore[misc]

    def test_token_of_another_request_is_rejected(self, storage: StorageServiceStub) -> None:
        session = new_id()
        token = self.token(storage, session)
        calls: list[Callable[[], Any]] = [
            lambda: storage.List(storage_pb2.ListRequest(session_id="x", page_token=token)),
            lambda: storage.List(
                storage_pb2.ListRequest(session_id=session, page_token=token, newest_first=True)
            ),
            lambda: storage.Search(storage_pb2.SearchRequest(page_token=token)),
        ]
        for call in calls:
            assert list(invalid_fields(call)) == ["page_token"]
        export = storage_pb2.ExportRequest(resume_token=token)
        assert list(invalid_fields(lambda: list(storage.Export(export)))) == ["resume_token"]

    @pytest.mark.parametrize(
        "changed",
        [
            {"query": "saga"},
            {"tags": ["b", "a"]},
            {"provider": "anthropic"},
            {"role": "assistant"},
            {"session_id": ""},
            {"start_time": at(1)},
            {"end_time": at(2**33 + 1)},
            {"metadata_json": '{"a": 2}'},
            {"order": storage_pb2.ORDER_OLDEST},
        ],
    )
    def test_a_search_token_with_one_field_changed(
        self, storage: StorageServiceStub, changed: dict[str, Any]
    ) -> None:
        marker = new_id()
        for _ in range(2):
            one = message(tags=["a", "b"], metadata_json='{"a": 1}', session_id=marker)
            storage.Save(storage_pb2.SaveRequest(message=one))
        same: dict[str, Any] = {
            "query": "what saga",
            "tags": ["a", "b"],
            "provider": "openai",
            "role": "user",
            "session_id": marker,
            "start_time": at(0),
            "end_time": at(2**33),
            "metadata_json": '{"a": 1}',
            "order": storage_pb2.ORDER_NEWEST,
        }
        first = storage.Search(storage_pb2.SearchRequest(page_size=1, **same))
        token = first.next_page_token
        other = storage_pb2.SearchRequest(page_token=token, **(same | changed))
        assert list(invalid_fields(lambda: storage.Search(other))) == ["page_token"]

        respelled = same | {"metadata_json": '{"a":1}'}
        second = storage.Search(
            storage_pb2.SearchRequest(page_size=5, page_token=token, **respelled)
        )
        assert len(first.results) == len(second.results) == 1


class TestBatches:
    def test_of_one_id_the_last_valid_message_counts(self, storage: StorageServiceStub) -> None:
        one = new_id()
        sent = [
            message(id=one, content="first"),
            message(id=one, content="second"),
            message(id=one, content=NUL),
        ]
        (answer,) = storage.BulkSave(iter([batch(1, *sent)]))
        assert (answer.saved, answer.unchanged, answer.skipped) == (1, 0, 1)
        assert len(answer.rejected) == 1
        found = storage.Get(storage_pb2.GetRequest(id=one)).message
        assert found.content == "second"

    def test_a_batch_sent_again_is_unchanged(self, storage: StorageServiceStub) -> None:
        again = batch(1, *(message(timestamp=at(n)) for n in range(5)))
        first, second = storage.BulkSave(iter([again, again]))
        assert (first.saved, first.unchanged) == (5, 0)
        assert (second.saved, second.unchanged) == (0, 5)

    def test_skip_leaves_what_is_stored(self, storage: StorageServiceStub) -> None:
        stored, new = message(content="stored"), message()
        storage.Save(storage_pb2.SaveRequest(message=stored))
        changed = message(id=stored.id, content="changed")
        skip = batch(1, changed, new, on_conflict=storage_pb2.ON_CONFLICT_SKIP)
        (answer,) = storage.BulkSave(iter([skip]))
        assert (answer.saved, answer.skipped) == (1, 1)
        found = storage.Get(storage_pb2.GetRequest(id=stored.id)).message
        assert found.content == "stored"

    def test_later_batches_of_a_stream_win(self, storage: StorageServiceStub) -> None:
        one = new_id()
        batches = (batch(n, message(id=one, content=f"version {n}")) for n in range(50))
        answers = list(storage.BulkSave(batches))
        assert [answer.sequence for answer in answers] == list(range(50))
        found = storage.Get(storage_pb2.GetRequest(id=one)).message
        assert found.content == "version 49"

    def test_a_batch_of_nothing_but_bad_messages(self, storage: StorageServiceStub) -> None:
        (answer,) = storage.BulkSave(iter([batch(1, message(id=""), message(content=NUL))]))
        assert answer.saved == 0
        assert [rejected.index for rejected in answer.rejected] == [0, 1]

    def test_a_thousand_bad_messages_fit_into_an_answer(self, storage: StorageServiceStub) -> None:
        bad = [message(id="i" * 5_000, tags=[""] * 512) for _ in range(1000)]
        (answer,) = storage.BulkSave(iter([batch(1, *bad)]))
        assert len(answer.rejected) == 1000
        assert answer.ByteSize() < 4 * MEGABYTE

    def test_an_empty_stream(self, storage: StorageServiceStub) -> None:
        assert list(storage.BulkSave(iter([]))) == []
