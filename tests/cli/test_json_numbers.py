"""JSON numbers of any size: exact, or a rejected field, in the library, imports and server."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sagastore import Message, _json
from sagastore.canonical_json import JsonTextError, canonical_object
from sagastore.importers.jsonl import read_line
from sagastore.json_numbers import MAX_FRACTION_DIGITS, MAX_WHOLE_DIGITS
from sagastore.legacy import COLUMNS, Text, judge_row
from sagastore_server.storage.validation import Violations

ROW = {
    "id": Text(b"m"),
    "provider": Text(b"p"),
    "role": Text(b"user"),
    "content": Text(b"c"),
    "timestamp": Text(b"2025-04-02"),
}

exponents = st.one_of(
    st.just(""),
    st.tuples(
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.one_of(
            st.integers(0, 20),
            st.integers(MAX_FRACTION_DIGITS - 3, MAX_FRACTION_DIGITS + 3),
            st.integers(MAX_WHOLE_DIGITS - 3, MAX_WHOLE_DIGITS + 3),
            st.integers(0, 10**25),
        ).map(str),
    ).map("".join),
)
long_digits = st.sampled_from([4_299, 4_300, 4_301, MAX_WHOLE_DIGITS, MAX_WHOLE_DIGITS + 1])
whole = st.one_of(
    st.integers(0, 10**30).map(str),
    long_digits.map(lambda count: Number("9" * count)),
    st.just("0"),
)
fraction = st.one_of(st.just(""), st.from_regex(r"\.[0-9]{1,40}", fullmatch=True))


class Number(str):
    """A number whose representation in a report is short."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self[:40]} of {len(self)} characters>"


parts = st.tuples(st.sampled_from(["", "-"]), whole, fraction, exponents)
numbers = parts.map(lambda found: Number("".join(found)))
others = st.sampled_from(["NaN", "Infinity", "-Infinity"])

NAMED = ["1e99999999999999999999", "-1e-99999999999999999999", "-0", "-0.0", "1E+400", "1e-400",
         "1e131071", "1e131072", "1e-16383", "1e-16384", "0e99999999999999999999"]  # fmt: skip


def _named(test: Callable[[str], None]) -> Callable[[str], None]:
    for text in NAMED:
        test = example(text)(test)
    return test


def _expected(metadata: str) -> str:
    """Return the canonical text, or the reason against it."""
    try:
        return canonical_object(metadata)
    except JsonTextError as exc:
        return str(exc)


def _value(canonical: str) -> Decimal | None:
    if not canonical.startswith("{"):
        return None
    value = json.loads(canonical, parse_int=Decimal, parse_float=Decimal)["n"]
    return value if isinstance(value, Decimal) else None


@_named
@given(numbers | others)
def test_number_is_exact_or_rejects_its_field(number: str) -> None:
    """The server's check, a legacy row and a line of an import give the same value or reason."""
    metadata = f'{{"n": {number}}}'
    expected = _expected(metadata)
    if (value := _value(expected)) is not None:
        assert value == Decimal(number)

    violations = Violations()
    canonical = violations.metadata("metadata_json", metadata)
    assert expected == (violations.found[0].reason if violations.found else canonical)

    row, problems = judge_row(
        [(ROW | {"metadata": Text(metadata.encode())}).get(c) for c in COLUMNS]
    )
    assert expected == (problems[0].reason if problems else row.metadata)
    assert [problem.field for problem in problems] in ([], ["metadata"])

    line = f'{{"provider": "p", "role": "r", "content": "c", "metadata": {metadata}}}'
    message, found = read_line(line.encode(), 1)
    if message is None:
        assert [tuple(problem) for problem in found] == [("metadata", expected)]
    else:
        assert canonical_object(_json.dumps(message.metadata)) == expected


@_named
@given(numbers | others)
def test_library_reads_an_exact_number_or_raises_one_line(number: str) -> None:
    text = f'{{"provider": "p", "role": "r", "content": "c", "metadata": {{"n": {number}}}}}'
    problem = ""
    try:
        value = Message.from_json(text).metadata["n"]
    except ValueError as exc:
        problem = str(exc)
    else:
        assert Decimal(str(value)) == Decimal(number)
    assert len(problem.splitlines()) <= 1
    assert len(problem) < 200


@given(st.sampled_from(["id", "provider", "role", "content", "tags", "timestamp", "session_id"]),
       numbers | others)  # fmt: skip
def test_number_in_another_field_rejects_that_field(field: str, number: str) -> None:
    fields = {"provider": '"p"', "role": '"r"', "content": '"c"'} | {field: number}
    line = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"
    message, problems = read_line(line.encode(), 1)
    assert message is None
    assert [problem.field for problem in problems] == [field]


@pytest.mark.parametrize("count", [1, 40])
def test_many_numbers_that_stand_for_many_digits_are_rejected(count: int) -> None:
    numbers_text = ", ".join(["1e99999"] * count)
    line = f'{{"provider":"p","role":"r","content":"c","metadata":{{"n":[{numbers_text}]}}}}'
    message, problems = read_line(line.encode(), 1)
    assert (message is None) == (count == 40)
    assert [problem.reason for problem in problems] in (
        [],
        ["is larger than 1,048,576 bytes when written out in full"],
    )
