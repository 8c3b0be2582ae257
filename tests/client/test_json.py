from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation, localcontext
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastore import _json

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text()
values = st.recursive(
    scalars, lambda s: st.lists(s, max_size=4) | st.dictionaries(st.text(), s, max_size=4)
)
objects = st.dictionaries(st.text(), values, max_size=5)


@given(objects)
def test_dumps_and_loads_round_trip(value: dict[str, Any]) -> None:
    text = _json.dumps(value)
    assert _json.loads(text) == value
    assert json.loads(text) == value


@given(objects)
def test_slow_writer_equals_fast_writer(value: dict[str, Any]) -> None:
    parts: list[str] = []
    _json._write(value, "metadata", parts)
    assert json.loads("".join(parts)) == json.loads(_json.dumps(value))


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40))
def test_decimal_keeps_every_digit(number: Decimal) -> None:
    if number.adjusted() < -10_000:
        number = Decimal(0)
    text = _json.dumps({"n": number})
    assert "E" not in text
    read = _json.loads(text)["n"]
    assert Decimal(str(read)) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("1.10", 1.1),
        ("1e2", 100.0),
        ("0.1000000000000000055511151231257827", Decimal("0.1000000000000000055511151231257827")),
        ("12345678901234567890.5", Decimal("12345678901234567890.5")),
        ("1e400", Decimal("1e400")),
        ("1e-400", Decimal("1e-400")),
        ("9007199254740993", 9007199254740993),
        ("-0", 0),
    ],
)
def test_numbers_have_the_exact_type(text: str, value: float | Decimal) -> None:
    read = _json.loads(f'{{"n":{text}}}')["n"]
    assert read == value
    assert type(read) is type(value)


@pytest.fixture
def long_ints_refused() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(4300)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("long_ints_refused")
def test_long_int_is_read_as_decimal() -> None:
    text = '{"n":' + "9" * 5000 + ',"f":1.5}'
    value = _json.loads(text)
    assert value == {"n": Decimal("9" * 5000), "f": 1.5}
    assert _json.dumps(value) == text
    assert _json.dumps({"n": 10**5000}) == '{"n":1' + "0" * 5000 + "}"


def _cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": float("nan")}, "metadata.a: nan is not a JSON number"),
        ({"a": [1, float("inf")]}, r"metadata.a\[1\]: inf is not a JSON number"),
        ({"a": Decimal("NaN")}, "metadata.a: NaN is not a JSON number"),
        ({"a": Decimal("-Infinity")}, "metadata.a: -Infinity is not a JSON number"),
        ({"a": Decimal("1E+999999999")}, "metadata.a: a number may have 131,072 digits"),
        ({"a": Decimal("1E-999999")}, "metadata.a: a number may have 131,072 digits"),
        (_cycle(), "nested too deeply, or contains itself"),
    ],
)
def test_dumps_rejects_values_that_cannot_be_stored(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _json.dumps(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: "a", "1": "b"}, "metadata: the key 1 is not a str"),
        ({"a": {None: 1}}, "metadata.a: the key None is not a str"),
        ({"a": [{True: 1}]}, r"metadata.a\[0\]: the key True is not a str"),
        ({"a": datetime(2020, 1, 1, tzinfo=UTC)}, "metadata.a: datetime is not a JSON value"),
        ({"a": {"b": b"x"}}, "metadata.a.b: bytes is not a JSON value"),
        ({"a": {1, 2}}, "metadata.a: set is not a JSON value"),
    ],
)
def test_dumps_rejects_values_without_json_form(value: dict[Any, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        _json.dumps(value)


def test_dumps_accepts_any_mapping() -> None:
    value = MappingProxyType({"a": MappingProxyType({"b": (1, 2)})})
    assert _json.dumps(value) == '{"a":{"b":[1,2]}}'


@pytest.mark.parametrize(
    "text",
    ["NaN", '{"a":Infinity}', "{'a':1}", '{"a":1} x', "", "1e999999999999999999999", "[" * 100_000],
)
def test_loads_rejects_invalid_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        _json.loads(text)


# Exponents of up to 25 digits; Decimal supports 18.
number_texts = st.from_regex(
    r"-?(0|[1-9][0-9]{0,60})(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,25})?", fullmatch=True
)


def decimal_or_none(text: str) -> Decimal | None:
    with localcontext() as context:
        context.traps[InvalidOperation] = False
        number = Decimal(text, context)
    return number if number.is_finite() else None


def storable(number: float | Decimal) -> bool:
    """Report whether PostgreSQL's numeric has enough digits."""
    if not isinstance(number, Decimal):
        return True
    exponent = number.as_tuple().exponent
    return number.adjusted() < 131_072 and isinstance(exponent, int) and exponent >= -16_383


@pytest.mark.parametrize("parse", [_json.loads, _json.loads_as_written])
@given(number_texts)
def test_parsed_number_is_exact_or_rejected(parse: Callable[[str], Any], text: str) -> None:
    expected = decimal_or_none(text)
    if expected is None:
        with pytest.raises(ValueError, match="exponent is out of range"):
            parse(f'{{"n": [{text}]}}')
        return
    number = parse(text)
    exact = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    assert exact == expected


@given(number_texts)
def test_parsed_number_is_written_exactly_or_rejected(text: str) -> None:
    if decimal_or_none(text) is None:
        return
    value = {"n": _json.loads(text)}
    if not storable(value["n"]):
        with pytest.raises(ValueError, match="131,072 digits before the point"):
            _json.dumps(value)
        return
    written = _json.dumps(value)
    assert _json.loads(written) == value
    assert _json.same(written, f'{{"n": {text}}}')


@given(number_texts, number_texts)
def test_comparison_of_numbers_is_exact_or_rejected(left: str, right: str) -> None:
    numbers = decimal_or_none(left), decimal_or_none(right)
    if left != right and None in numbers:
        with pytest.raises(ValueError, match="exponent is out of range"):
            _json.same(left, right)
    else:
        assert _json.same(left, right) is (left == right or numbers[0] == numbers[1])


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("parse", [_json.loads, _json.loads_as_written])
def test_exponent_out_of_range_is_reported(parse: Callable[[str], Any], sign: str) -> None:
    with pytest.raises(ValueError, match=f"the number {sign}1e9+, whose exponent is out of range"):
        parse(f'{{"n": {sign}1e99999999999999999999}}')


def test_exponent_out_of_range_is_reported_in_any_decimal_context() -> None:
    with localcontext() as context:
        context.traps[InvalidOperation] = False
        with pytest.raises(ValueError, match="exponent is out of range"):
            _json.loads("1e99999999999999999999")


def test_loads_rejects_deep_nesting() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        _json.loads("[" * 100_000)
    assert _json.loads("[" * 500 + "]" * 500)


def test_duplicate_keys_are_rejected_as_written() -> None:
    assert _json.loads('{"a":1,"a":2}') == {"a": 2}
    with pytest.raises(ValueError, match="has the key 'a' twice"):
        _json.loads_as_written('{"b":[{"a":1,"a":2}]}')
    assert _json.loads_as_written('{"a":{"a":1}}') == {"a": {"a": 1}}


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ('{"a":1,"b":2.50}', '{"b": 2.5, "a": 1}', True),
        ('{"a":1e3}', '{"a":1000}', True),
        ('{"a":1}', '{"a":true}', False),
        ('{"a":0}', '{"a":false}', False),
        ('{"a":1}', '{"a":"1"}', False),
        ('{"a":[1,2]}', '{"a":[2,1]}', False),
        ('{"a":null}', "{}", False),
    ],
)
def test_same_compares_by_value(left: str, right: str, equal: bool) -> None:
    assert _json.same(left, right) is equal
