"""Canonical JSON text is what PostgreSQL prints, and containment what it answers."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore_server.storage.canonical_json import (
    MAX_BYTES,
    MAX_DEPTH,
    JsonTextError,
    canonical_object,
    canonical_tags,
    comparable,
    contains,
    parse,
    read,
    write,
)
from tests.support.postgres import postgres_dsn
from tests.support.reference_search import json_contains
from tests.support.strategies import storable_text


class Database:
    """One connection, for tests that are not coroutines."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._connection = self._runner.run(asyncpg.connect(dsn))

    def value(self, sql: str, *parameters: object) -> Any:
        return self._runner.run(self._connection.fetchval(sql, *parameters))

    def refuses(self, text: str) -> bool:
        try:
            self.value("SELECT $1::text::jsonb::text", text)
        except (asyncpg.PostgresError, UnicodeEncodeError):
            return True
        return False

    def close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Database]:
    with postgres_dsn() as dsn:
        database = Database(dsn)
        yield database
        database.close()


def _spelled(number: tuple[str, str, str, str]) -> str:
    sign, whole, fraction, exponent = number
    return sign + whole + (f".{fraction}" if fraction else "") + exponent


digits = st.text("0123456789", max_size=25)
numbers = st.one_of(
    st.tuples(
        st.sampled_from(["", "-"]),
        st.just("0") | st.from_regex(r"[1-9][0-9]{0,25}", fullmatch=True),
        digits,
        st.just("") | st.from_regex(r"[eE][+-]?[0-9]{1,3}", fullmatch=True),
    ).map(_spelled),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["-0", "-0.0", "-0e5", "0e9", "0.000", "1e-20", "1E+2", "10e-1", "0.10e1"]),
)
strings = storable_text.map(lambda text: json.dumps(text, ensure_ascii=False)) | storable_text.map(
    json.dumps
)
blanks = st.sampled_from(["", " ", "\n", "\t "])


def _array(items: list[str]) -> st.SearchStrategy[str]:
    return blanks.map(lambda blank: f"[{blank}" + f"{blank},".join(items) + f"{blank}]")


def _object(items: dict[str, str]) -> st.SearchStrategy[str]:
    parts = [f"{json.dumps(key)}:{value}" for key, value in items.items()]
    return blanks.map(lambda blank: f"{{{blank}" + f"{blank},{blank}".join(parts) + f"{blank}}}")


keys = storable_text | st.sampled_from(["a", "b", "aa", "é", "z", "", "😀", "\uffee"])
values = st.recursive(
    st.sampled_from(["true", "false", "null"]) | numbers | strings,
    lambda inner: (
        st.lists(inner, max_size=4).flatmap(_array)
        | st.dictionaries(keys, inner, max_size=4).flatmap(_object)
    ),
    max_leaves=12,
)
objects = st.dictionaries(keys, values, max_size=5).flatmap(_object)


@given(text=objects)
def test_canonical_text_is_postgresqls(postgres: Database, text: str) -> None:
    canonical = canonical_object(text)
    assert canonical == postgres.value("SELECT $1::text::jsonb::text", text)
    assert canonical_object(canonical) == canonical
    assert write(parse(canonical)) == canonical


@given(text=objects)
def test_canonical_text_is_read_as_any(text: str) -> None:
    canonical = canonical_object(text)
    value = read(canonical)
    assert value == parse(canonical)
    assert write(value) == canonical


@given(number=numbers)
def test_numbers_are_printed_as_by_postgresql(postgres: Database, number: str) -> None:
    text = f'{{"n": {number}}}'
    assert canonical_object(text) == postgres.value("SELECT $1::text::jsonb::text", text)


BORDERS = [
    "1e131071",
    "1e131072",
    "9e131071",
    "9" * 131_072,
    "9" * 131_073,
    "-" + "9" * 131_072,
    "-" + "9" * 131_073,
    "-" + "9" * 131_072 + "e0",
    "0e131072",
    "0e9999999",
    "1e-16383",
    "1e-16384",
    "0." + "0" * 16_382 + "1",
    "0." + "0" * 16_383 + "1",
    "0e-16383",
    "0e-16384",
    "1.0e-16382",
    "1.0e-16383",
    "10e131070",
    "10e131071",
    "0.1e131072",
    "0.1e131073",
    "0.001e131074",
    "0.001e131075",
    "-1e131071",
    "-1e131072",
    "1e99999999",
    "1e-99999999",
    "1e2147483648",
    "1e-2147483648",
    "1e99999999999999999999",
    "0e99999999999999999999",
]


@pytest.mark.parametrize("number", BORDERS, ids=lambda number: number[:24] + f"…{len(number)}")
def test_numbers_at_the_borders(postgres: Database, number: str) -> None:
    """What is refused, PostgreSQL refuses; what is accepted, it prints alike."""
    text = f'{{"n": {number}}}'
    try:
        canonical = canonical_object(text)
    except JsonTextError:
        assert postgres.refuses(text)
    else:
        assert canonical == postgres.value("SELECT $1::text::jsonb::text", text)


REFUSED_BY_BOTH = [
    '{"a": "\\u0000"}',
    '{"\\u0000": 1}',
    '{"a": "x\\u0000y"}',
    '{"a": "\\ud800"}',
    '{"a": "\\udc00"}',
    '{"a": "\\ud800x"}',
    '{"a": "\\udc00\\ud800"}',
    '{"\\ud800": 1}',
    '{"a": "\ud800"}',
    '{"a": NaN}',
    '{"a": Infinity}',
    '{"a": -Infinity}',
    '{"a": 1e200000}',
    '{"a": 1e-20000}',
    "{",
    "}",
    "{a: 1}",
    "{'a': 1}",
    '{"a": 1,}',
    '{"a": [1,]}',
    '{"a": 01}',
    '{"a": +1}',
    '{"a": .5}',
    '{"a": 5.}',
    '{"a": 1e}',
    '{"a": 0x10}',
    '{"a": tru}',
    '{"a": "\t"}',
    '{"a": "\x01"}',
    '{"a": "\\x41"}',
    '{"a" 1}',
    '{"a": 1} x',
    '{"a": 1}{"b": 2}',
    "// comment\n{}",
    '\ufeff{"a": 1}',
    '{"a":\u00a01}',
    "\u2003{}",
]


@pytest.mark.parametrize("text", REFUSED_BY_BOTH, ids=ascii)
def test_what_postgresql_refuses_is_refused(postgres: Database, text: str) -> None:
    with pytest.raises(JsonTextError):
        canonical_object(text)
    assert postgres.refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "1",
        "null",
        "true",
        '"a"',
        " ",
        "\n",
        "[{}]",
        '{"a": 1, "a": 1}',
        '{"a": 1e+0000000001}',  # leading zeros of an exponent count as digits
    ],
    ids=ascii,
)
def test_what_only_the_service_refuses(text: str) -> None:
    with pytest.raises(JsonTextError):
        canonical_object(text)


@given(text=storable_text | st.text('{}[]",:0123456789eE.+-truefalsn\\u ', max_size=30))
def test_any_text_is_accepted_or_refused_alike(postgres: Database, text: str) -> None:
    problem = ""
    try:
        canonical = canonical_object(text)
    except JsonTextError as exc:
        problem = str(exc)
    assert "\n" not in problem
    if not problem:
        assert text == "" or canonical == postgres.value("SELECT $1::text::jsonb::text", text)
    elif not postgres.refuses(text):
        # Not an object, or one that repeats a key: valid, but not for the service.
        printed = postgres.value("SELECT $1::text::jsonb::text", text)
        assert printed[0] != "{" or "repeats the key" in problem


def _contains(value: str, part: str) -> bool:
    return contains(parse(value), parse(part))


small = st.recursive(
    st.sampled_from(["1", "1.0", "10e-1", "2", "0", "-0", "-0.0", "true", "null", '"1"', '"a"']),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f'"{key}": {value}' for key, value in items.items()) + "}"
        )
    ),
    max_leaves=5,
)


@given(value=small, part=small)
def test_containment_is_postgresqls(postgres: Database, value: str, part: str) -> None:
    expected = postgres.value("SELECT $1::text::jsonb @> $2::text::jsonb", value, part)
    assert _contains(value, part) is expected


@given(value=objects, part=objects)
def test_containment_of_any_objects(postgres: Database, value: str, part: str) -> None:
    value, part = canonical_object(value), canonical_object(part)
    for left, right in ((value, part), (value, value), (value, "{}"), ("{}", part)):
        expected = postgres.value("SELECT $1::text::jsonb @> $2::text::jsonb", left, right)
        assert _contains(left, right) is expected
        assert json_contains(left, right) is expected


@given(left=numbers, right=numbers)
def test_numbers_compare_by_value(postgres: Database, left: str, right: str) -> None:
    expected = postgres.value("SELECT $1::text::jsonb = $2::text::jsonb", left, right)
    assert (comparable(parse(left)) == comparable(parse(right))) is expected


@given(tags=st.lists(storable_text, max_size=5).map(tuple))
def test_tags(postgres: Database, tags: tuple[str, ...]) -> None:
    text = canonical_tags(tags)
    assert tuple(json.loads(text)) == tags
    assert text == postgres.value("SELECT $1::text::jsonb::text", text)


def test_size_limits() -> None:
    fitting = '{"a": "' + "x" * (MAX_BYTES - 9) + '"}'
    assert len(fitting) == MAX_BYTES
    assert canonical_object(fitting) == fitting
    wide = '{"a": "' + "é" * ((MAX_BYTES - 9) // 2) + 'x"}'
    assert len(wide.encode()) == MAX_BYTES
    assert canonical_object(wide) == wide
    too_large = [
        fitting + " ",
        wide + " ",
        '{"a":"' + "x" * (MAX_BYTES - 8) + '"}',  # by the space that the canonical text has
        '{"a": [' + ",".join(["1e100000"] * 11) + "]}",
        '{"a": "' + "\\u00e9" * 10 + '", "b": 1e-16383, "c": [' + ",".join(["1e131071"] * 8) + "]}",
    ]
    for text in too_large:
        with pytest.raises(JsonTextError, match="larger"):
            canonical_object(text)


def test_numbers_that_grow_take_no_memory() -> None:
    # Each stands for a hundred thousand digits: 2.6 GB, were they all written out.
    text = '{"a": [' + ",".join(["1e99999"] * 32_000) + "]}"
    assert len(text) < MAX_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(JsonTextError, match="larger"):
            canonical_object(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MAX_BYTES


def test_depth_limit(postgres: Database) -> None:
    def nested(levels: int, opening: str, closing: str) -> str:
        return '{"a": ' + opening * (levels - 1) + closing * (levels - 1) + "}"

    deep = nested(MAX_DEPTH, "[", "]")
    assert canonical_object(deep) == deep
    objects_deep = '{"a": ' * (MAX_DEPTH - 1) + "{}" + "}" * (MAX_DEPTH - 1)
    assert canonical_object(objects_deep) == objects_deep
    assert contains(parse(objects_deep), parse(objects_deep))
    for text in (
        nested(MAX_DEPTH + 1, "[", "]"),
        nested(100_000, "[", "]"),
        '{"a": ' * 30_000 + "1" + "}" * 30_000,
    ):
        with pytest.raises(JsonTextError, match="deeper"):
            canonical_object(text)


def test_a_repeated_key_is_named() -> None:
    with pytest.raises(JsonTextError, match='repeats the key "b"'):
        canonical_object('{"x": [{"b": 1, "a": 2, "b": 1}]}')


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "{}"),
        ("{}", "{}"),
        (" { } ", "{}"),
        ('{"b":1,"a":2}', '{"a": 2, "b": 1}'),
        ('{"aa":1,"b":2}', '{"b": 2, "aa": 1}'),
        ('{"é":1,"zz":2,"z":3}', '{"z": 3, "zz": 2, "é": 1}'),
        ('{"a":1.50,"b":1e2,"c":-0}', '{"a": 1.50, "b": 100, "c": 0}'),
        ('{"a":"\\u00e9\\/\\u001f\\n\\u2028"}', '{"a": "é/\\u001f\\n\u2028"}'),
        ('{"a":[[],{},null]}', '{"a": [[], {}, null]}'),
    ],
)
def test_examples(text: str, canonical: str) -> None:
    assert canonical_object(text) == canonical
