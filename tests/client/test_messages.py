from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from sagastore import (
    Durability,
    InvalidArgumentError,
    Message,
    OnConflict,
    Order,
    Phase,
    SearchResult,
    Store,
    _convert,
    _time,
)
from sagastore._enums import MismatchKind
from sagastore.v1 import message_pb2

# Whole minutes: protobuf's own conversion, compared with below, cuts other offsets.
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
FIRST = datetime.fromisoformat("0001-01-02")
LAST = datetime.fromisoformat("9999-12-30")
moments = st.datetimes(FIRST, LAST, timezones=st.just(UTC) | offsets)
messages = st.builds(
    Message,
    st.text(),
    st.text(),
    st.text(),
    tags=st.lists(st.text()),
    timestamp=st.none() | moments,
    metadata=st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
    session_id=st.none() | st.text(),
)


@given(messages)
def test_messages_round_trip_through_protobuf(message: Message) -> None:
    pb = _convert.message_to_pb(message, "id")
    again = _convert.message_from_pb(message_pb2.Message.FromString(pb.SerializeToString()))
    assert again == dataclasses.replace(message, id="id")


@given(moments)
def test_times_are_exact_to_the_microsecond(moment: datetime) -> None:
    seconds, nanos = _time.to_wire(moment, "t")
    assert _time.from_wire(seconds, nanos) == moment
    theirs = Timestamp()
    theirs.FromDatetime(moment)
    assert (theirs.seconds, theirs.nanos) == (seconds, nanos)


def test_times_out_of_range_are_rejected() -> None:
    first = datetime.min.replace(tzinfo=UTC)
    last = datetime.max.replace(tzinfo=UTC)
    assert _time.from_wire(*_time.to_wire(first, "t")) == first
    assert _time.from_wire(*_time.to_wire(last, "t")) == last
    early = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))
    late = datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))
    for moment in (early, late):
        with pytest.raises(ValueError, match="outside the years 1 to 9999"):
            _time.to_wire(moment, "t")


def test_times_in_a_repeated_hour_are_exact() -> None:
    zone = ZoneInfo("Europe/Berlin")
    once = datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=0)
    twice = datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=1)
    assert _time.to_wire(twice, "t")[0] - _time.to_wire(once, "t")[0] == 3600


def test_message_defaults() -> None:
    message = Message("openai", "user", "hello", tags=["a"])
    assert message.tags == ("a",)
    assert (message.id, message.metadata, message.revision) == ("", {}, 0)
    assert (message.timestamp, message.session_id, message.created_at) == (None, None, None)


def test_naive_times_are_rejected() -> None:
    naive = datetime.fromisoformat("2024-01-01")
    with pytest.raises(ValueError, match=r"timestamp: 2024-01-01T00:00:00 has no time zone"):
        Message("a", "b", "c", timestamp=naive)
    with pytest.raises(ValueError, match=r"created_at: .* has no time zone"):
        Message("a", "b", "c", created_at=naive)


def test_common_mistakes_are_reported() -> None:
    with pytest.raises(TypeError, match="the one string 'abc'"):
        Message("a", "b", "c", tags="abc")
    with pytest.raises(TypeError, match="metadata: expected a mapping, got str"):
        Message("a", "b", "c", metadata="{}")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timestamp: expected a datetime, got str"):
        Message("a", "b", "c", timestamp="2024")  # type: ignore[arg-type]


def test_a_message_is_a_value() -> None:
    metadata = {"a": 1}
    message = Message("a", "b", "c", metadata=metadata)
    metadata["a"] = 2
    assert message.metadata == {"a": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.content = "x"  # type: ignore[misc]
    assert len({message, copy.copy(message), pickle.loads(pickle.dumps(message))}) == 1  # noqa: S301
    assert dataclasses.replace(message, content="d").content == "d"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"content": "a\ud800b"}, "content"),
        ({"provider": "\udfff"}, "provider"),
        ({"session_id": "\ud800"}, "session_id"),
        ({"tags": ["ok", "\ud800"]}, "tags[1]"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"metadata": {"a": {1: 2}}}, "metadata"),
        ({"role": 5}, "role"),
        ({"tags": [None]}, "tags[0]"),
        ({"timestamp": datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))}, "timestamp"),
    ],
)
def test_invalid_value_is_reported_with_its_field(changes: dict[str, Any], field: str) -> None:
    values = {"provider": "a", "role": "b", "content": "c"} | changes
    message = Message(**values)
    with pytest.raises(InvalidArgumentError) as caught:
        _convert.message_to_pb(message, "id")
    assert isinstance(caught.value, ValueError)
    assert [v.field for v in caught.value.violations] == [field]
    assert str(caught.value).startswith(field)


@given(messages)
def test_same_message_recognizes_the_stored_message(message: Message) -> None:
    sent = _convert.message_to_pb(message, "id")
    stored = message_pb2.Message()
    stored.CopyFrom(sent)
    stored.revision = 7
    if not sent.HasField("timestamp"):
        stored.timestamp.seconds = 5
    assert _convert.same_message(sent, stored)
    stored.content += "x"
    assert not _convert.same_message(sent, stored)


def test_none_and_empty_session_differ() -> None:
    none = _convert.message_to_pb(Message("a", "b", "c"), "id")
    empty = _convert.message_to_pb(Message("a", "b", "c", session_id=""), "id")
    assert not _convert.same_message(none, empty)
    assert _convert.message_from_pb(none).session_id is None
    assert _convert.message_from_pb(empty).session_id == ""


def test_highlight_marks_words_and_escapes_text() -> None:
    result = SearchResult(Message("a", "b", "c"), 1.0, "a <b> \x02word\x03 & more")
    assert result.highlight() == "a <b> **word** & more"
    assert result.highlight("[", "]") == "a <b> [word] & more"
    escaped = result.highlight("<em>", "</em>", escape=lambda t: t.replace("<", "&lt;"))
    assert escaped == "a &lt;b> <em>word</em> & more"


def test_unknown_enum_values_are_read() -> None:
    assert Phase(99) is Phase.UNKNOWN
    assert Store(99) is Store.UNKNOWN
    assert MismatchKind("NEW") is MismatchKind.UNKNOWN
    with pytest.raises(ValueError, match="not a valid"):
        Phase("x")  # type: ignore[arg-type]


def test_phase_names_are_parsed() -> None:
    assert Phase.parse("read-postgres") is Phase.READ_POSTGRES
    assert Phase.READ_POSTGRES.label == "read-postgres"
    assert str(Phase.DUAL_WRITE) == "DUAL_WRITE"
    with pytest.raises(ValueError, match="the phases are sqlite-only, dual-write, backfill"):
        Phase.parse("unknown")


# JSON


FULL_JSON = Message(
    "openai",
    "user",
    "Grüße 👋",
    id="x",
    tags=["b", "a"],
    timestamp=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
    metadata={"exact": Decimal("0.1000000000000000000000000001"), "list": [1, None]},
    session_id="",
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    revision=7,
    sequence=9,
)


@pytest.mark.parametrize("message", [FULL_JSON, Message("p", "r", "")])
def test_message_survives_json(message: Message) -> None:
    text = message.to_json()
    assert "\n" not in text
    assert Message.from_json(text) == message
    assert Message.from_json(text.encode()) == message


def test_json_of_a_message_needs_three_fields() -> None:
    read = Message.from_json('{"provider": "p", "role": "r", "content": "c", "tags": null}')
    assert read == Message("p", "r", "c")
    naive = '{"provider":"p","role":"r","content":"c","timestamp":"2026-01-02T03:04:05.1234567"}'
    assert Message.from_json(naive).timestamp == datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "message: is not JSON"),
        (b"\xff", "message: is not UTF-8 at byte 0"),
        ("[]", "message: is not a JSON object"),
        ('{"provider": "p", "role": "r"}', "content: is missing"),
        ('{"provider": "p", "role": "r", "content": "c", "x": 1}', "x: is not a field"),
        ('{"provider": 1, "role": "r", "content": "c"}', "provider: is not a string"),
        ('{"provider": "p", "role": "r", "content": "c", "tags": "a"}', "tags: is not a list"),
        ('{"provider": "p", "role": "r", "content": "c", "tags": [1]}', r"tags\[0\]: is not a s"),
        ('{"provider": "p", "role": "r", "content": "c", "metadata": []}', "metadata: is not an o"),
        ('{"provider": "p", "role": "r", "content": "c", "revision": true}', "revision: is not"),
        ('{"provider": "p", "role": "r", "content": "c", "timestamp": "x"}', "timestamp: 'x' is"),
    ],
)
def test_text_that_is_not_a_message_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}"):
        Message.from_json(text)


@pytest.mark.parametrize(
    ("enumeration", "name", "member"),
    [
        (Phase, "dual-write", Phase.DUAL_WRITE),
        (Durability, "Both", Durability.BOTH),
        (OnConflict, "skip", OnConflict.SKIP),
        (Order, Order.NEWEST, Order.NEWEST),
    ],
)
def test_member_of_an_enumeration_is_found_by_name(
    enumeration: type[Phase], name: str, member: Phase
) -> None:
    assert enumeration.of(name) is member
    for other in ("nonsense", "unknown", "", 77):
        with pytest.raises(ValueError, match="is not one of"):
            enumeration.of(other)  # type: ignore[arg-type]
