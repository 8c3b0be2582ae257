from __future__ import annotations

from typing import Any

import pytest

from sagastore_server.storage.errors import InvalidRequestError
from sagastore_server.storage.model import NewMessage
from sagastore_server.storage.validation import MAX_TIMESTAMP, MIN_TIMESTAMP, Violations

VALID: dict[str, Any] = {
    "message_id": "m-1",
    "provider": "openai",
    "role": "user",
    "content": "text",
    "tags": [],
    "timestamp": None,
    "metadata": "",
    "session_id": None,
}
WIDE = "\U0001f600"


def _check(**fields: Any) -> dict[str, str]:
    """Return field and reason of every violation of a message with these fields."""
    violations = Violations()
    violations.draft("message.", **(VALID | fields))
    assert len({one.field for one in violations.found}) == len(violations.found)
    assert all("\n" not in one.reason for one in violations.found)
    return {one.field.removeprefix("message."): one.reason for one in violations.found}


@pytest.mark.parametrize(
    ("name", "field", "longest"),
    [
        ("message_id", "id", 128),
        ("provider", "provider", 64),
        ("role", "role", 32),
        ("content", "content", 1_000_000),
        ("session_id", "session_id", 256),
    ],
)
@pytest.mark.parametrize("character", ["x", WIDE], ids=["ascii", "wide"])
def test_lengths_in_characters(name: str, field: str, longest: int, character: str) -> None:
    assert _check(**{name: character}) == {}
    assert _check(**{name: character * longest}) == {}
    assert list(_check(**{name: character * (longest + 1)})) == [field]


@pytest.mark.parametrize("name", ["id", "provider", "role"])
def test_required(name: str) -> None:
    assert list(_check(**{"message_id" if name == "id" else name: ""})) == [name]


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u00a0", "\u2003\u3000"], ids=ascii)
def test_content_may_be_blank(blank: str) -> None:
    assert _check(content=blank) == {}


def test_an_empty_session_is_a_session() -> None:
    assert _check(session_id="") == {}


def test_tags() -> None:
    assert _check(tags=["x"] * 512) == {}
    assert list(_check(tags=["x"] * 513)) == ["tags"]
    assert _check(tags=[WIDE * 256, "x" * 256, " "]) == {}
    found = _check(tags=["a", "", "x" * 257, WIDE * 257, "nul\x00", "\ud800", "b"])
    assert list(found) == [f"tags[{at}]" for at in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("text", ["a\x00b", "\x00", "a\ud800", "\udfff"], ids=ascii)
@pytest.mark.parametrize("name", ["message_id", "provider", "role", "content", "session_id"])
def test_what_no_store_can_hold(name: str, text: str) -> None:
    assert list(_check(**{name: text})) == ["id" if name == "message_id" else name]


def test_metadata() -> None:
    assert _check(metadata='{"a": 1}') == {}
    for text in ("[]", "{", '{"a": NaN}', '{"a": "\\u0000"}', '{"a": 1, "a": 1}'):
        assert list(_check(metadata=text)) == ["metadata_json"]


def test_all_violations_together() -> None:
    found = _check(
        message_id="",
        provider="",
        role="r" * 33,
        content="\x00",
        tags=["", "ok", "\x00"],
        metadata="x",
        session_id="s" * 257,
    )
    assert list(found) == [
        "id",
        "provider",
        "role",
        "content",
        "tags[0]",
        "tags[2]",
        "metadata_json",
        "session_id",
    ]


def test_a_valid_draft() -> None:
    violations = Violations()
    fields = VALID | {"tags": ["b", "a", "b"], "metadata": '{"b":1,"a":2}', "timestamp": 5}
    draft = violations.draft("", **fields)
    violations.raise_if_any()
    expected = ("m-1", "openai", "user", "text", ("b", "a", "b"), 5, '{"a": 2, "b": 1}', None)
    assert draft == NewMessage(*expected)


def test_the_error_names_everything() -> None:
    violations = Violations()
    violations.add("a", "is wrong")
    violations.add("b[1]", "is wrong too")
    with pytest.raises(InvalidRequestError) as caught:
        violations.raise_if_any()
    assert str(caught.value) == "a: is wrong; b[1]: is wrong too"
    assert caught.value.violations == tuple(violations.found)


SECOND = 1_000_000


@pytest.mark.parametrize(
    ("seconds", "nanos", "micros"),
    [
        (0, 0, 0),
        (1, 1000, SECOND + 1),
        (-1, 999_999_000, -1),
        (MIN_TIMESTAMP // SECOND, 0, MIN_TIMESTAMP),
        (MAX_TIMESTAMP // SECOND, 999_999_000, MAX_TIMESTAMP),
        (MIN_TIMESTAMP // SECOND - 1, 999_999_000, None),
        (MAX_TIMESTAMP // SECOND + 1, 0, None),
        (0, 1, 0),
        (0, 999, 0),
        (0, 1001, 1),
        (0, 999_999_999, SECOND - 1),
        (-1, 999_999_999, -1),
        (-1, 1, -SECOND),
        (-2, 500, -2 * SECOND),
        (MIN_TIMESTAMP // SECOND, 1, MIN_TIMESTAMP),
        (MAX_TIMESTAMP // SECOND, 999_999_999, MAX_TIMESTAMP),
        (MIN_TIMESTAMP // SECOND - 1, 999_999_999, None),
        (0, -1000, None),
        (0, 1_000_000_000, None),
        (2**63 - 1, 0, None),
        (-(2**63), 0, None),
    ],
)
def test_timestamps(seconds: int, nanos: int, micros: int | None) -> None:
    violations = Violations()
    result = violations.timestamp("t", seconds, nanos)
    assert bool(violations.found) is (micros is None)
    assert result == (micros or 0)


@pytest.mark.parametrize(
    ("value", "expected", "valid"),
    [(0, 50, True), (1, 1, True), (500, 500, True), (501, 500, True), (-1, 50, False)],
)
def test_page_sizes(value: int, expected: int, valid: bool) -> None:
    violations = Violations()
    assert violations.size("page_size", value, 50, 500) == expected
    assert bool(violations.found) is not valid


@pytest.mark.parametrize(
    ("value", "lowest", "valid"),
    [(None, 0, True), (0, 0, True), (-1, 0, False), (0, 1, False), (1, 1, True)],
)
def test_revisions(value: int | None, lowest: int, valid: bool) -> None:
    violations = Violations()
    assert violations.revision("if_revision", value, lowest=lowest) == value
    assert bool(violations.found) is not valid
