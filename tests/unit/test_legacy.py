"""What a legacy row means, and what is not guessed."""

from __future__ import annotations

import base64
import json
import math
import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore.legacy import (
    COLUMNS,
    LegacyMessage,
    RawValue,
    Text,
    raw_row_as_json,
    read_row,
    read_time,
)
from tests.support.strategies import storable_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PLAIN: dict[str, RawValue] = {
    "id": Text(b"m1"),
    "provider": Text(b"openai"),
    "role": Text(b"user"),
    "content": Text(b"hello"),
    "tags": Text(b'["a", "b"]'),
    "timestamp": Text(b"2025-04-02T10:00:00"),
    "metadata": Text(b'{"n": 1.50}'),
    "session_id": Text(b"s"),
    "created_at": Text(b"2025-04-02 10:00:01"),
}
APRIL = 1_743_588_000_000_000
SECOND = 1_000_000

aware_times = st.datetimes(
    min_value=datetime(2, 1, 1),  # noqa: DTZ001 - Hypothesis adds the time zone
    max_value=datetime(9998, 12, 31),  # noqa: DTZ001
    timezones=st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
)
raw_values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(),
    storable_text,
    st.just("\x00"),
)


def read(**changes: RawValue) -> tuple[LegacyMessage, dict[str, str]]:
    message, problems = read_row([{**PLAIN, **changes}[name] for name in COLUMNS])
    assert len({problem.field for problem in problems}) == len(problems)
    return message, dict(problems)


def micros(value: datetime) -> int:
    return (value - EPOCH) // timedelta(microseconds=1)


def test_a_plain_row() -> None:
    expected = ("m1", "openai", "user", "hello", ("a", "b"), APRIL, '{"n": 1.50}', "s")
    assert read() == ((*expected, APRIL + SECOND), {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-04-02T10:00:00", APRIL),
        ("2025-04-02 10:00:00", APRIL),
        ("2025-04-02t10:00", APRIL),
        ("2025-04-02T10:00:00.5", APRIL + SECOND // 2),
        ("2025-04-02T10:00:00,000001", APRIL + 1),
        ("2025-04-02T10:00:00.000001000", APRIL + 1),
        ("2025-04-02T10:00:00Z", APRIL),
        ("2025-04-02T10:00:00z", APRIL),
        ("2025-04-02T12:00:00+02:00", APRIL),
        ("2025-04-02T12:00:00 +0200", APRIL),
        ("2025-04-02T08:00:00-02", APRIL),
        ("2025-04-02T10:00:00-00:00", APRIL),
        ("2025-04-02T10:00:01+00:00:01", APRIL),
        ("2025-04-02T10:00:00.000001+00:00:00.000001", APRIL),
        ("2025-04-02", APRIL - 10 * 3600 * SECOND),
        (" 2025-04-02T10:00:00\n", APRIL),
        ("0001-01-01T00:00:00", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59.999999", 253_402_300_799_999_999),
        ("9999-12-31T23:59:59.999999999", 253_402_300_799_999_999),
        ("2025-04-02T10:00:00.0000019Z", APRIL + 1),
        ("1743588000.0000019", APRIL + 1),
        ("1969-12-31T23:59:59.9999991", -1),
        ("1969-12-31T23:59:59.0000001", -SECOND),
        ("1743588000", APRIL),
        ("1743588000.25", APRIL + SECOND // 4),
    ],
)
def test_times_that_are_read(text: str, expected: int) -> None:
    assert read_time(Text(text.encode())) == expected
    assert read(created_at=Text(text.encode()))[0].created_at_us == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Text(b"yesterday"), "'yesterday', which is not a time"),
        (Text(b""), "not a time"),
        (Text(b"2025-W14-3"), "not a time"),
        (Text(b"20250402T100000"), "not a time"),
        (Text(b"2025-04-02T10"), "not a time"),
        (Text(b"2025-04-02Z"), "not a time"),
        (Text(b"2025-04-02T10:00:00 UTC"), "not a time"),
        (Text("2025-04-0\u0662".encode()), "not a time"),
        (Text(b"2025-04-02T10:00:00\x00"), "not a time"),
        (Text(b"2025-02-30"), "day that does not exist"),
        (Text(b"0000-01-01"), "day that does not exist"),
        (Text(b"2025-04-02T24:00"), "time of day that does not exist"),
        (Text(b"2025-04-02T10:00:60"), "time of day that does not exist"),
        (Text(b"2025-04-02T10:00:00+24:00"), "offset is a day or more"),
        (Text(b"0001-01-01T00:00:00+01:00"), "in UTC is outside the years"),
        (Text(b"9999-12-31T23:59:59-01:00"), "in UTC is outside the years"),
        (20250402, "Julian day or a date"),
        (2460768.5, "Julian day or a date"),
        (1743588000000, "milliseconds"),
        (999_999_999, "Unix seconds"),
        (4_100_000_000, "Unix seconds"),
        (-1, "Unix seconds"),
        (math.inf, "infinite"),
        (b"2025-04-02", "BLOB"),
        (None, "NULL"),
    ],
)
def test_times_that_are_not_guessed(value: RawValue, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_time(value)
    assert list(read(timestamp=value)[1]) == ["timestamp"]


def test_a_real_is_rounded_to_the_microsecond() -> None:
    assert read_time(1743588004.25) == APRIL + 4_250_000
    assert read_time(1743588000.1) == APRIL + 100_000
    assert read_time(1_000_000_000) == 1_000_000_000 * SECOND


@given(aware_times, st.sampled_from("T "))
def test_all_that_isoformat_writes_is_read(value: datetime, separator: str) -> None:
    assert read_time(Text(value.isoformat(separator).encode())) == micros(value)
    naive = value.replace(tzinfo=None)
    expected = micros(naive.replace(tzinfo=UTC))
    assert read_time(Text(naive.isoformat(separator).encode())) == expected


@given(st.text(alphabet="0123456789-:+.TZW ", max_size=30))
def test_what_python_reads_otherwise_is_not_read(text: str) -> None:
    """Where both read a text, they agree."""
    try:
        ours = read_time(Text(text.encode()))
        theirs = datetime.fromisoformat(text.strip(" "))
    except ValueError:
        return
    assert ours == micros(theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC))


@pytest.mark.parametrize("value", [None, Text(b""), Text(b" \n"), Text(b"null"), b""])
def test_empty_tags_and_metadata(value: RawValue) -> None:
    message, problems = read(tags=value, metadata=value)
    assert (message.tags, message.metadata, problems) == ((), "{}", {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b", "is not JSON"),
        ('{"a": 1}', "is a JSON object, not a JSON list"),
        ('"a"', "is a JSON string"),
        ("true", "is a JSON boolean"),
        ('["a", 1]', "position 1"),
        ('["a", null]', "position 1"),
        ('[["a"]]', "a JSON list at position 0"),
        ("[NaN]", "contains NaN"),
        ("[" * 100_000, "nested too deeply"),
        (f"[{'1' * 5000}]", "a JSON number or null at position 0"),
    ],
)
def test_tags_that_are_none(text: str, reason: str) -> None:
    assert reason in read(tags=Text(text.encode()))[1]["tags"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{broken", "is not JSON"),
        ("[]", "is a JSON list, not a JSON object"),
        ("1", "is a JSON number"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_metadata_that_is_none(text: str, reason: str) -> None:
    assert reason in read(metadata=Text(text.encode()))[1]["metadata"]


def test_metadata_is_passed_on_as_written() -> None:
    text = '{"a": NaN, "b": 1.0, "b": ' + "1" * 5000 + "}"
    assert read(metadata=Text(text.encode())) == (read()[0]._replace(metadata=text), {})


def test_text_of_other_storage_classes() -> None:
    message, problems = read(id=17, content=b"caf\xc3\xa9", session_id=None)
    assert (message.id, message.content, message.session_id) == ("17", "café", None)
    assert problems == {}


def test_every_problem_is_reported() -> None:
    _, problems = read(
        id=None, provider=1.5, role=b"\xff", content=Text(b"caf\xe9"), tags=2, metadata=b"\xff",
        timestamp=None, session_id=Text(b"\xed\xa0\x80"), created_at=5,
    )  # fmt: skip
    assert list(problems) == list(COLUMNS)
    assert problems["id"] == "is NULL"
    assert "bytes that are not UTF-8" in problems["role"]
    assert "bytes that are not UTF-8, the first at 3" in problems["content"]
    assert "real number 1.5" in problems["provider"]


def test_raw_rows_keep_storage_classes() -> None:
    values: list[RawValue] = [
        None, 2, 2.0, 2**63 - 1, math.inf, -math.inf, Text(b"a\x00\xc3\xa9"), Text(b"\xff"), b"a",
    ]  # fmt: skip
    row = json.loads(raw_row_as_json([str(n) for n in range(len(values))], values))
    assert list(row.values()) == [
        None,
        2,
        2.0,
        2**63 - 1,
        {"real": "Infinity"},
        {"real": "-Infinity"},
        "a\x00é",
        {"base64": "/w==", "type": "text"},
        {"base64": "YQ=="},
    ]
    assert isinstance(row["2"], float)


@given(st.lists(raw_values))
def test_raw_rows_can_be_restored(values: list[RawValue | str]) -> None:
    raw = [Text(v.encode()) if isinstance(v, str) else v for v in values]
    row = json.loads(raw_row_as_json([str(n) for n in range(len(raw))], raw))
    assert [_restored(value) for value in row.values()] == values


def test_text_factory_shows_what_is_stored() -> None:
    connection = sqlite3.connect(":memory:")
    connection.text_factory = Text
    row = connection.execute("SELECT CAST(x'ff00' AS TEXT), x'ff00', 'a', NULL, 1.0").fetchone()
    connection.close()
    assert [type(value) for value in row] == [Text, bytes, Text, type(None), float]
    assert row[0] == b"\xff\x00"


def _restored(value: object) -> object:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"]) if "base64" in value else float(value["real"])
    return value
