"""Every RPC of SessionService over a real socket, and a deletion interrupted by SIGKILL."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from sagastore.v1 import message_pb2, session_pb2, storage_pb2
from sagastore.v1.session_pb2_grpc import SessionServiceStub
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.conftest import ServerFactory
from tests.support.messages import at, batch, message, new_id
from tests.support.rpc_errors import invalid_fields, refused
from tests.support.waiting import eventually

MANY = 6_000
"""Messages of the session whose deletion is interrupted: twelve steps."""


@pytest.fixture
def sessions(shared_channel: grpc.Channel) -> SessionServiceStub:
    """Return a stub of the shared server."""
    return SessionServiceStub(shared_channel)


def append(
    sessions: SessionServiceStub, session_id: str, *contents: str, **fields: Any
) -> session_pb2.AppendResponse:
    messages = [message(content=content, timestamp=at(1_700_000_000)) for content in contents]
    request = session_pb2.AppendRequest(session_id=session_id, messages=messages, **fields)
    return sessions.Append(request)


def listed(storage: StorageServiceStub, session_id: str) -> list[message_pb2.Message]:
    return list(storage.List(storage_pb2.ListRequest(session_id=session_id)).messages)


def test_turn_is_stored_in_order(sessions: SessionServiceStub, storage: StorageServiceStub) -> None:
    name = new_id()
    answer = append(sessions, name, "question", "tool call", "answer", if_revision=0)
    sequences = [one.sequence for one in answer.saved]
    assert sequences == list(range(sequences[0], sequences[0] + 3))
    assert [one.id for one in listed(storage, name)] == [one.id for one in answer.saved]
    assert list(answer.durable_on) == [storage_pb2.STORE_SQLITE]
    found = sessions.GetSession(session_pb2.GetSessionRequest(session_id=name)).session
    assert found == answer.session
    assert (found.message_count, found.first_message) == (3, "question")
    assert found.first_time == found.last_time == at(1_700_000_000)
    assert (found.last_sequence, list(found.providers)) == (sequences[-1], ["openai"])


def test_server_assigns_ids_of_a_turn(sessions: SessionServiceStub) -> None:
    turn = [message_pb2.Message(provider="p", role="user", content=str(n)) for n in range(3)]
    answer = sessions.Append(session_pb2.AppendRequest(session_id=new_id(), messages=turn))
    assert len({one.id for one in answer.saved}) == 3
    assert all(one.created for one in answer.saved)


def test_guard_refuses_a_turn(sessions: SessionServiceStub, storage: StorageServiceStub) -> None:
    name = new_id()
    first = append(sessions, name, "a", if_revision=0)
    with refused(grpc.StatusCode.ALREADY_EXISTS) as exists:
        append(sessions, name, "b", if_revision=0)
    assert exists.refusal.reason == "SESSION_EXISTS"
    append(sessions, name, "b", if_revision=first.session.revision)
    with refused(grpc.StatusCode.ABORTED) as stale:
        append(sessions, name, "c", if_revision=first.session.revision)
    assert stale.refusal.reason == "SESSION_REVISION_MISMATCH"
    assert stale.refusal.metadata["id"] == name
    assert [one.content for one in listed(storage, name)] == ["a", "b"]


def test_invalid_turns_name_every_field(sessions: SessionServiceStub) -> None:
    request = session_pb2.AppendRequest
    assert set(invalid_fields(lambda: sessions.Append(request(session_id="s")))) == {"messages"}
    same = new_id()
    turn = [
        message(id=same),
        message(id=same),
        message(provider="", session_id="another"),
        message(role="r" * 33),
    ]
    wrong = request(session_id="s" * 257, messages=turn, if_revision=-1, durability=9)  # type: ignore[arg-type]
    assert set(invalid_fields(lambda: sessions.Append(wrong))) == {
        "session_id",
        "messages[1].id",
        "messages[2].provider",
        "messages[2].session_id",
        "messages[3].role",
        "if_revision",
        "durability",
    }


def test_update_creates_and_changes(sessions: SessionServiceStub) -> None:
    name = new_id()

    def update(mask: list[str], **fields: Any) -> session_pb2.Session:
        session = session_pb2.Session(session_id=name, **fields)
        paths = FieldMask(paths=mask)
        request = session_pb2.UpdateSessionRequest(session=session, update_mask=paths)
        return sessions.UpdateSession(request).session

    made = update([], title="a", metadata_json='{"b": 1, "a": 2}')
    assert (made.title, made.metadata_json) == ("a", '{"a": 2, "b": 1}')
    assert not made.HasField("last_time")
    changed = update(["title"], title="b", metadata_json="ignored")
    assert (changed.title, changed.metadata_json) == ("b", '{"a": 2, "b": 1}')
    assert changed.revision > made.revision
    assert update(["title"], title="b") == changed
    assert set(invalid_fields(lambda: update(["message_count"], title="t" * 513))) == {
        "update_mask.paths[0]"
    }
    large = '{"a": "' + "x" * (256 * 1024) + '"}'
    assert set(invalid_fields(lambda: update([], title="t" * 513, metadata_json=large))) == {
        "session.title",
        "session.metadata_json",
    }


def test_list_pages_and_refuses_foreign_tokens(sessions: SessionServiceStub) -> None:
    provider, names = new_id()[:36], [new_id() for _ in range(7)]
    for place, name in enumerate(names):
        turn = [message(provider=provider, timestamp=at(1_800_000_000 + place))]
        sessions.Append(session_pb2.AppendRequest(session_id=name, messages=turn))
    request = session_pb2.ListSessionsRequest(provider=provider, page_size=3)
    found: list[str] = []
    while True:
        page = sessions.ListSessions(request)
        found += [one.session_id for one in page.sessions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == names[::-1]
    request.provider = ""
    assert set(invalid_fields(lambda: sessions.ListSessions(request))) == {"page_token"}
    request = session_pb2.ListSessionsRequest(
        provider=provider, start_time=at(1_800_000_002), end_time=at(1_800_000_004)
    )
    assert [one.session_id for one in sessions.ListSessions(request).sessions] == names[3:1:-1]


def test_truncate_answers_what_it_removed(
    sessions: SessionServiceStub, storage: StorageServiceStub
) -> None:
    name = new_id()
    saved = append(sessions, name, "a", "b", "c", "d").saved
    request = session_pb2.TruncateSessionRequest
    answer = sessions.TruncateSession(request(session_id=name, drop_last=1))
    assert [one.content for one in answer.removed] == ["d"]
    answer = sessions.TruncateSession(request(session_id=name, keep_through=saved[0].id))
    assert [one.content for one in answer.removed] == ["b", "c"]
    assert [one.content for one in listed(storage, name)] == ["a"]
    for wrong in (
        request(session_id=name),
        request(session_id=name, drop_last=1, keep_through="x"),
        request(session_id=name, drop_last=1001),
        request(session_id=name, drop_last=-1),
    ):
        assert set(invalid_fields(lambda wrong=wrong: sessions.TruncateSession(wrong))) == {  # type: ignore[misc]
            "drop_last"
        }
    with refused(grpc.StatusCode.NOT_FOUND) as missing:
        sessions.TruncateSession(request(session_id=new_id(), drop_last=1))
    assert missing.refusal.reason == "SESSION_NOT_FOUND"


def test_deleted_session_is_gone(sessions: SessionServiceStub, storage: StorageServiceStub) -> None:
    name = new_id()
    append(sessions, name, "a", "b")
    request = session_pb2.DeleteSessionRequest(session_id=name)
    assert sessions.DeleteSession(request).deleted_messages == 2
    assert listed(storage, name) == []
    with refused(grpc.StatusCode.NOT_FOUND):
        sessions.GetSession(session_pb2.GetSessionRequest(session_id=name))
    with refused(grpc.StatusCode.NOT_FOUND):
        sessions.DeleteSession(request)


def test_interrupted_deletion_is_completed_after_a_kill(server_process: ServerFactory) -> None:
    server = server_process()
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        storage, sessions = StorageServiceStub(channel), SessionServiceStub(channel)
        batches = (
            batch(n, *(message(session_id="s") for _ in range(1000))) for n in range(MANY // 1000)
        )
        assert sum(one.saved for one in storage.BulkSave(batches)) == MANY
        request = session_pb2.DeleteSessionRequest(session_id="s")
        deletion = sessions.DeleteSession.future(request)
        count = session_pb2.GetSessionRequest(session_id="s")
        eventually(lambda: sessions.GetSession(count).session.message_count < MANY)
        server.kill9()
        deletion.cancel()
    server.restart()
    with grpc.insecure_channel(server.address) as channel:
        sessions, storage = SessionServiceStub(channel), StorageServiceStub(channel)

        def gone() -> bool:
            try:
                sessions.GetSession(count, wait_for_ready=True)
            except grpc.RpcError as exc:
                return exc.code() is grpc.StatusCode.NOT_FOUND
            return False

        eventually(gone)
        assert listed(storage, "s") == []
