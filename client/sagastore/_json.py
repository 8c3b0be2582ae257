"""Lossless conversion between Python values and JSON text.

A Python float has about 17 significant digits, and by default Python does not
parse an int of more than 4300 digits. Numbers beyond these limits become
`decimal.Decimal`; `dumps` writes a Decimal as plain decimal notation. Reading
therefore returns the value that was stored.

Floats come back as floats, and ints as ints. The service stores PostgreSQL's jsonb text
of a number, which has no exponent: of `1e23` it keeps `100000000000000000000000`, an
int. So `dumps` writes a float without exponent and with a fraction (`.0`), which jsonb
keeps. Only the sign of `-0.0` is lost: jsonb has no negative zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from json import encoder as _json_encoder
from typing import Any, NoReturn

from sagastore import json_numbers as numbers

__all__ = ["dumps", "loads", "loads_as_written", "same"]

_SCALARS = frozenset({str, int, float, bool, type(None)})
_KEYS = frozenset({str})


def loads(text: str) -> Any:
    """Parse JSON text; a number that a float cannot represent becomes a Decimal.

    Raises:
        ValueError: The text is not JSON (RFC 8259).
    """
    try:
        value, end = _decoder.raw_decode(text)  # Skips the search for white space.
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass
    return _decode(text, _decoder, _long_decoder)


def loads_as_written(text: str) -> Any:
    """Parse JSON text so that `dumps` writes the same digits, and reject duplicate keys.

    A number that a float would spell differently, such as `1.50`, becomes a Decimal.

    Raises:
        ValueError: The text is not JSON (RFC 8259), or an object has a key twice. The
            error completes a sentence whose subject is the text.
    """
    return _decode(text, _written_decoder, _long_written_decoder)


def _decode(text: str, decoder: json.JSONDecoder, long_decoder: json.JSONDecoder) -> Any:
    try:
        try:
            return decoder.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError as exc:
            if "integer string conversion" not in str(exc):
                raise
        # Only now: a `parse_int` in Python costs time, and long integers are rare.
        return long_decoder.decode(text)
    except json.JSONDecodeError as exc:
        raise ValueError(f"is not JSON: {exc.msg} at character {exc.pos:,}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def dumps(value: Mapping[str, Any], name: str = "metadata") -> str:
    """Write a mapping as a JSON object.

    Values may be None, bool, int, float, Decimal, str, lists, tuples and
    mappings with str keys. Nothing else is converted.

    Raises:
        ValueError: NaN, Infinity, a number that PostgreSQL cannot store, or a
            value that is nested too deeply or contains itself.
        TypeError: A key that is not a str (keys such as 1 and "1" would
            collide), or a value without a JSON form. Both errors start with the
            path of the value.
    """
    if not value:
        return "{}"
    try:
        if _has_str_keys(value):
            text = _encode_fast(value)
            # Unless it is part of a string, this is a float such as 1e+16.
            if "e+" not in text:
                return text
    except (TypeError, ValueError):
        pass  # The slower writer below supports more types and reports the path.
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply, or contains itself") from None
    parts: list[str] = []
    try:
        _write(value, name, parts)
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply, or contains itself") from None
    return "".join(parts)


def same(left: str, right: str) -> bool:
    """Report whether two JSON texts have the same value.

    Numbers compare by value, whatever their spelling, and never equal a
    boolean. The order of keys does not matter.

    Raises:
        ValueError: A text is not JSON, or a number's exponent is out of range.
    """
    if left == right:
        return True
    return _same(_decimal_decoder.decode(left), _decimal_decoder.decode(right))


def _same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"has the key {key[:40]!r} twice in one object")
            seen.add(key)
    return result


_decoder = json.JSONDecoder(parse_float=numbers.real, parse_constant=numbers.constant)
_long_decoder = json.JSONDecoder(
    parse_float=numbers.real, parse_int=numbers.integer, parse_constant=numbers.constant
)
_written_decoder = json.JSONDecoder(
    parse_float=numbers.real_as_written,
    parse_constant=numbers.constant,
    object_pairs_hook=_unique_keys,
)
_long_written_decoder = json.JSONDecoder(
    parse_float=numbers.real_as_written,
    parse_int=numbers.integer,
    parse_constant=numbers.constant,
    object_pairs_hook=_unique_keys,
)
_decimal_decoder = json.JSONDecoder(
    parse_float=numbers.decimal, parse_int=numbers.decimal, parse_constant=numbers.constant
)


def _refuse(value: object) -> NoReturn:
    raise TypeError(type(value).__name__)


_encoder = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,
    check_circular=False,
    separators=(",", ":"),
    default=_refuse,
)


def _make_fast() -> Any:
    """Return a reusable C encoder; JSONEncoder.encode creates one per call."""
    try:
        make: Any = getattr(_json_encoder, "c_make_encoder")  # noqa: B009 - typeshed lacks it
        encode = make(
            None, _refuse, _json_encoder.encode_basestring, None, ":", ",", False, False, False
        )
        encode({"a": 1}, 0)
    except (AttributeError, TypeError):
        return None
    return encode


_c_encode = _make_fast()


def _encode_fast(value: Mapping[str, Any]) -> str:
    if _c_encode is not None:
        return "".join(_c_encode(value, 0))
    return _encoder.encode(value)


def _has_str_keys(value: Any) -> bool:
    """Report whether all keys, at every depth, are exactly str.

    The C encoder would silently convert other keys to str. Scalars, which most
    metadata consists of, are recognized by one pass in C.
    """
    if isinstance(value, dict):
        if not _KEYS.issuperset(map(type, value)):
            return False
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return True
    if _SCALARS.issuperset(map(type, value)):
        return True
    return all(map(_has_str_keys, value))


def _write(value: Any, path: str, out: list[str]) -> None:
    """Append the JSON text of a value, or raise an error with its path."""
    if isinstance(value, str):
        out.append(_json_encoder.encode_basestring(value))
    elif value is None or value is True or value is False:
        out.append(_CONSTANTS[value])
    elif isinstance(value, (int, float, Decimal)):
        out.append(numbers.format_number(value, path))
    elif isinstance(value, Mapping):
        _write_object(value, path, out)
    elif isinstance(value, (list, tuple)):
        _write_array(value, path, out)
    else:
        raise TypeError(
            f"{path}: {type(value).__name__} is not a JSON value; convert it, for example to str"
        )


_CONSTANTS = {None: "null", True: "true", False: "false"}


def _write_object(value: Mapping[Any, Any], path: str, out: list[str]) -> None:
    separator = "{"
    for key, item in value.items():
        if not isinstance(key, str):
            raise TypeError(f"{path}: the key {key!r} is not a str, as keys of JSON objects are")
        out.append(separator)
        out.append(_json_encoder.encode_basestring(key))
        out.append(":")
        _write(item, f"{path}.{key}", out)
        separator = ","
    out.append("}" if separator == "," else "{}")


def _write_array(value: list[Any] | tuple[Any, ...], path: str, out: list[str]) -> None:
    separator = "["
    for index, item in enumerate(value):
        out.append(separator)
        _write(item, f"{path}[{index}]", out)
        separator = ","
    out.append("]" if separator == "," else "[]")
