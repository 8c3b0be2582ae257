r"""One text for each JSON value: the text that PostgreSQL's ``jsonb`` prints.

Metadata is kept as text on SQLite and as JSONB on PostgreSQL. JSONB keeps a
value and forgets its spelling, so the service brings each value into JSONB's
own spelling before it stores it anywhere. Then both stores hold, compare and
return the same text, and equal values are equal strings.

The spelling (PostgreSQL 18, ``jsonb_out``): keys ordered by the length of their
UTF-8 bytes, then by those bytes; ``", "`` and ``": "`` between; numbers in plain
decimal notation with the trailing zeros of the input; no negative zero; only
``"``, ``\`` and control characters below U+0020 escaped.
``tests/unit/test_canonical_json.py`` compares it with a real server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from json.encoder import encode_basestring as _quoted
from typing import Any, NoReturn

MAX_BYTES = 1024 * 1024
"""Bytes of a metadata text, as sent and in canonical spelling (api.md)."""

MAX_DEPTH = 200
"""Levels of nesting: far from where Python's recursion limit (1000 frames) would end us."""

MAX_WHOLE_DIGITS = 131_072
"""Digits before the decimal point of a PostgreSQL ``numeric`` (documentation, 8.1.2)."""

MAX_FRACTION_DIGITS = 16_383
"""Digits after the decimal point of a PostgreSQL ``numeric`` (documentation, 8.1.2)."""

_MAX_EXPONENT_CHARACTERS = 7
"""Longer exponents are out of range whatever the digits are."""


_TOO_LARGE_IN_FULL = f"is larger than {MAX_BYTES:,} bytes when written out in full"

_MAY_GROW = re.compile("[0-9][eE][+-]?[0-9]{3}")
"""What a number contains that stands for hundreds of digits; other texts may as well."""


class JsonTextError(ValueError):
    """The text is not JSON that both stores can hold; the message says why."""


class _Number(str):
    """A number by its canonical text."""

    __slots__ = ()


def canonical_object(text: str) -> str:
    """Return the canonical text of the JSON object in ``text``; empty means ``{}``.

    Raises:
        JsonTextError: It is not valid JSON, not an object, too large, too deep,
            repeats a key, or holds a value that JSONB cannot (U+0000, lone
            surrogates, NaN, Infinity, numbers out of range).

    """
    if not text or text == "{}":
        return "{}"
    value = parse(text)
    if not isinstance(value, dict):
        raise JsonTextError(f"must be a JSON object, is {_kind(value)}")
    return write(value)


def read(canonical: str) -> Any:
    """Read a text that ``canonical_object`` returned, as ``parse`` does, and in half the time.

    Raises:
        JsonTextError: It never returned that.

    """
    try:
        return _CANONICAL.decode(canonical)
    except json.JSONDecodeError:
        return parse(canonical)


def parse(text: str) -> Any:
    """Read ``text`` into dicts, lists, strings, booleans, None and number texts.

    Numbers come as strings of a private type, so that no digit is lost.

    Raises:
        JsonTextError: As in ``canonical_object``.

    """
    if len(text) > MAX_BYTES or (not text.isascii() and _utf8_length(text) > MAX_BYTES):
        raise JsonTextError(f"is larger than {MAX_BYTES:,} bytes")
    try:
        value = _decoder(text).decode(text)
    except JsonTextError:
        raise
    except RecursionError:
        raise JsonTextError(f"is nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as exc:
        raise JsonTextError(f"is not valid JSON: {exc.msg} at character {exc.pos}") from None
    return value


def write(value: Any) -> str:
    """Return the canonical text of a value that ``parse`` made.

    Raises:
        JsonTextError: It is too large or too deep, or a string holds U+0000 or a
            lone surrogate.

    """
    text = _text(value, 1)
    if len(text) > MAX_BYTES or _utf8_length(text) > MAX_BYTES:
        raise JsonTextError(_TOO_LARGE_IN_FULL)
    return text


def canonical_tags(tags: tuple[str, ...]) -> str:
    """Return the canonical JSON text of a list of valid tags."""
    return "[" + ", ".join(map(_quoted, tags)) + "]" if tags else "[]"


def contains(value: Any, part: Any) -> bool:
    """Tell whether ``value`` contains ``part``, as PostgreSQL's ``jsonb @>`` does.

    Both come from ``parse``. Objects: each key of the part is there and contains
    the part's value. Arrays: each element of the part is contained in some
    element, whatever the order. Numbers are equal by value. At the top level
    only, an array also contains a bare scalar (documentation, 8.14.3).
    """
    if isinstance(value, list) and not isinstance(part, dict | list):
        return any(_equal_scalars(item, part) for item in value)
    return _contains(value, part)


def comparable(scalar: Any) -> str:
    """Return a text that two scalars share if and only if JSONB holds them equal."""
    if isinstance(scalar, _Number):
        return "n" + _without_trailing_zeros(scalar)
    if isinstance(scalar, str):
        return "s" + scalar
    return "null" if scalar is None else f"b{scalar}"


def _contains(value: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(value, dict) and all(
            key in value and _contains(value[key], wanted) for key, wanted in part.items()
        )
    if isinstance(part, list):
        return isinstance(value, list) and _contains_items(value, part)
    return not isinstance(value, dict | list) and _equal_scalars(value, part)


def _contains_items(value: list[Any], part: list[Any]) -> bool:
    # Scalars by a set: comparing each with each takes minutes for the largest metadata.
    scalars = {comparable(item) for item in value if not isinstance(item, dict | list)}
    nested = [item for item in value if isinstance(item, dict | list)]
    return all(
        any(_contains(item, wanted) for item in nested)
        if isinstance(wanted, dict | list)
        else comparable(wanted) in scalars
        for wanted in part
    )


def _equal_scalars(left: Any, right: Any) -> bool:
    return not isinstance(left, dict | list) and comparable(left) == comparable(right)


def _without_trailing_zeros(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _utf8_length(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise JsonTextError("holds a lone surrogate, which is not a character") from None


def _kind(value: Any) -> str:
    if isinstance(value, _Number):
        return "a number"
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names[type(value)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonTextError(f"repeats the key {_shortened(repeated)}; JSONB would keep only one")
    return result


def _shortened(text: str) -> str:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return json.dumps(shown)


def _constant(name: str) -> NoReturn:
    raise JsonTextError(f"holds {name}, which is not a JSON number")


def _whole(text: str) -> _Number:
    if len(text) > MAX_WHOLE_DIGITS:
        raise _out_of_range(text)
    return _Number("0" if text == "-0" else text)


def _real(text: str) -> _Number:
    """Write a number with a fraction or an exponent as ``numeric_out`` does."""
    sign = "-" if text[0] == "-" else ""
    mantissa, _, exponent_text = text[len(sign) :].replace("E", "e").partition("e")
    if len(exponent_text) > _MAX_EXPONENT_CHARACTERS:
        raise _out_of_range(text)
    exponent = int(exponent_text or "0")
    whole, _, fraction = mantissa.partition(".")
    scale = max(len(fraction) - exponent, 0)
    digits = (whole + fraction).lstrip("0")
    if scale > MAX_FRACTION_DIGITS:
        raise _out_of_range(text)
    if not digits:
        return _Number("0." + "0" * scale if scale else "0")
    if len(digits) - len(fraction) + exponent > MAX_WHOLE_DIGITS:
        raise _out_of_range(text)
    digits += "0" * max(exponent - len(fraction), 0)
    digits = digits.rjust(scale + 1, "0")
    point = len(digits) - scale
    return _Number(sign + digits[:point] + ("." + digits[point:] if scale else ""))


def _out_of_range(text: str) -> JsonTextError:
    shown = text if len(text) <= 40 else text[:40] + "…"
    return JsonTextError(
        f"holds the number {shown}, beyond the {MAX_WHOLE_DIGITS:,} digits before and "
        f"{MAX_FRACTION_DIGITS:,} after the point that PostgreSQL keeps"
    )


def _ordered(keys: Iterable[str]) -> list[str]:
    """Return keys as JSONB orders them: by the number of their bytes, then by these."""
    if "".join(keys).isascii():
        return sorted(sorted(keys), key=len)
    return sorted(keys, key=_by_bytes)


def _by_bytes(key: str) -> tuple[int, bytes]:
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise JsonTextError("holds a lone surrogate, which is not a character") from None
    return len(encoded), encoded


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_real, parse_int=_whole, parse_constant=_constant
)


class _Numbers:
    """Reads the numbers of one text, up to so much of their digits.

    ``1e99999`` is seven characters that stand for a hundred thousand.
    """

    def __init__(self) -> None:
        self._room = MAX_BYTES

    def real(self, text: str) -> _Number:
        """As ``_real``."""
        number = _real(text)
        self._room -= len(number)
        if self._room < 0:
            raise JsonTextError(_TOO_LARGE_IN_FULL)
        return number


def _decoder(text: str) -> json.JSONDecoder:
    if _MAY_GROW.search(text) is None:
        return _DECODER
    return json.JSONDecoder(
        object_pairs_hook=_object,
        parse_float=_Numbers().real,
        parse_int=_whole,
        parse_constant=_constant,
    )


_CANONICAL = json.JSONDecoder(parse_float=_Number, parse_int=_Number)


def _text(value: Any, depth: int) -> str:
    """Return the canonical text of a value at a depth of nesting."""
    kind = type(value)
    if kind is str:
        return _string(value)
    if kind is dict or kind is list:
        if depth > MAX_DEPTH:
            raise JsonTextError(f"is nested deeper than {MAX_DEPTH} levels")
        depth += 1
        if kind is list:
            return "[" + ", ".join([_text(item, depth) for item in value]) + "]"
        members = [f"{_string(key)}: {_text(value[key], depth)}" for key in _ordered(value)]
        return "{" + ", ".join(members) + "}"
    if kind is _Number:
        return value  # type: ignore[no-any-return]
    return "null" if value is None else "true" if value else "false"


def _string(value: str) -> str:
    if "\x00" in value:
        raise JsonTextError("holds U+0000, which PostgreSQL cannot store")
    return _quoted(value)
