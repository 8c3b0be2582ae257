"""Metadata as JSON text, without loss.

A Python float holds about 17 significant digits and an int of more than 4300
digits cannot be read by default. Numbers beyond either come back as
`decimal.Decimal`, and a Decimal is written as its plain number text, so that
what was stored is what is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from json import encoder as _json_encoder
from math import isfinite
from typing import Any, NoReturn

__all__ = ["dumps", "loads", "loads_strict", "same"]

# What PostgreSQL's numeric, and so its jsonb, can hold.
_MAX_DIGITS_BEFORE_POINT = 131_072
_MAX_DIGITS_AFTER_POINT = 16_383

_SCALARS = frozenset({str, int, float, bool, type(None)})
_KEYS = frozenset({str})


def loads(text: str) -> Any:
    """Read JSON text; numbers that a float would change become Decimal.

    Raises:
        ValueError: The text is not JSON (RFC 8259: NaN and Infinity are not).
    """
    try:
        value, end = _fast_decoder.raw_decode(text)  # Skips the search for white space.
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass
    return _load(text, _fast_decoder, _long_decoder)


def loads_strict(text: str) -> Any:
    """Read JSON text as `loads` does, and refuse an object with a duplicate key.

    Raises:
        ValueError: The text is not JSON, or one object names a key twice.
    """
    return _load(text, _strict_decoder, _strict_long_decoder)


def _load(text: str, decoder: json.JSONDecoder, long_decoder: json.JSONDecoder) -> Any:
    try:
        try:
            return decoder.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError as exc:
            if "integer string conversion" not in str(exc):
                raise
        return long_decoder.decode(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def dumps(value: Mapping[str, Any], name: str = "metadata") -> str:
    """Write a mapping as a JSON object.

    Values may be None, bool, int, float, Decimal, str, lists, tuples and
    mappings with str keys. Nothing else is converted.

    Raises:
        ValueError: NaN, Infinity, a number that cannot be stored, or nesting
            without end.
        TypeError: A key that is not a str (two keys such as 1 and "1" would
            become one), or a value that JSON does not have. Both errors name
            the place.
    """
    if not value:
        return "{}"
    try:
        if _has_str_keys(value):
            return _encode_fast(value)
    except (TypeError, ValueError):
        pass  # The careful writer below handles it, or says what is wrong where.
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply, or contains itself") from None
    parts: list[str] = []
    try:
        _write(value, name, parts)
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply, or contains itself") from None
    return "".join(parts)


def same(left: str, right: str) -> bool:
    """Tell whether two JSON texts hold the same value.

    Numbers compare by value whatever their spelling, and never equal a
    boolean; the order of keys does not matter.
    """
    return left == right or _same(_exact_decoder.decode(left), _exact_decoder.decode(right))


def _same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)


def _read_float(text: str) -> float | Decimal:
    number = float(text)
    if repr(number) == text:
        return number
    try:
        exact = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"the exponent of {text[:50]} is out of range") from None
    if isfinite(number) and Decimal(repr(number)) == exact:
        return number
    return exact


def _read_int(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:  # More digits than sys.set_int_max_str_digits allows.
        return Decimal(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} appears twice in one object")
            seen.add(key)
    return result


_fast_decoder = json.JSONDecoder(parse_float=_read_float, parse_constant=_refuse_constant)
_long_decoder = json.JSONDecoder(
    parse_float=_read_float, parse_int=_read_int, parse_constant=_refuse_constant
)
_strict_decoder = json.JSONDecoder(
    parse_float=_read_float,
    parse_constant=_refuse_constant,
    object_pairs_hook=_unique_object,
)
_strict_long_decoder = json.JSONDecoder(
    parse_float=_read_float,
    parse_int=_read_int,
    parse_constant=_refuse_constant,
    object_pairs_hook=_unique_object,
)
_exact_decoder = json.JSONDecoder(
    parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse_constant
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
    """Return the C encoder, made once: JSONEncoder.encode makes one per call."""
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
    """Tell whether all keys, at every depth, are exactly str.

    The C encoder would turn other keys into str without a word. Scalars, which
    most metadata consists of, are told apart by one pass in C.
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
    """Write one value, whatever it is, or say what is wrong with it and where."""
    if isinstance(value, str):
        out.append(_json_encoder.encode_basestring(value))
    elif value is None or value is True or value is False:
        out.append(_CONSTANTS[value])
    elif isinstance(value, (int, float, Decimal)):
        out.append(_number(value, path))
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


def _number(value: float | Decimal, path: str) -> str:
    if isinstance(value, Decimal):
        return _decimal(value, path)
    if isinstance(value, int):
        try:
            return int.__repr__(value)
        except ValueError:  # Too many digits for int, not for Decimal.
            return format(Decimal(value), "f")
    if not isfinite(value):
        raise ValueError(f"{path}: {value!r} is not a JSON number")
    return float.__repr__(value)


def _decimal(value: Decimal, path: str) -> str:
    if not value.is_finite():
        raise ValueError(f"{path}: {value} is not a JSON number")
    exponent = int(value.as_tuple().exponent)
    if value.adjusted() >= _MAX_DIGITS_BEFORE_POINT or -exponent > _MAX_DIGITS_AFTER_POINT:
        # Plain text of 1E+999999999 would fill the memory.
        raise ValueError(
            f"{path}: a number may have {_MAX_DIGITS_BEFORE_POINT:,} digits before the point "
            f"and {_MAX_DIGITS_AFTER_POINT:,} after it"
        )
    return format(value, "f")
