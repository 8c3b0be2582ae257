"""Random requests get a response or INVALID_ARGUMENT, and never INTERNAL."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagastore.v1 import storage_pb2
from sagastore.v1.storage_pb2_grpc import StorageServiceStub
from tests.support.messages import at, batch, message, new_id
from tests.support.rpc_errors import refusal_of

over_the_socket = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, max_size=300)
OPERATORS = st.lists(
    st.sampled_from(['"', "-", "*", "OR", "AND", "NEAR(", ")", "(", ":", "^", "saga", "'", "😀"]),
    max_size=30,
).map("".join)
QUERIES = TEXT | OPERATORS | st.tuples(TEXT, OPERATORS, TEXT).map(" ".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TIMES = st.builds(at, st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1)) | (
    st.builds(at, st.integers(0, 4_000_000_000))
)
PLAUSIBLE = st.builds(
    message,
    id=st.uuids().map(str) | TEXT,
    provider=st.sampled_from(["openai", "google"]) | TEXT,
    role=st.sampled_from(["user", "tool"]) | TEXT,
    content=TEXT | QUERIES,
    tags=st.lists(TEXT, max_size=5),
    timestamp=st.none() | TIMES,
    metadata_json=st.just("") | TEXT | JSON.map(json.dumps),
    session_id=st.none() | TEXT,
)


def accepted(call: Callable[[], Any]) -> Any:
    """Return the response, or None if the request was correctly rejected."""
    try:
        return call()
    except grpc.RpcError as exc:
        refusal = refusal_of(exc)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal
        assert refusal.fields
        return None


@over_the_socket
@given(sent=PLAUSIBLE)
def test_save_of_random_message_round_trips(storage: StorageServiceStub, sent: Any) -> None:
    answer = accepted(lambda: storage.Save(storage_pb2.SaveRequest(message=sent)))
    if answer is not None:
        found = storage.Get(storage_pb2.GetRequest(id=answer.id)).message
        for field in ("provider", "role", "content", "tags", "session_id"):
            assert getattr(found, field) == getattr(sent, field)
        assert found.HasField("session_id") == sent.HasField("session_id")
        if sent.HasField("timestamp"):
            # Finer times are truncated to microseconds.
            kept = sent.timestamp.nanos // 1000 * 1000
            assert (found.timestamp.seconds, found.timestamp.nanos) == (
                sent.timestamp.seconds,
                kept,
            )
        # Saving the returned message again changes nothing.
        again = storage.Save(storage_pb2.SaveRequest(message=found))
        assert (again.revision, again.created) == (answer.revision, False)


@over_the_socket
@given(sent=st.lists(PLAUSIBLE, min_size=1, max_size=10))
def test_bulk_save_counts_every_random_message(
    storage: StorageServiceStub, sent: list[Any]
) -> None:
    (answer,) = storage.BulkSave(iter([batch(1, *sent)]))
    counted = answer.saved + answer.unchanged + answer.skipped + len(answer.rejected)
    assert counted == len(sent)


@over_the_socket
@given(query=QUERIES)
def test_any_text_is_a_valid_query(storage: StorageServiceStub, query: str) -> None:
    storage.Search(storage_pb2.SearchRequest(query=query, page_size=3))


@over_the_socket
@given(content=TEXT)
def test_saved_message_is_found_by_its_words(storage: StorageServiceStub, content: str) -> None:
    session, marker = new_id(), "fuzzmark"
    one = message(content=f"{marker} {content}", session_id=session)
    if accepted(lambda: storage.Save(storage_pb2.SaveRequest(message=one))) is not None:
        request = storage_pb2.SearchRequest(query=marker, session_id=session)
        (result,) = storage.Search(request).results
        assert result.message.content == one.content


@over_the_socket
@given(
    request=st.builds(
        storage_pb2.SearchRequest,
        query=QUERIES,
        tags=st.lists(TEXT, max_size=3),
        provider=TEXT,
        role=TEXT,
        session_id=st.none() | TEXT,
        start_time=st.none() | TIMES,
        end_time=st.none() | TIMES,
        metadata_json=st.just("") | TEXT | JSON.map(json.dumps),
        page_size=st.integers(-(2**31), 2**31 - 1),
        page_token=st.just("") | TEXT,
        order=st.integers(0, 3) | st.integers(-(2**31), 2**31 - 1),
    )
)
def test_search_of_random_request_never_fails_internally(
    storage: StorageServiceStub, request: Any
) -> None:
    accepted(lambda: storage.Search(request))


@over_the_socket
@given(data=st.binary(max_size=300), method=st.sampled_from(["Save", "Search", "BatchGet", "List"]))
def test_random_bytes_never_fail_internally(
    shared_channel: grpc.Channel, data: bytes, method: str
) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = shared_channel.unary_unary(
        f"/sagastore.v1.StorageService/{method}"
    )
    accepted(lambda: call(data))
